//! Brings a database to the schema of this program.
use std::time::Duration;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

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

/// The name and the text of a migration, which is numbered by its place.
pub(crate) type Text = (&'static str, &'static str);

/// What migrates a schema. Its texts are named, where `sqlx::migrate!` would find them: that macro compiles every database's driver
/// a second time.
pub(crate) fn migrator(texts: &[Text]) -> Migrator {
    let migration = |(number, (name, text)): (i64, &Text)| {
        let is_alone = text.starts_with("-- no-transaction");
        let text = text.into_sql_str();
        Migration::new(number, (*name).into(), MigrationType::Simple, text, is_alone)
    };
    Migrator::with_migrations((1..).zip(texts).map(migration).collect())
}

/// The generation of a program with these migrations: the number of the last one.
pub(crate) fn generation(migrations: &Migrator) -> i64 {
    let numbers = migrations.iter().map(|migration| migration.version);
    numbers.max().unwrap_or_default()
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Whether the files of a directory are all of a schema's migrations, and each has its number and its name.
    pub(crate) fn check(directory: &str, migrations: &Migrator) {
        let mut files: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let named = |migration: &Migration| {
            let name = migration.description.replace(' ', "_");
            format!("{:04}_{name}.sql", migration.version)
        };
        assert_eq!(files, migrations.iter().map(named).collect::<Vec<_>>());
        for (file, migration) in files.iter().zip(migrations.iter()) {
            let text = std::fs::read_to_string(format!("{directory}/{file}")).unwrap();
            assert_eq!(text, migration.sql.as_str(), "{file}");
        }
    }
}
