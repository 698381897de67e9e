//! All stores over PostgreSQL, for any number of processes at once.
//!
//! **Isolation.** READ COMMITTED. Each operation is one statement, or a transaction whose first statement is a compare-and-set
//! that locks the row which all others are about: whoever waits for the lock looks at the row again when it has it, so that of
//! many writers of one version one wins. A stronger level would add failures to repeat, and no guarantee. Nothing is read from a
//! standby, and a connection to one is refused: what was answered is seen by every read that begins after the answer, whichever
//! process asks.
//!
//! **Repeats.** What is only read is asked for again where the connection was lost. What writes is repeated where the server says
//! that it undid it (deadlock, serialization), and never where its effect is not known: that is told, as [`StoreError::Away`] with
//! [`Fault::Lost`] or [`Fault::Silent`] inside, and a caller may repeat a compare-and-set, which then changes nothing, or reads.
use std::sync::Arc;
use std::time::Duration;

use ports::StoreError;
use rand::Rng as _;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

mod build;
mod config;
mod fault;
mod pool;
mod sandbox;
mod schema;
mod statement;
mod team;
mod template;
mod text;
mod volume;

pub use config::{PostgresConfig, PostgresConfigError};
pub use fault::Fault;
use fault::Verdict;
use pool::Pool;
pub use schema::SchemaError;
pub(crate) use schema::migrate;
use statement::Statement;

/// Tries of what the server undoes for the sake of others, and of reads whose connection was lost.
const TRIES_MAX: u32 = 4;
/// Between two tries, at most; so that those who met do not meet again.
const PAUSE_MAX_MS: u64 = 20;
/// How much longer than for the server's own time-out is waited for its answer, in case that the network keeps it.
const GRACE: Duration = Duration::from_secs(2);

/// All stores over one PostgreSQL.
pub struct Postgres {
    pool: Arc<Pool>,
    patience: Duration,
}

/// Why PostgreSQL's stores cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] PostgresConfigError),
    /// The server is away, or the schema is not for this program.
    #[error(transparent)]
    Away(#[from] Fault),
}

/// What is asked of a connection.
enum Work<'a> {
    Read(&'a Statement),
    /// All or nothing; where the first changes no row, the others are not carried out.
    Write(&'a [Statement]),
}

/// What came of it.
enum Done {
    Rows(Vec<PgRow>),
    Changed(u64),
}

impl Postgres {
    /// Opens the stores, and one connection to see that it works. From then on a server that goes away, is restarted or replaced
    /// is found again without being opened anew.
    ///
    /// # Errors
    /// Where the settings are wrong, the server is away, or its schema is not for this program: see [`crate::migrate`].
    pub async fn connect(config: &PostgresConfig) -> Result<Arc<Self>, OpenError> {
        let pool = Pool::new(config)?;
        pool.take().await?.give_back();
        Ok(Arc::new(Self {
            pool,
            patience: config.statement_timeout + GRACE,
        }))
    }

    /// Reads all rows.
    async fn read_all(&self, statement: Statement) -> Result<Vec<PgRow>, StoreError> {
        match self.carry_out(Work::Read(&statement)).await? {
            Done::Rows(rows) => Ok(rows),
            Done::Changed(_) => unreachable!("what is read is rows"),
        }
    }

    /// Reads at most one row.
    async fn read_one(&self, statement: Statement) -> Result<Option<PgRow>, StoreError> {
        Ok(self.read_all(statement).await?.into_iter().next())
    }

    /// Carries out one statement; returns how many rows it changed.
    async fn write(&self, statement: Statement) -> Result<u64, StoreError> {
        self.write_all(&[statement]).await
    }

    /// Carries out all statements, or none; where the first changes no row, the others are not carried out. Returns how
    /// many rows the first changed.
    async fn write_all(&self, statements: &[Statement]) -> Result<u64, StoreError> {
        match self.carry_out(Work::Write(statements)).await? {
            Done::Changed(rows) => Ok(rows),
            Done::Rows(_) => unreachable!("what is written is counted"),
        }
    }

    /// Carries out one statement that changes a row and tells of it; carrying it out twice must be the same as once.
    async fn write_and_read(&self, statement: Statement) -> Result<Option<PgRow>, StoreError> {
        self.read_one(statement).await
    }

    /// Why a compare-and-set changed nothing: `select` finds the object whatever its version is.
    async fn unchanged(&self, select: Statement) -> StoreError {
        match self.read_one(select).await {
            Ok(Some(_)) => StoreError::Conflict,
            Ok(None) => StoreError::Missing,
            Err(error) => error,
        }
    }

    async fn carry_out(&self, work: Work<'_>) -> Result<Done, StoreError> {
        for tried in 1.. {
            let mut held = self.pool.take().await?;
            // Whoever is dropped while it waits here takes the connection along.
            let error = match timeout(self.patience, attempt(&mut held.connection, &work)).await {
                Ok(Ok(done)) => {
                    held.give_back();
                    return Ok(done);
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    self.pool.forget();
                    return Err(Fault::Silent(self.patience).into());
                }
            };
            match fault::judge(error) {
                Verdict::Answer(answer) => {
                    held.give_back();
                    return Err(answer);
                }
                Verdict::Failed(fault) => {
                    held.give_back();
                    return Err(fault.into());
                }
                Verdict::Again(fault) => {
                    held.give_back();
                    if tried == TRIES_MAX {
                        return Err(fault.into());
                    }
                }
                Verdict::Broken(fault) => {
                    drop(held);
                    self.pool.forget();
                    if tried == TRIES_MAX || !matches!(work, Work::Read(_)) {
                        return Err(fault.into());
                    }
                }
            }
            let pause = rand::rng().random_range(0..=PAUSE_MAX_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        unreachable!("the last try returns")
    }
}

async fn attempt(connection: &mut PgConnection, work: &Work<'_>) -> Result<Done, sqlx::Error> {
    match work {
        Work::Read(statement) => Ok(Done::Rows(statement.query().fetch_all(connection).await?)),
        // One statement is its own transaction.
        Work::Write([statement]) => execute(connection, statement).await.map(Done::Changed),
        Work::Write(statements) => {
            let mut transaction = connection.begin().await?;
            let outcome = all(&mut transaction, statements).await;
            // Where even this fails the connection is of no use, and the transaction undone with it.
            match &outcome {
                Ok(_) => transaction.commit().await?,
                Err(_) => transaction.rollback().await?,
            }
            outcome.map(Done::Changed)
        }
    }
}

async fn all(connection: &mut PgConnection, statements: &[Statement]) -> Result<u64, sqlx::Error> {
    let mut first = None;
    for statement in statements {
        let rows = execute(connection, statement).await?;
        if *first.get_or_insert(rows) == 0 {
            break;
        }
    }
    Ok(first.unwrap_or_default())
}

async fn execute(connection: &mut PgConnection, statement: &Statement) -> Result<u64, sqlx::Error> {
    Ok(statement.query().execute(connection).await?.rows_affected())
}
