//! Brings a database to the schema of this program.
use std::time::Duration;

use crate::postgres::{Fault, PostgresConfigError, SchemaError};
use crate::stores::Database;

/// What a migration of a database came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// What was applied now, in its order; empty where nothing was left to do.
    pub applied: Vec<Applied>,
    /// The generation of the schema from now on. It is greater than this program's where a newer program only expanded it.
    pub generation: i64,
}

/// A migration that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its number.
    pub generation: i64,
    /// What it is called.
    pub name: String,
}

/// Why a database was not migrated. What was applied before stays applied, and a later try goes on behind it.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] PostgresConfigError),
    /// The database cannot be reached.
    #[error(transparent)]
    Away(#[from] Fault),
    /// A newer program has migrated it too far, or it is no database for Atoll.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Another process migrates, and does not come to an end.
    #[error(
        "another process has been migrating the database for {0:?}: wait for it, or end it, then try again"
    )]
    Turn(Duration),
    /// A migration that was applied is another than the one that this program has.
    #[error(
        "migration {0} was applied to the database by a program that is not a release of Atoll: its text differs"
    )]
    Changed(i64),
    /// A migration is not finished.
    #[error("migration {0} of this program does not say which programs it excludes")]
    Unstated(i64),
    /// A statement failed.
    #[error("the database was not migrated to the end: a later try goes on where this one stopped")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<sqlx::migrate::MigrateError> for MigrateError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        MigrateError::Failed(error.into())
    }
}

/// Brings a database to the schema of this program, and says what was applied. May be run by many at once, at any time, and
/// again. SQLite does the same whenever it is opened.
///
/// # Errors
/// Where the database is away, or not this program's to migrate.
pub async fn migrate(database: &Database) -> Result<Migrated, MigrateError> {
    match database {
        Database::Sqlite(path) => crate::sqlite::migrate(path).await,
        Database::Postgres(config) => crate::postgres::migrate(config).await,
    }
}
