//! What SQLite does beyond the laws.
use std::sync::Arc;

use model::recipe::{Base, Recipe, RegistryCredentials};
use model::{Build, BuildId, BuildStatus, PauseMode, Phase, Sandbox, Secret, TeamId, TemplateId};
use ports::builds::BuildStore;
use ports::store::contract;
use ports::{SandboxStore, StoreError, TeamStore};
use sqlx::{Connection as _, Row as _};

#[tokio::test]
async fn what_was_answered_is_there_after_a_second_opening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    let sandbox = contract::sandbox(TeamId::random());
    let seed = {
        let store = sql::Sqlite::open(&path).await.unwrap();
        store.insert(&sandbox).await.unwrap();
        store.seed().await.unwrap()
    };
    let store = sql::Sqlite::open(&path).await.unwrap();
    assert_eq!(store.get(sandbox.id).await.unwrap(), Some(sandbox));
    assert_eq!(store.seed().await.unwrap(), seed);
}

/// Whether these bytes are somewhere in the database's file, once its log is copied into it.
async fn is_in_file(path: &std::path::Path, needle: &str) -> bool {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    for _ in 0..100 {
        let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        if row.get::<i64, _>(0) == 0 {
            let bytes = std::fs::read(path).unwrap();
            return bytes.windows(needle.len()).any(|part| part == needle.as_bytes());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the log cannot be copied");
}

#[tokio::test]
async fn credentials_that_are_taken_out_of_a_build_are_not_in_the_file_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    let store = sql::Sqlite::open(&path).await.unwrap();
    let needle = "hunter2-and-more-of-it";
    let recipe = |credentials| Recipe {
        from: Base::Image {
            reference: "registry.example/debian:12".to_owned(),
            credentials,
        },
        steps: Vec::new(),
        // So long that it lies on several pages, of which some become free.
        start: Some("x".repeat(50_000)),
        ready: None,
        force: false,
    };
    let at = std::time::SystemTime::UNIX_EPOCH;
    let mut build = Build {
        id: BuildId::random(),
        template: TemplateId::random(),
        team: TeamId::random(),
        status: BuildStatus::Building,
        tags: Vec::new(),
        resources: model::Resources::default(),
        recipe: Some(recipe(Some(RegistryCredentials::Basic {
            username: "me".to_owned(),
            password: Secret::new(needle.repeat(200)),
        }))),
        node: None,
        runner: None,
        created_at: at,
        updated_at: at,
        finished_at: None,
        version: 0,
    };
    store.insert_build(&build).await.unwrap();
    build.version = store.build(build.id).await.unwrap().unwrap().version;
    assert!(is_in_file(&path, needle).await);
    build.status = BuildStatus::Ready;
    build.recipe = Some(Recipe {
        start: None,
        ..recipe(None)
    });
    store.update_build(&build).await.unwrap();
    assert!(!is_in_file(&path, needle).await);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("atoll.db");
    std::fs::write(
        &path,
        b"this is a text, and a long one, about something else entirely",
    )
    .unwrap();
    assert!(matches!(sql::Sqlite::open(&path).await, Err(StoreError::Away(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_write_does_not_harm_those_committed_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = sql::Sqlite::open(&directory.path().join("atoll.db"))
        .await
        .unwrap();
    let taken = contract::sandbox(TeamId::random());
    store.insert(&taken).await.unwrap();
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..500 {
        let (store, taken) = (Arc::clone(&store), taken.clone());
        writes.spawn(async move {
            if n % 5 == 0 {
                assert!(matches!(store.insert(&taken).await, Err(StoreError::Conflict)));
                return;
            }
            let mut sandbox = contract::sandbox(TeamId::random());
            store.insert(&sandbox).await.unwrap();
            sandbox.phase = Phase::Paused {
                snapshot: sandbox.build,
                mode: PauseMode::Full,
                home: sandbox.phase.seat().unwrap().node,
            };
            sandbox.version = store.update(&sandbox).await.unwrap();
            assert_eq!(store.get(sandbox.id).await.unwrap().as_ref(), Some(&sandbox));
            let stale = Sandbox {
                version: 0,
                ..sandbox
            };
            assert!(matches!(store.update(&stale).await, Err(StoreError::Conflict)));
        });
    }
    while let Some(outcome) = writes.join_next().await {
        outcome.unwrap();
    }
    assert_eq!(store.live().await.unwrap().len(), 401);
}
