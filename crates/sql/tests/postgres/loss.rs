//! A server that is lost, restarted, slow or full: what was answered is there, and what was not is told as away.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::{Secret, TeamId};
use ports::store::contract;
use ports::{SandboxStore, StoreError, TemplateStore};
use sql::{Fault, Postgres};
use testkit::services::postgres::{PASSWORD, Postgres as Server, USER};

use crate::proxy::{Answers, Proxy};
use crate::server::{beside, config, database, fault, migrate, name, say, shared, whole};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_backend_that_ends_in_the_midst_of_a_write_is_told_and_the_write_may_be_repeated() {
    let Some(config) = database().await else { return };
    let store = Postgres::connect(&config).await.unwrap();
    let sandbox = contract::sandbox(TeamId::random());
    SandboxStore::insert(&*store, &sandbox).await.unwrap();
    let mut other = beside(&config).await;
    say(&mut other, "BEGIN; SELECT 1 FROM sandboxes FOR UPDATE").await;
    let write = {
        let (store, sandbox) = (Arc::clone(&store), sandbox.clone());
        tokio::spawn(async move { SandboxStore::update(&*store, &sandbox).await })
    };
    let waits =
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let began = Instant::now();
    let mut third = beside(&config).await;
    let pid: i32 = loop {
        if let Some(pid) = sqlx::query_scalar(waits)
            .fetch_optional(&mut third)
            .await
            .unwrap()
        {
            break pid;
        }
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    say(&mut third, &format!("SELECT pg_terminate_backend({pid})")).await;
    let fault = fault(write.await.unwrap());
    assert!(matches!(*fault, Fault::Lost(_)), "{fault:?}");
    say(&mut other, "ROLLBACK").await;
    // It took no effect, so the same compare-and-set succeeds, by the same pool.
    assert_eq!(SandboxStore::update(&*store, &sandbox).await.unwrap(), 1);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_told_as_away_and_repeating_it_changes_nothing() {
    let Some(direct) = database().await else { return };
    let server = shared().unwrap();
    let proxy = Proxy::start(server.port()).await;
    let url = direct
        .url
        .expose()
        .replace(&server.port().to_string(), &proxy.port.to_string());
    let config = sql::PostgresConfig {
        url: Secret::new(url),
        ..direct.clone()
    };
    let store = Postgres::connect(&config).await.unwrap();
    let mut sandbox = contract::sandbox(TeamId::random());
    SandboxStore::insert(&*store, &sandbox).await.unwrap();
    // Prepared, so that the next one is carried out before its first answer.
    sandbox.version = SandboxStore::update(&*store, &sandbox).await.unwrap();
    sandbox.timeout_seconds = 7;
    proxy.set(Answers::Cut);
    let lost = fault(SandboxStore::update(&*store, &sandbox).await);
    assert!(matches!(*lost, Fault::Lost(_)), "{lost:?}");
    proxy.set(Answers::Pass);
    // The server carries it out whether or not somebody listens.
    let began = Instant::now();
    let stored = loop {
        let stored = SandboxStore::get(&*store, sandbox.id).await.unwrap().unwrap();
        if stored.version == 2 {
            break stored;
        }
        assert!(began.elapsed() < PATIENCE);
    };
    assert_eq!(stored.timeout_seconds, 7);
    assert!(matches!(
        SandboxStore::update(&*store, &sandbox).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(
        SandboxStore::get(&*store, sandbox.id).await.unwrap(),
        Some(stored)
    );
}

#[tokio::test]
async fn a_read_whose_connection_is_lost_is_asked_for_again() {
    let Some(config) = database().await else { return };
    let store = Postgres::connect(&config).await.unwrap();
    let sandbox = contract::sandbox(TeamId::random());
    SandboxStore::insert(&*store, &sandbox).await.unwrap();
    let mut other = beside(&config).await;
    say(
        &mut other,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await;
    assert_eq!(
        SandboxStore::get(&*store, sandbox.id).await.unwrap(),
        Some(sandbox)
    );
}

#[tokio::test]
async fn a_network_that_swallows_answers_costs_a_bounded_time_and_no_connection_for_ever() {
    let Some(direct) = database().await else { return };
    let server = shared().unwrap();
    let proxy = Proxy::start(server.port()).await;
    let url = direct
        .url
        .expose()
        .replace(&server.port().to_string(), &proxy.port.to_string());
    let config = sql::PostgresConfig {
        url: Secret::new(url),
        statement_timeout: Duration::from_millis(100),
        acquire_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(3),
        connections_max: 1,
        ..direct
    };
    let store = Postgres::connect(&config).await.unwrap();
    let sandbox = contract::sandbox(TeamId::random());
    proxy.set(Answers::Lose);
    let began = Instant::now();
    let silent = fault(SandboxStore::insert(&*store, &sandbox).await);
    assert!(matches!(*silent, Fault::Silent(_)), "{silent:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
    // A new connection is not answered either.
    let silent = fault(SandboxStore::get(&*store, sandbox.id).await);
    assert!(
        matches!(*silent, Fault::Unreachable(_) | Fault::Silent(_)),
        "{silent:?}"
    );
    proxy.set(Answers::Pass);
    SandboxStore::get(&*store, sandbox.id).await.unwrap();
    // Callers that give up take nothing with them.
    let mut other = beside(&config).await;
    say(&mut other, "BEGIN; LOCK TABLE sandboxes").await;
    for _ in 0..3 {
        let given_up =
            tokio::time::timeout(Duration::from_millis(20), SandboxStore::get(&*store, sandbox.id));
        given_up.await.unwrap_err();
    }
    say(&mut other, "ROLLBACK").await;
    SandboxStore::get(&*store, sandbox.id).await.unwrap();
}

#[tokio::test]
async fn a_slow_statement_is_given_up_and_changes_nothing() {
    let Some(config) = database().await else { return };
    let config = sql::PostgresConfig {
        statement_timeout: Duration::from_millis(3500),
        acquire_timeout: Duration::from_millis(1500),
        connections_max: 1,
        ..config
    };
    let store = Postgres::connect(&config).await.unwrap();
    let template = contract::template(TeamId::random(), "slow");
    TemplateStore::insert(&*store, &template).await.unwrap();
    let mut other = beside(&config).await;
    say(&mut other, "BEGIN; LOCK TABLE template_names").await;
    // The second statement of its transaction waits, the first was carried out.
    let write = async { fault(TemplateStore::update(&*store, &template).await) };
    // Meanwhile the only connection is in use.
    let read = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        fault(TemplateStore::get(&*store, template.id).await)
    };
    let (slow, busy) = tokio::join!(write, read);
    assert!(matches!(*slow, Fault::Slow(_)), "{slow:?}");
    assert!(matches!(*busy, Fault::Busy(_)), "{busy:?}");
    say(&mut other, "ROLLBACK").await;
    assert_eq!(
        TemplateStore::get(&*store, template.id).await.unwrap().as_ref(),
        Some(&template)
    );
    assert_eq!(TemplateStore::update(&*store, &template).await.unwrap(), 1);
}

#[tokio::test]
async fn a_server_without_a_connection_left_is_full_and_one_that_takes_no_writes_says_so() {
    let Some(mut config) = database().await else {
        return;
    };
    let mut other = beside(&config).await;
    let role = name();
    say(
        &mut other,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1;
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
        ),
    )
    .await;
    config.url = Secret::new(config.url.expose().replace(USER, &role));
    config.acquire_timeout = Duration::from_secs(2);
    let store = Postgres::connect(&config).await.unwrap();
    let Err(sql::OpenError::Away(full)) = Postgres::connect(&config).await else {
        panic!("a second connection was let in");
    };
    assert!(matches!(full, Fault::Full(_)), "{full:?}");
    say(
        &mut other,
        &format!("ALTER ROLE {role} SET default_transaction_read_only = on"),
    )
    .await;
    let sandbox = contract::sandbox(TeamId::random());
    SandboxStore::insert(&*store, &sandbox).await.unwrap();
    drop(store);
    let store = loop {
        // Until the server has noticed that its one connection is free.
        match Postgres::connect(&config).await {
            Ok(store) => break store,
            Err(sql::OpenError::Away(Fault::Full(_))) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let refused = fault(SandboxStore::update(&*store, &sandbox).await);
    assert!(matches!(*refused, Fault::ReadOnly(_)), "{refused:?}");
    assert_eq!(
        SandboxStore::get(&*store, sandbox.id).await.unwrap(),
        Some(sandbox)
    );
}

#[tokio::test]
async fn no_error_holds_the_password() {
    let Some(right) = database().await else { return };
    let url = right.url.expose();
    let mut wrong = Vec::new();
    for url in [
        url.replace(PASSWORD, "another-hunter2"),
        url.replace("test_", "no_such_"),
        url.replace(USER, "nobody_at_all"),
        url.replace(&shared().unwrap().port().to_string(), "1"),
        format!("{url}?sslmode=require"),
        format!("{url}?hunter2=1").replace("hunter2=1", "sslmode=hunter2"),
    ] {
        let config = sql::PostgresConfig {
            url: Secret::new(url),
            acquire_timeout: Duration::from_millis(200),
            ..right.clone()
        };
        let error = Postgres::connect(&config).await.err().expect("a wrong URL");
        wrong.push(whole(&error));
        let error = sql::migrate(&sql::Database::Postgres(config)).await.unwrap_err();
        wrong.push(whole(&error));
    }
    for text in wrong {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// Adds one to a sandbox of its own until it is told to stop, and tells how often it did. What was not answered is read, and
/// counts if it took effect.
async fn add(
    store: Arc<Postgres>,
    mut sandbox: model::Sandbox,
    stop: Arc<AtomicBool>,
    away: Arc<AtomicU64>,
    progress: Arc<AtomicU32>,
) {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        progress.store(answered, Ordering::Relaxed);
        sandbox.timeout_seconds = answered + 1;
        match SandboxStore::update(&*store, &sandbox).await {
            Ok(version) => {
                sandbox.version = version;
                answered += 1;
            }
            Err(StoreError::Away(_)) => {
                away.fetch_add(1, Ordering::Relaxed);
                sandbox = loop {
                    match SandboxStore::get(&*store, sandbox.id).await {
                        Ok(stored) => break stored.expect("nothing is lost"),
                        Err(StoreError::Away(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                };
                assert!(
                    (answered..=answered + 1).contains(&sandbox.timeout_seconds),
                    "{answered} were answered, {} are stored",
                    sandbox.timeout_seconds
                );
                answered = sandbox.timeout_seconds;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let stored = SandboxStore::get(&*store, sandbox.id).await.unwrap().unwrap();
    assert_eq!(stored.timeout_seconds, answered);
}

/// Waits until each adds again.
async fn all_go_on(progress: &[Arc<AtomicU32>]) {
    let began = Instant::now();
    for one in progress {
        let before = one.load(Ordering::Relaxed);
        while one.load(Ordering::Relaxed) < before + 3 {
            assert!(began.elapsed() < PATIENCE, "one does not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_and_killed_under_load_is_found_again_and_has_lost_nothing() {
    if !Server::is_installed() {
        return;
    }
    let mut server = tokio::task::spawn_blocking(Server::start).await.unwrap().unwrap();
    server.create_database("load", None).unwrap();
    migrate(&server, "load").await;
    let config = sql::PostgresConfig {
        acquire_timeout: Duration::from_secs(30),
        connections_max: 4,
        ..config(&server, "load")
    };
    let store = Postgres::connect(&config).await.unwrap();
    let (stop, away) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut adders = tokio::task::JoinSet::new();
    let progress: Vec<_> = (0..8).map(|_| Arc::new(AtomicU32::new(0))).collect();
    for one in &progress {
        let mut sandbox = contract::sandbox(TeamId::random());
        sandbox.timeout_seconds = 0;
        SandboxStore::insert(&*store, &sandbox).await.unwrap();
        adders.spawn(add(
            Arc::clone(&store),
            sandbox,
            Arc::clone(&stop),
            Arc::clone(&away),
            Arc::clone(one),
        ));
    }
    for _ in 0..2 {
        all_go_on(&progress).await;
        server = tokio::task::spawn_blocking(move || {
            server.restart().unwrap();
            server
        })
        .await
        .unwrap();
        all_go_on(&progress).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill().unwrap();
            server.start_again().unwrap();
            server
        })
        .await
        .unwrap();
    }
    all_go_on(&progress).await;
    stop.store(true, Ordering::Relaxed);
    adders.join_all().await;
    assert!(away.load(Ordering::Relaxed) > 0, "nobody noticed anything");
    // A server that stays away is told within the time that was allowed.
    server.stop().unwrap();
    let config = sql::PostgresConfig {
        acquire_timeout: Duration::from_millis(300),
        ..config
    };
    let began = Instant::now();
    let Err(sql::OpenError::Away(gone)) = Postgres::connect(&config).await else {
        panic!("nobody listens there");
    };
    assert!(matches!(gone, Fault::Unreachable(_)), "{gone:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    tokio::task::spawn_blocking(move || {
        server.start_again().unwrap();
        server
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn names_that_are_swapped_by_many_at_once_end_in_answers_and_not_in_deadlocks() {
    let Some(config) = database().await else { return };
    let mut other = beside(&config).await;
    let database: String = sqlx::query_scalar("SELECT current_database()")
        .fetch_one(&mut other)
        .await
        .unwrap();
    say(
        &mut other,
        &format!("ALTER DATABASE {database} SET deadlock_timeout = '5ms'"),
    )
    .await;
    let store = Postgres::connect(&config).await.unwrap();
    let team = TeamId::random();
    let (one, two) = (contract::template(team, "one"), contract::template(team, "two"));
    TemplateStore::insert(&*store, &one).await.unwrap();
    TemplateStore::insert(&*store, &two).await.unwrap();
    let began = Instant::now();
    loop {
        for _ in 0..50 {
            let swap = async |id, name: &str| {
                let mut template = TemplateStore::get(&*store, id).await.unwrap().unwrap();
                template.names = vec![name.to_owned()];
                TemplateStore::update(&*store, &template).await
            };
            let (first, second) = tokio::join!(swap(one.id, "two"), swap(two.id, "one"));
            for outcome in [first, second] {
                assert!(
                    matches!(outcome, Ok(_) | Err(StoreError::Conflict)),
                    "{outcome:?}"
                );
            }
        }
        let deadlocks: i64 =
            sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
                .fetch_one(&mut other)
                .await
                .unwrap();
        if deadlocks > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "they never met");
    }
}
