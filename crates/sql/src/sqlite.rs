use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ports::StoreError;
use sqlx::migrate::{Migrate as _, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection, SqliteConnection, SqlitePool};

use crate::checkpoint::Checkpoints;
use crate::migrate::{Applied, MigrateError, Migrated, generation, migrator};
use crate::writer::{Statement, Writer};

/// Readers: a listing that takes long must not stop a create, and the machine may have two cores only.
const READERS_MAX: u32 = 4;
/// How long a statement waits for a lock. Only another process (a backup, a person with a shell) can hold one.
const BUSY: Duration = Duration::from_secs(5);
/// The writer copies the log into the database itself when it is this long (128 MiB of pages), which only happens when
/// [`Checkpoints`] cannot keep up.
const WAL_PAGES_MAX: u32 = 32_768;
/// How long a read waits for a free reader. Reads take microseconds: longer means that the disk hangs.
const READER_WAIT: Duration = Duration::from_secs(10);

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    migrator(&[
        ("begin", include_str!("../migrations/sqlite/0001_begin.sql")),
        ("builds", include_str!("../migrations/sqlite/0002_builds.sql")),
        ("stowed", include_str!("../migrations/sqlite/0003_stowed.sql")),
        (
            "volumes at home",
            include_str!("../migrations/sqlite/0004_volumes_at_home.sql"),
        ),
    ])
});

/// All stores over one SQLite file.
pub struct Sqlite {
    readers: SqlitePool,
    writer: Writer,
    _checkpoints: Checkpoints,
}

impl Sqlite {
    /// Opens the database at `path`, and makes it where there is none. Its directory must exist.
    ///
    /// # Errors
    /// [`StoreError::Away`] where it cannot be opened, or is of a newer version than this program.
    pub async fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let options = options(path);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(away)?;
        catch_up(&mut connection).await.map_err(away)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .min_connections(1)
            .acquire_timeout(READER_WAIT)
            // A local file does not hang up: asking before each read would double its price.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone().pragma("query_only", "ON"))
            .await
            .map_err(away)?;
        let checkpointer = SqliteConnection::connect_with(&options).await.map_err(away)?;
        Ok(Arc::new(Self {
            readers,
            writer: Writer::start(connection),
            _checkpoints: Checkpoints::start(checkpointer),
        }))
    }

    /// The connections that only read.
    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Reads at most one row.
    pub(crate) async fn read_one(&self, statement: Statement) -> Result<Option<SqliteRow>, StoreError> {
        statement.fetch_optional(&self.readers).await.map_err(away)
    }

    /// Reads all rows.
    pub(crate) async fn read_all(&self, statement: Statement) -> Result<Vec<SqliteRow>, StoreError> {
        statement.fetch_all(&self.readers).await.map_err(away)
    }

    /// Why a compare-and-set changed nothing: `select` finds the object whatever its version is.
    pub(crate) async fn unchanged(&self, select: Statement) -> StoreError {
        match self.read_one(select).await {
            Ok(Some(_)) => StoreError::Conflict,
            Ok(None) => StoreError::Missing,
            Err(error) => error,
        }
    }

    /// Carries out one statement; returns how many rows it changed.
    pub(crate) async fn write(&self, statement: Statement) -> Result<u64, StoreError> {
        self.writer.write(vec![statement]).await
    }

    /// Carries out all statements, or none; where the first changes no row, the others are not carried out. Returns how
    /// many rows the first changed.
    pub(crate) async fn write_all(&self, statements: Vec<Statement>) -> Result<u64, StoreError> {
        self.writer.write(statements).await
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(BUSY)
        // Credentials are taken out of builds that are over: they must not stay in pages that are free.
        .pragma("secure_delete", "ON")
        .pragma("wal_autocheckpoint", WAL_PAGES_MAX.to_string())
}

/// Applies what is missing. By this way in, for the usual one asks for more than a task that is spawned can give.
async fn catch_up(connection: &mut SqliteConnection) -> Result<(), sqlx::migrate::MigrateError> {
    MIGRATIONS.run_direct(None, connection, false).await
}

/// Brings the database at `path` to this program's schema, as [`Sqlite::open`] does.
pub(crate) async fn migrate(path: &Path) -> Result<Migrated, MigrateError> {
    let failed = |error: sqlx::Error| MigrateError::Failed(error.into());
    let mut connection = SqliteConnection::connect_with(&options(path))
        .await
        .map_err(failed)?;
    connection.ensure_migrations_table(&MIGRATIONS.table_name).await?;
    let known = connection.list_applied_migrations(&MIGRATIONS.table_name).await?;
    catch_up(&mut connection).await?;
    let is_new = |version: i64| known.iter().all(|earlier| earlier.version != version);
    let applied = MIGRATIONS
        .iter()
        .filter(|migration| is_new(migration.version))
        .map(|migration| Applied {
            generation: migration.version,
            name: migration.description.to_string(),
        });
    let migrated = Migrated {
        applied: applied.collect(),
        generation: generation(&MIGRATIONS),
    };
    connection.close().await.map_err(failed)?;
    Ok(migrated)
}

/// What is neither missing nor in conflict is a store that is away.
pub(crate) fn away(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Away(error.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_migrations_are_those_of_the_directory() {
        crate::migrate::tests::check("migrations/sqlite", &super::MIGRATIONS);
    }
}
