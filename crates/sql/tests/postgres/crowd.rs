//! Many processes over one database.
use std::sync::Arc;

use model::{PauseMode, Phase, Sandbox, State, TeamId, TemplateId};
use ports::store::{SandboxQuery, contract};
use ports::{SandboxStore, StoreError, TeamStore, TemplateStore};
use sql::Postgres;

use crate::server::{beside, database};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_in_many_processes_one_wins_each_version() {
    let Some(config) = database().await else { return };
    let sandbox = contract::sandbox(TeamId::random());
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(Postgres::connect(&config).await.unwrap());
    }
    SandboxStore::insert(&*stores[0], &sandbox).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for store in stores.iter().cycle().take(12) {
        let (store, id) = (Arc::clone(store), sandbox.id);
        writers.spawn(async move {
            let mut won = 0;
            while won < 20 {
                let read = SandboxStore::get(&*store, id).await.unwrap().unwrap();
                let write = Sandbox {
                    timeout_seconds: read.timeout_seconds + 1,
                    ..read
                };
                match SandboxStore::update(&*store, &write).await {
                    Ok(_) => won += 1,
                    Err(StoreError::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    writers.join_all().await;
    let stored = SandboxStore::get(&*stores[3], sandbox.id).await.unwrap().unwrap();
    assert_eq!(stored.version, 240);
    assert_eq!(stored.timeout_seconds, sandbox.timeout_seconds + 240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_processes_change_is_counted_as_it_is_listed() {
    let Some(config) = database().await else { return };
    let (one, two) = (TeamId::random(), TeamId::random());
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..12 {
        let config = config.clone();
        let team = if number % 2 == 0 { one } else { two };
        writers.spawn(async move {
            let store = Postgres::connect(&config).await.unwrap();
            let mut sandbox = contract::sandbox(team);
            let running = sandbox.phase;
            SandboxStore::insert(&*store, &sandbox).await.unwrap();
            let why = model::KillReason::Requested;
            let paused = Phase::Paused {
                snapshot: sandbox.build,
                mode: PauseMode::Full,
                home: running.seat().unwrap().node,
            };
            for phase in [paused, running, running, paused, Phase::Gone { why }]
                .into_iter()
                .cycle()
                .take(20 + number)
            {
                sandbox.phase = phase;
                sandbox.version = SandboxStore::update(&*store, &sandbox).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let store = Postgres::connect(&config).await.unwrap();
    for team in [one, two] {
        for state in [State::Running, State::Paused] {
            let query = SandboxQuery {
                states: vec![state],
                ..contract::everything(team)
            };
            let listed = SandboxStore::list(&*store, &query).await.unwrap().len() as u64;
            assert_eq!(SandboxStore::count(&*store, team, state).await.unwrap(), listed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spawns_of_many_processes_are_all_counted() {
    let Some(config) = database().await else { return };
    let template = contract::template(TeamId::random(), "busy");
    let stores = [
        Postgres::connect(&config).await.unwrap(),
        Postgres::connect(&config).await.unwrap(),
    ];
    TemplateStore::insert(&*stores[0], &template).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (store, template) = (Arc::clone(&stores[number % 2]), template.clone());
        writers.spawn(async move { store.spawned(template.id, template.created_at).await.unwrap() });
    }
    writers.join_all().await;
    let stored = TemplateStore::get(&*stores[1], template.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stored.spawn_count, 100);
}

#[tokio::test]
async fn many_processes_that_begin_at_once_have_one_seed() {
    let Some(config) = database().await else { return };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let config = config.clone();
        tasks.spawn(async move { Postgres::connect(&config).await.unwrap().seed().await.unwrap() });
    }
    let seeds = tasks.join_all().await;
    assert!(seeds.iter().all(|seed| *seed == seeds[0]));
}

#[tokio::test]
async fn a_team_that_many_processes_make_is_made_once() {
    let Some(config) = database().await else { return };
    let slug = TemplateId::random().to_string();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (config, slug) = (config.clone(), slug.clone());
        tasks.spawn(async move {
            let store = Postgres::connect(&config).await.unwrap();
            store.insert_team(&contract::team(&slug)).await
        });
    }
    let made = tasks.join_all().await;
    assert_eq!(made.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(
        made.iter()
            .all(|outcome| matches!(outcome, Ok(()) | Err(StoreError::Conflict)))
    );
}

#[tokio::test]
async fn connections_are_kept_and_are_no_more_than_allowed() {
    let Some(config) = database().await else { return };
    let config = sql::PostgresConfig {
        connections_max: 3,
        application_name: "atoll under test".to_owned(),
        ..config
    };
    let store = Postgres::connect(&config).await.unwrap();
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let store = Arc::clone(&store);
        reads.spawn(async move { store.seed().await.unwrap() });
    }
    reads.join_all().await;
    let mut other = beside(&config).await;
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'atoll under test'";
    let connections: i64 = sqlx::query_scalar(count).fetch_one(&mut other).await.unwrap();
    assert!((1..=3).contains(&connections), "{connections}");
    // The pool goes with the store, and its connections with the pool.
    drop(store);
    let began = std::time::Instant::now();
    while sqlx::query_scalar::<_, i64>(count)
        .fetch_one(&mut other)
        .await
        .unwrap()
        > 0
    {
        assert!(began.elapsed().as_secs() < 60);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
