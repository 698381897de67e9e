//! SQLite keeps the laws of the stores.
use std::sync::Arc;

async fn fresh() -> (tempfile::TempDir, Arc<sql::Sqlite>) {
    let directory = tempfile::tempdir().unwrap();
    let store = sql::Sqlite::open(&directory.path().join("atoll.db"))
        .await
        .unwrap();
    (directory, store)
}

ports::store_contract!(fresh());
