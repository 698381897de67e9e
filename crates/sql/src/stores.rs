//! The stores, whichever database is behind them.
use std::path::PathBuf;
use std::sync::Arc;

use ports::{BuildStore, SandboxStore, StoreError, TeamStore, TemplateStore, VolumeStore};

use crate::postgres::{OpenError, Postgres, PostgresConfig};
use crate::sqlite::Sqlite;

/// Where everything is kept that must not be lost.
#[derive(Debug, Clone)]
pub enum Database {
    /// In a file, for one process.
    Sqlite(PathBuf),
    /// In PostgreSQL, for a fleet. Its schema is made by [`crate::migrate`].
    Postgres(PostgresConfig),
}

/// All stores, over one database.
#[derive(Clone)]
pub struct Stores {
    /// Sandboxes.
    pub sandboxes: Arc<dyn SandboxStore>,
    /// Templates.
    pub templates: Arc<dyn TemplateStore>,
    /// Builds, their logs, and results of their steps.
    pub builds: Arc<dyn BuildStore>,
    /// Volumes.
    pub volumes: Arc<dyn VolumeStore>,
    /// Teams and their keys.
    pub teams: Arc<dyn TeamStore>,
}

impl Stores {
    /// Of one adapter that is all of them.
    pub fn of<S>(store: &Arc<S>) -> Self
    where
        S: SandboxStore + TemplateStore + BuildStore + VolumeStore + TeamStore + 'static,
    {
        Self {
            sandboxes: Arc::clone(store) as _,
            templates: Arc::clone(store) as _,
            builds: Arc::clone(store) as _,
            volumes: Arc::clone(store) as _,
            teams: Arc::clone(store) as _,
        }
    }

    /// Opens the database. A file is made where there is none, and migrated; PostgreSQL must have been migrated.
    ///
    /// # Errors
    /// Where it cannot be opened, or its schema is not for this program.
    pub async fn open(database: &Database) -> Result<Self, OpenStoresError> {
        Ok(match database {
            Database::Sqlite(path) => Self::of(&Sqlite::open(path).await?),
            Database::Postgres(config) => Self::of(&Postgres::connect(config).await?),
        })
    }
}

/// Why the stores cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoresError {
    /// SQLite's file.
    #[error("the database cannot be opened")]
    Sqlite(#[from] StoreError),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] OpenError),
}
