//! Connections to PostgreSQL: as many as are needed, and no more than are allowed.
//!
//! ```text
//! take ── permit (within `acquire_timeout`) ── an idle one, asked whether it lives where it rested for long
//!                                          └─ or a new one, a few at a time; its schema is looked at; unless one becomes
//!                                             idle before
//! Held ── give_back: it is idle again      └─ dropped: it is closed
//! ```
//!
//! A connection whose statement did not come to its end is never used again: whoever gives up in the midst of one drops it, and
//! nothing is left to be cleaned up on it.
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::config::{PostgresConfig, PostgresConfigError};
use super::fault::{self, Fault};
use super::schema;

/// Whoever rested for less is taken to live: to ask costs as much as a read.
const FRESH: Duration = Duration::from_secs(1);
/// How long one that rested may take to say that it lives.
const PING_WITHIN: Duration = Duration::from_millis(500);
/// Connections that are opened at the same time. To open one costs both sides more than some hundred statements do (a process
/// there, the proof of a password on both sides): whoever comes with many others is served sooner by those that there are.
const OPENING_MAX: usize = 2;
/// Between two tries to reach a server that is starting; doubled each time.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest of these pauses.
const PAUSE_MAX: Duration = Duration::from_millis(500);

pub(super) struct Pool {
    options: PgConnectOptions,
    permits: Semaphore,
    /// The one that rested for the shortest time is last, and taken first.
    idle: Mutex<Vec<Idle>>,
    /// Told of each that becomes idle.
    returned: Notify,
    opening: Semaphore,
    acquire_timeout: Duration,
    connect_timeout: Duration,
    idle_timeout: Duration,
    lifetime_max: Duration,
}

struct Idle {
    connection: PgConnection,
    born: Instant,
    since: Instant,
}

/// A connection in use. Dropping it closes it.
pub(super) struct Held<'a> {
    pub(super) connection: PgConnection,
    born: Instant,
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    /// Opens nothing yet.
    pub(super) fn new(config: &PostgresConfig) -> Result<Arc<Self>, PostgresConfigError> {
        let statement_ms = config.statement_timeout.as_millis();
        let options = config.options()?.options([
            ("statement_timeout", statement_ms.to_string()),
            // Between the statements of a transaction nothing but a round trip takes place.
            ("idle_in_transaction_session_timeout", statement_ms.to_string()),
            ("default_transaction_isolation", "read committed".to_owned()),
            ("client_min_messages", "warning".to_owned()),
        ]);
        let pool = Arc::new(Self {
            options,
            permits: Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)),
            idle: Mutex::default(),
            returned: Notify::new(),
            opening: Semaphore::new(OPENING_MAX),
            acquire_timeout: config.acquire_timeout,
            connect_timeout: config.connect_timeout,
            idle_timeout: config.idle_timeout,
            lifetime_max: config.lifetime_max,
        });
        tokio::spawn(sweep(Arc::downgrade(&pool), config.idle_timeout / 2));
        Ok(pool)
    }

    /// A connection that lives, as far as can be told.
    pub(super) async fn take(&self) -> Result<Held<'_>, Fault> {
        let deadline = Instant::now() + self.acquire_timeout;
        let permit = timeout_at(deadline, self.permits.acquire())
            .await
            .map_err(|_| Fault::Busy(self.acquire_timeout))?
            .expect("the permits are never closed");
        let held = |connection, born| Held {
            connection,
            born,
            pool: self,
            _permit: permit,
        };
        let _opening = loop {
            while let Some(mut idle) = self.pop() {
                if idle.since.elapsed() <= FRESH
                    || matches!(timeout(PING_WITHIN, idle.connection.ping()).await, Ok(Ok(())))
                {
                    return Ok(held(idle.connection, idle.born));
                }
                // What ended this one has ended those that rested for longer.
                self.forget();
            }
            let turn = async {
                tokio::select! {
                    biased;
                    () = self.returned.notified() => None,
                    opening = self.opening.acquire() => Some(opening),
                }
            };
            match timeout_at(deadline, turn).await {
                // One may have come to rest while this one waited for its turn.
                Ok(Some(opening)) if self.resting().is_empty() => {
                    break opening.expect("the turns are never closed");
                }
                Ok(_) => {}
                Err(_) => return Err(Fault::Busy(self.acquire_timeout)),
            }
        };
        let mut connection = open(&self.options, self.connect_timeout, deadline).await?;
        timeout_at(deadline, schema::check(&mut connection))
            .await
            .map_err(|_| Fault::Silent(self.acquire_timeout))??;
        Ok(held(connection, Instant::now()))
    }

    /// Closes all that rest: the server was restarted, or is another.
    pub(super) fn forget(&self) {
        let forgotten = std::mem::take(&mut *self.resting());
        drop(forgotten);
    }

    fn pop(&self) -> Option<Idle> {
        let mut resting = self.resting();
        loop {
            let idle = resting.pop()?;
            if !self.is_over(&idle) {
                return Some(idle);
            }
        }
    }

    fn is_over(&self, idle: &Idle) -> bool {
        idle.since.elapsed() > self.idle_timeout || idle.born.elapsed() > self.lifetime_max
    }

    fn resting(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().expect("nothing panics while it holds the list")
    }
}

impl Held<'_> {
    /// Gives it back to be used again: what was asked of it was answered to the end.
    pub(super) fn give_back(self) {
        if self.born.elapsed() <= self.pool.lifetime_max {
            self.pool.resting().push(Idle {
                connection: self.connection,
                born: self.born,
                since: Instant::now(),
            });
            self.pool.returned.notify_one();
        }
    }
}

/// Opens a connection; tries again until `deadline` while the server is not there, is starting, or has no connection left.
pub(super) async fn open(
    options: &PgConnectOptions,
    within: Duration,
    deadline: Instant,
) -> Result<PgConnection, Fault> {
    let mut pause = PAUSE;
    loop {
        let end = deadline.min(Instant::now() + within);
        let fault = match timeout_at(end, PgConnection::connect_with(options)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) if !is_passing(&error) => return Err(Fault::Unreachable(error.into())),
            Ok(Err(error)) if fault::code(&error).is_some_and(|code| code.starts_with("53")) => {
                Fault::Full(error.into())
            }
            Ok(Err(error)) => Fault::Unreachable(error.into()),
            Err(elapsed) => Fault::Unreachable(elapsed.into()),
        };
        if Instant::now() + pause >= deadline {
            return Err(fault);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Whether the next try may succeed without anybody's doing: nobody listens, cannot_connect_now, an administrator's shutdown, too
/// many connections.
fn is_passing(error: &sqlx::Error) -> bool {
    match fault::code(error) {
        Some(code) => code.starts_with("57P") || code.starts_with("53"),
        None => matches!(error, sqlx::Error::Io(_)),
    }
}

/// Closes what nobody uses, as long as there is a pool.
async fn sweep(pool: Weak<Pool>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(pool) = pool.upgrade() else { return };
        let over: Vec<Idle> = {
            let mut resting = pool.resting();
            let (over, kept) = std::mem::take(&mut *resting)
                .into_iter()
                .partition(|idle| pool.is_over(idle));
            *resting = kept;
            over
        };
        drop(pool);
        for idle in over {
            let _ = timeout(PING_WITHIN, idle.connection.close()).await;
        }
    }
}
