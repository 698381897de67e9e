//! A standby is never read from, and serves when it was promoted.
use std::time::Duration;

use model::TeamId;
use ports::SandboxStore;
use ports::store::contract;
use sql::{Fault, OpenError, Postgres};
use testkit::services::postgres::Postgres as Server;

use crate::server::{admin, config, migrate, say};

#[tokio::test]
async fn a_standby_is_refused_until_it_is_promoted_and_has_what_was_answered() {
    if !Server::is_installed() {
        return;
    }
    let mut primary = Server::start().unwrap();
    primary.create_database("fleet", None).unwrap();
    migrate(&primary, "fleet").await;
    let standby = primary.copy(true).unwrap();
    // An answer means that the standby has it too.
    let mut operator = admin(&primary, "fleet").await;
    say(&mut operator, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    say(&mut operator, "SELECT pg_reload_conf()").await;
    let store = Postgres::connect(&config(&primary, "fleet")).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..50 {
        let sandbox = contract::sandbox(TeamId::random());
        store.insert(&sandbox).await.unwrap();
        all.push(sandbox);
    }
    let refused = Postgres::connect(&config(&standby, "fleet")).await;
    assert!(matches!(refused, Err(OpenError::Away(Fault::ReadOnly(None)))));
    primary.kill().unwrap();
    standby.promote().unwrap();
    let config = sql::PostgresConfig {
        acquire_timeout: Duration::from_secs(30),
        ..config(&standby, "fleet")
    };
    let store = Postgres::connect(&config).await.unwrap();
    for sandbox in all {
        assert_eq!(store.get(sandbox.id).await.unwrap().as_ref(), Some(&sandbox));
        assert_eq!(store.update(&sandbox).await.unwrap(), 1);
    }
}
