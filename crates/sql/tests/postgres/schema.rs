//! Who may run over which schema, and how it is brought further.
use std::time::Duration;

use model::TeamId;
use ports::SandboxStore;
use ports::store::contract;
use sql::{Database, Fault, MigrateError, OpenError, Postgres, SchemaError};

use crate::server::{beside, config, database, fault, name, say, shared};

/// A database without a schema.
fn empty() -> Option<sql::PostgresConfig> {
    let server = shared()?;
    let name = name();
    server.create_database(&name, None).unwrap();
    Some(config(server, &name))
}

async fn refusal(config: &sql::PostgresConfig) -> SchemaError {
    match Postgres::connect(config).await {
        Err(OpenError::Away(Fault::Schema(refusal))) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    }
}

/// As a program of a later release leaves it, which knows one migration more.
async fn newer(config: &sql::PostgresConfig, oldest: i64) {
    let mut other = beside(config).await;
    say(
        &mut other,
        &format!(
            "ALTER TABLE sandboxes ADD COLUMN zone TEXT, ADD COLUMN rank BIGINT NOT NULL DEFAULT 7;
             INSERT INTO _sqlx_migrations VALUES (3, 'zones', now(), true, '\\x00', 1);
             INSERT INTO atoll_schema VALUES (3, {oldest}, true)"
        ),
    )
    .await;
}

#[tokio::test]
async fn a_database_is_migrated_once_and_opened_only_then() {
    let Some(config) = empty() else { return };
    assert_eq!(refusal(&config).await, SchemaError::Missing);
    let database = Database::Postgres(config.clone());
    let first = sql::migrate(&database).await.unwrap();
    assert_eq!(first.generation, 2);
    let applied: Vec<_> = first
        .applied
        .iter()
        .map(|one| (one.generation, &*one.name))
        .collect();
    assert_eq!(applied, [(1, "begin"), (2, "volumes at home")]);
    let second = sql::migrate(&database).await.unwrap();
    assert_eq!((second.applied, second.generation), (Vec::new(), 2));
    let stores = sql::Stores::open(&database).await.unwrap();
    assert_eq!(stores.sandboxes.live().await.unwrap(), []);
}

#[tokio::test]
async fn of_many_that_migrate_at_once_one_does_it() {
    let Some(config) = empty() else { return };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let database = Database::Postgres(config.clone());
        tasks.spawn(async move { sql::migrate(&database).await.unwrap().applied.len() });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<usize>(), 2);
    Postgres::connect(&config).await.unwrap();
}

#[tokio::test]
async fn a_migration_that_was_interrupted_is_gone_on_with() {
    let Some(config) = empty() else { return };
    let database = Database::Postgres(config.clone());
    // As it is where the process dies after it noted what it is about to apply.
    let mut other = beside(&config).await;
    say(
        &mut other,
        "CREATE TABLE atoll_schema (generation BIGINT NOT NULL PRIMARY KEY, oldest BIGINT NOT NULL, is_applied BOOLEAN NOT NULL);
         INSERT INTO atoll_schema VALUES (1, 1, false)",
    )
    .await;
    assert_eq!(refusal(&config).await, SchemaError::Missing);
    assert_eq!(sql::migrate(&database).await.unwrap().applied.len(), 2);
    // And as it is where it dies before it noted that it did.
    say(&mut other, "UPDATE atoll_schema SET is_applied = false").await;
    assert_eq!(refusal(&config).await, SchemaError::Missing);
    assert_eq!(sql::migrate(&database).await.unwrap().applied, []);
    Postgres::connect(&config).await.unwrap();
}

#[tokio::test]
async fn an_older_program_works_over_a_schema_that_only_expanded() {
    let Some(config) = database().await else { return };
    let store = Postgres::connect(&config).await.unwrap();
    let mut sandbox = contract::sandbox(TeamId::random());
    store.insert(&sandbox).await.unwrap();
    // Under the feet of one that runs, with statements that it has prepared.
    newer(&config, 1).await;
    sandbox.version = store.update(&sandbox).await.unwrap();
    assert_eq!(store.get(sandbox.id).await.unwrap().as_ref(), Some(&sandbox));
    let store = Postgres::connect(&config).await.unwrap();
    contract::what_is_stored_is_what_was_meant(&*store).await;
    contract::a_list_obeys_every_filter(&*store).await;
    // It has nothing to migrate there, and leaves it as it is.
    let migrated = sql::migrate(&Database::Postgres(config.clone())).await.unwrap();
    assert_eq!((migrated.applied, migrated.generation), (Vec::new(), 3));
}

#[tokio::test]
async fn a_program_that_a_newer_schema_excludes_is_refused_also_while_it_runs() {
    let Some(config) = database().await else { return };
    let config = sql::PostgresConfig {
        lifetime_max: Duration::from_millis(1),
        ..config
    };
    let store = Postgres::connect(&config).await.unwrap();
    // The table itself refuses to exclude programs that run beside the migration; this one comes from two releases later.
    let mut other = beside(&config).await;
    newer(&config, 1).await;
    let early = sqlx::query("INSERT INTO atoll_schema VALUES (4, 4, true)")
        .execute(&mut other)
        .await;
    assert!(early.is_err());
    say(&mut other, "INSERT INTO atoll_schema VALUES (4, 3, true); INSERT INTO _sqlx_migrations VALUES (4, 'less', now(), true, '\\x00', 1)").await;
    let new = SchemaError::New {
        has: 4,
        oldest: 3,
        is: 2,
    };
    assert_eq!(refusal(&config).await, new);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let running = fault(store.live().await);
    assert!(
        matches!(&*running, Fault::Schema(refused) if *refused == new),
        "{running:?}"
    );
    let migrated = sql::migrate(&Database::Postgres(config)).await;
    assert!(matches!(migrated, Err(MigrateError::Schema(refused)) if refused == new));
}

#[tokio::test]
async fn a_database_that_somebody_else_migrated_or_encoded_is_refused() {
    let Some(config) = database().await else { return };
    let mut other = beside(&config).await;
    say(&mut other, "UPDATE _sqlx_migrations SET checksum = '\\x00'").await;
    let database = Database::Postgres(config.clone());
    assert!(matches!(
        sql::migrate(&database).await,
        Err(MigrateError::Changed(1))
    ));
    let latin = name();
    say(
        &mut other,
        &format!("CREATE DATABASE {latin} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"),
    )
    .await;
    let database = Database::Postgres(crate::server::config(shared().unwrap(), &latin));
    let refused = sql::migrate(&database).await;
    assert!(
        matches!(&refused, Err(MigrateError::Schema(SchemaError::Encoding(is))) if is == "LATIN1"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn sqlite_is_migrated_by_the_same_function_and_when_it_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(directory.path().join("atoll.db"));
    let first = sql::migrate(&database).await.unwrap();
    assert!(!first.applied.is_empty());
    assert_eq!(first.generation, first.applied.last().unwrap().generation);
    let second = sql::migrate(&database).await.unwrap();
    assert_eq!(
        (second.applied, second.generation),
        (Vec::new(), first.generation)
    );
    let stores = sql::Stores::open(&database).await.unwrap();
    contract::what_is_stored_is_what_was_meant(&*stores.sandboxes).await;
    contract::the_seed_stays(&*stores.teams).await;
}
