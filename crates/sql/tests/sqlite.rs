//! What SQLite does beyond the laws.
use std::sync::Arc;

use model::{PauseMode, Phase, Sandbox, TeamId};
use ports::store::contract;
use ports::{SandboxStore, StoreError, TeamStore};

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
