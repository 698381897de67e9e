//! One server for all tests that do it no harm, and a database for each of them.
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use model::Secret;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use testkit::services::postgres::Postgres as Server;

/// What every database is made like: it has the schema, and nothing in it.
const TEMPLATE: &str = "migrated";

/// The server that all share. It ends with the process.
pub(crate) fn shared() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER
        .get_or_init(|| {
            Server::is_installed().then(|| {
                let server = Server::start().unwrap();
                server.create_database(TEMPLATE, None).unwrap();
                // On a runtime of its own: this may be called on any.
                std::thread::scope(|scope| {
                    let migrated = scope.spawn(|| {
                        let runtime = tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .build()
                            .unwrap();
                        runtime.block_on(migrate(&server, TEMPLATE))
                    });
                    migrated.join().unwrap();
                });
                server
            })
        })
        .as_ref()
}

/// A configuration for one of a server's databases.
pub(crate) fn config(server: &Server, database: &str) -> sql::PostgresConfig {
    // Whatever else the machine does meanwhile, and however slow an unoptimised proof of a password is.
    sql::PostgresConfig {
        acquire_timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(30),
        ..sql::PostgresConfig::new(Secret::new(server.url(database)))
    }
}

pub(crate) async fn migrate(server: &Server, database: &str) {
    sql::migrate(&sql::Database::Postgres(config(server, database)))
        .await
        .unwrap();
}

/// The name of a database that nobody has yet.
pub(crate) fn name() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", LAST.fetch_add(1, Ordering::Relaxed))
}

/// A new database with the schema on the shared server, and its configuration.
pub(crate) async fn database() -> Option<sql::PostgresConfig> {
    let server = shared()?;
    let name = name();
    let mut admin = admin(server, "postgres").await;
    say(&mut admin, &format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await;
    Some(config(server, &name))
}

/// A fresh store on the shared server, for the laws.
pub(crate) async fn fresh() -> Option<((), Arc<sql::Postgres>)> {
    let config = database().await?;
    Some(((), sql::Postgres::connect(&config).await.unwrap()))
}

/// A connection of the test's own.
pub(crate) async fn admin(server: &Server, database: &str) -> PgConnection {
    PgConnection::connect(&server.url(database)).await.unwrap()
}

/// The same, to the database of a configuration.
pub(crate) async fn beside(config: &sql::PostgresConfig) -> PgConnection {
    PgConnection::connect(config.url.expose()).await.unwrap()
}

/// Carries out a statement.
pub(crate) async fn say(connection: &mut PgConnection, statement: &str) {
    let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
    statement.execute(connection).await.unwrap();
}

/// What an error says, with all of its causes.
pub(crate) fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts = vec![format!("{error} {error:?}")];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(format!("{error} {error:?}"));
        cause = error.source();
    }
    texts.join(": ")
}

/// What is inside of a store that is away.
pub(crate) fn fault<T: std::fmt::Debug>(outcome: Result<T, ports::StoreError>) -> Box<sql::Fault> {
    match outcome {
        Err(ports::StoreError::Away(inside)) => inside.downcast().expect("a fault of PostgreSQL's"),
        other => panic!("{other:?} where the store is away"),
    }
}
