//! Which schema a database has, which programs may run over it, and how it gets the next one.
//!
//! A *generation* is the number of a migration. A program is of the generation of the last migration that it knows. The table
//! `atoll_schema` keeps, for each migration, the oldest generation of programs that may still run once it was applied; a
//! migration says so in its first line, `-- oldest: N`.
//!
//! ```text
//! database older than the program      refused: `atoll migrate` first
//! database newer, oldest <= program    works: it only expanded
//! database newer, oldest >  program    refused: the program is too old
//! ```
//!
//! # Expand and contract
//!
//! Two releases run side by side while a fleet is upgraded, and the older one may come back. So a change of what is there takes
//! two releases at least, and each migration is one of two kinds:
//!
//! * **Expand** (`oldest` as before): new tables; new columns that may be NULL or have a constant default; new indexes,
//!   `CONCURRENTLY` where the table is not new, in a migration of their own that begins with `-- no-transaction` behind its
//!   first line; wider types that need no rewrite; new constraints as `NOT VALID`. What programs of the release before write must
//!   still be valid, and what they read must still be there: no statement of theirs selects `*`.
//! * **Contract** (`oldest` greater, and at most the generation before): removes what no program of the release before uses any
//!   more: the program that stopped to use it was released earlier, and is of the generation that `oldest` names.
//!
//! A rename is an expansion (the new column), a release that writes both and fills what is old in small batches, a release that
//! reads the new one alone, and a contraction. The order of an upgrade is always `atoll migrate`, then the programs, one after
//! the other; back is the programs alone. Migrations are never taken back.
//!
//! A migration that waits for a lock lets everybody wait behind it: it gives up after [`LOCK_WAIT`], and may be repeated.
//!
//! The tests below hold what a text can show of this; `atoll_schema` itself refuses a migration that excludes the programs of
//! the generation before it.
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::migrate::{Migrate as _, Migration, Migrator};
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::time::Instant;

use super::config::PostgresConfig;
use super::fault::{self, Fault};
use super::pool;
use crate::migrate::{self, Applied, MigrateError, Migrated, migrator};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    migrator(&[
        ("begin", include_str!("../../migrations/postgres/0001_begin.sql")),
        (
            "volumes at home",
            include_str!("../../migrations/postgres/0002_volumes_at_home.sql"),
        ),
    ])
});
/// Where sqlx notes what was applied.
const NOTES: &str = "_sqlx_migrations";
/// Held by whoever migrates; "atoll" in ASCII.
const LOCK: i64 = 0x61_746f_6c6c;
/// How long a migration may wait for a lock, during which everybody else waits behind it.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long one that migrates waits for another: migrations of large tables take minutes.
const TURN_WITHIN: Duration = Duration::from_secs(600);
/// How often it looks whether its turn has come.
const TURN_GLANCE: Duration = Duration::from_millis(200);

/// A program and a schema that are not made for each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The database is empty.
    #[error("the database has no schema yet: run `atoll migrate`")]
    Missing,
    /// The schema is older than the program.
    #[error(
        "the database's schema is of generation {has}, and this program needs {needs}: run `atoll migrate`"
    )]
    Old {
        /// The database's.
        has: i64,
        /// The program's.
        needs: i64,
    },
    /// The schema has changed too much for the program.
    #[error(
        "`atoll migrate` of a newer program brought the database's schema to generation {has}, over which programs before \
         generation {oldest} must not run; this one is of generation {is}: upgrade it"
    )]
    New {
        /// The database's.
        has: i64,
        /// The oldest program's that may run.
        oldest: i64,
        /// This program's.
        is: i64,
    },
    /// The database is not in UTF-8.
    #[error("the database is encoded in {0}: make one with ENCODING 'UTF8'")]
    Encoding(String),
}

/// The generation of this program.
pub(crate) fn generation() -> i64 {
    migrate::generation(&MIGRATIONS)
}

/// Whether a program of generation `is` may run over a database of generation `has` that excludes those before `oldest`.
fn judge(has: Option<i64>, oldest: Option<i64>, is: i64) -> Result<(), SchemaError> {
    let Some(has) = has else {
        return Err(SchemaError::Missing);
    };
    match oldest {
        Some(oldest) if oldest > is => Err(SchemaError::New { has, oldest, is }),
        _ if has < is => Err(SchemaError::Old { has, needs: is }),
        _ => Ok(()),
    }
}

/// Looks at a connection that was just opened: a standby tells what was true earlier, and another schema is another program's.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), Fault> {
    let row = sqlx::query(
        "SELECT pg_is_in_recovery(), current_setting('server_encoding'),
                (SELECT max(generation) FROM atoll_schema WHERE is_applied), (SELECT max(oldest) FROM atoll_schema)",
    )
    .persistent(false)
    .fetch_one(connection)
    .await;
    let row = match row {
        Ok(row) => row,
        // undefined_table.
        Err(error) if fault::code(&error).as_deref() == Some("42P01") => {
            return Err(SchemaError::Missing.into());
        }
        Err(error) => return Err(Fault::Unreachable(error.into())),
    };
    let read = || {
        Ok((
            row.try_get::<bool, _>(0)?,
            row.try_get::<String, _>(1)?,
            row.try_get::<Option<i64>, _>(2)?,
            row.try_get::<Option<i64>, _>(3)?,
        ))
    };
    let (is_standby, encoding, has, oldest) =
        read().map_err(|error: sqlx::Error| Fault::Garbled(error.into()))?;
    if is_standby {
        return Err(Fault::ReadOnly(None));
    }
    is_utf8(encoding)?;
    Ok(judge(has, oldest, generation())?)
}

fn is_utf8(encoding: String) -> Result<(), SchemaError> {
    match encoding.as_str() {
        "UTF8" => Ok(()),
        _ => Err(SchemaError::Encoding(encoding)),
    }
}

/// Brings the schema to this program's generation. Any number may do so at once: one of them does it, the others wait for it.
pub(crate) async fn migrate(config: &PostgresConfig) -> Result<Migrated, MigrateError> {
    let mut options = config.options()?.options([
        ("lock_timeout", LOCK_WAIT.as_millis().to_string()),
        ("statement_timeout", "0".to_owned()),
        ("client_min_messages", "warning".to_owned()),
    ]);
    options = options.application_name(&format!("{} migrate", config.application_name));
    let deadline = Instant::now() + config.acquire_timeout;
    let mut connection = pool::open(&options, config.connect_timeout, deadline).await?;
    await_turn(&mut connection).await?;
    let outcome = advance(&mut connection).await;
    // The lock ends with the connection.
    let _ = connection.close().await;
    outcome
}

async fn await_turn(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let deadline = Instant::now() + TURN_WITHIN;
    while !sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?
    {
        if Instant::now() >= deadline {
            return Err(MigrateError::Turn(TURN_WITHIN));
        }
        tokio::time::sleep(TURN_GLANCE).await;
    }
    Ok(())
}

/// What each migration needs is noted before it is applied: a program that it excludes is refused from then on, whatever becomes
/// of this process.
async fn advance(connection: &mut PgConnection) -> Result<Migrated, MigrateError> {
    let encoding: String = sqlx::query_scalar("SELECT current_setting('server_encoding')")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    is_utf8(encoding)?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS atoll_schema (
             generation BIGINT  NOT NULL PRIMARY KEY,
             oldest     BIGINT  NOT NULL CHECK (oldest <= greatest(generation - 1, 1)),
             is_applied BOOLEAN NOT NULL)",
    )
    .execute(&mut *connection)
    .await
    .map_err(failed)?;
    connection.ensure_migrations_table(NOTES).await?;
    let known = connection.list_applied_migrations(NOTES).await?;
    let is = generation();
    let has = known.iter().map(|migration| migration.version).max();
    if has > Some(is) {
        let oldest: Option<i64> = sqlx::query_scalar("SELECT max(oldest) FROM atoll_schema")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
        judge(has, oldest, is)?;
    }
    let mut migrated = Migrated {
        applied: Vec::new(),
        generation: has.unwrap_or_default().max(is),
    };
    for migration in MIGRATIONS.iter() {
        if let Some(earlier) = known.iter().find(|earlier| earlier.version == migration.version) {
            if earlier.checksum != migration.checksum {
                return Err(MigrateError::Changed(migration.version));
            }
        } else {
            note(connection, migration, false).await?;
            connection.apply(NOTES, migration).await?;
            migrated.applied.push(Applied {
                generation: migration.version,
                name: migration.description.to_string(),
            });
        }
        note(connection, migration, true).await?;
    }
    Ok(migrated)
}

async fn note(
    connection: &mut PgConnection,
    migration: &Migration,
    is_applied: bool,
) -> Result<(), MigrateError> {
    sqlx::query(
        "INSERT INTO atoll_schema (generation, oldest, is_applied) VALUES ($1, $2, $3)
         ON CONFLICT (generation) DO UPDATE SET is_applied = excluded.is_applied WHERE NOT atoll_schema.is_applied",
    )
    .bind(migration.version)
    .bind(oldest(migration).ok_or(MigrateError::Unstated(migration.version))?)
    .bind(is_applied)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

/// The oldest generation of programs that may still run once a migration was applied.
fn oldest(migration: &Migration) -> Option<i64> {
    let head = migration.sql.as_str().lines().next()?;
    head.strip_prefix("-- oldest: ")?.trim().parse().ok()
}

fn failed(error: sqlx::Error) -> MigrateError {
    MigrateError::Failed(error.into())
}

#[cfg(test)]
mod tests;
