//! One line to Redis for all questions.
//!
//! ```text
//!   Up(line) ── an answer is late, or the line breaks ──▶ Down(why) ── opened again ──▶ Up(line)
//!                                                          every question fails at once
//! ```
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult,
    ScriptInvocation, Value,
};
use tokio::sync::watch;
use tokio::time::Instant;

use super::task::Task;
use super::{ANSWER_WITHIN, CONNECT_WITHIN, ConnectError, is_refusal};

/// Waits between two attempts to open a line: the first, and the longest.
const AGAIN_MIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_millis(500);
/// How often a line is tried, so that one that broke while nobody asked is known before somebody does.
const PROBE: Duration = Duration::from_secs(1);
/// How long a line that broke is waited for: so long a restart of Redis takes. One that answers late is not restarted.
const RESTART: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Away {
    /// There is no line at present.
    #[error("there is no line to Redis: {0}")]
    Down(Arc<str>),
    /// The answer did not come in time. What was asked may happen all the same.
    #[error("Redis did not answer within {} ms", ANSWER_WITHIN.as_millis())]
    Late,
    /// The line broke, or Redis refused. What was asked may have happened.
    #[error("Redis did not do it: {0}")]
    Failed(String),
    /// It was answered with something that none of us wrote.
    #[error("Redis holds something that is not ours: {0}")]
    Foreign(&'static str),
}

#[derive(Clone)]
enum State {
    /// Why, and until when it may be up again in a moment.
    Down(Arc<str>, Instant),
    /// The how-manieth line it is.
    Up(u64, MultiplexedConnection),
}

/// A line to Redis that is opened again where it breaks.
#[derive(Clone)]
pub(super) struct Link {
    inner: Arc<Inner>,
    _keeper: Arc<Task>,
}

struct Inner {
    client: Client,
    prefix: String,
    state: watch::Sender<State>,
}

impl Link {
    pub(super) fn open(client: Client, prefix: String) -> Self {
        let inner = Arc::new(Inner {
            client,
            prefix,
            state: watch::Sender::new(State::Down("it was not opened yet".into(), Instant::now())),
        });
        Self {
            _keeper: Arc::new(Task::spawn(Arc::clone(&inner).keep())),
            inner,
        }
    }

    /// Looks whether what is configured can ever work. That Redis is away is no error.
    pub(super) async fn first(&self) -> Result<(), ConnectError> {
        match self.inner.connect().await {
            Err(error) if is_refusal(&error) => return Err(ConnectError::Refused(error.into())),
            Err(error) => {
                tracing::error!(%error, "Redis does not answer; it is used as soon as it does");
                return Ok(());
            }
            Ok(mut line) => {
                let ask = redis::cmd("INFO").arg("server").to_owned();
                let asked: RedisResult<String> = within(ask.query_async(&mut line)).await;
                match asked {
                    Err(error) if is_refusal(&error) => return Err(ConnectError::Refused(error.into())),
                    Err(error) => tracing::warn!(%error, "Redis does not tell its version"),
                    Ok(info) => check_version(&info)?,
                }
                let ask = redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").to_owned();
                let policy: RedisResult<Vec<String>> = within(ask.query_async(&mut line)).await;
                // Who runs Redis for others seldom lets them ask.
                if let Ok([_, policy]) = policy.as_deref()
                    && policy != "noeviction"
                {
                    tracing::warn!(
                        policy,
                        "Redis evicts keys when its memory is full, and with them what is counted: set maxmemory-policy noeviction"
                    );
                }
            }
        }
        // The keeper opens its own within this time, or Redis is away by now.
        let mut state = self.inner.state.subscribe();
        let up = state.wait_for(|state| matches!(state, State::Up(..)));
        let _ = tokio::time::timeout(CONNECT_WITHIN, up).await;
        Ok(())
    }

    /// A key of this cluster.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.inner.prefix)
    }

    pub(super) async fn query<T: FromRedisValue>(&self, ask: &Cmd) -> Result<T, Away> {
        let (number, mut line) = self.line()?;
        self.judge(number, within(ask.query_async(&mut line)).await)
    }

    /// Asks what may be asked twice, and asks once more on the next line where this one breaks, or broke a moment ago: Redis may
    /// have died and be back without anybody having noticed.
    pub(super) async fn twice<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Away>
    where
        F: Future<Output = Result<T, Away>>,
    {
        let answer = ask().await;
        if !matches!(answer, Err(Away::Failed(_) | Away::Down(_))) {
            return answer;
        }
        let back_by = match &*self.inner.state.borrow() {
            State::Down(_, back_by) => *back_by,
            State::Up(..) => Instant::now(),
        };
        if tokio::time::timeout_at(back_by, self.up()).await.is_err() {
            return answer;
        }
        ask().await
    }

    pub(super) async fn all<T: FromRedisValue>(&self, ask: &Pipeline) -> Result<T, Away> {
        let (number, mut line) = self.line()?;
        self.judge(number, within(ask.query_async(&mut line)).await)
    }

    pub(super) async fn call<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Away> {
        let (number, mut line) = self.line()?;
        self.judge(number, within(script.invoke_async(&mut line)).await)
    }

    /// Whether there is a line.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.inner.state.borrow(), State::Up(..))
    }

    /// Waits until there is a line.
    pub(super) async fn up(&self) {
        let mut state = self.inner.state.subscribe();
        if state
            .wait_for(|state| matches!(state, State::Up(..)))
            .await
            .is_err()
        {
            // The sender is in our hand.
            std::future::pending::<()>().await;
        }
    }

    /// A line of its own, for whoever asks Redis to wait.
    pub(super) async fn own(&self) -> Result<MultiplexedConnection, Away> {
        // While the common line is down nobody knocks beside the keeper.
        self.line()?;
        self.inner.connect().await.map_err(|error| failed(&error))
    }

    fn line(&self) -> Result<(u64, MultiplexedConnection), Away> {
        match &*self.inner.state.borrow() {
            State::Up(number, line) => Ok((*number, line.clone())),
            State::Down(why, _) => Err(Away::Down(Arc::clone(why))),
        }
    }

    /// Gives up a line that broke, or on which an answer is late.
    fn judge<T>(&self, number: u64, answer: RedisResult<T>) -> Result<T, Away> {
        answer.map_err(|error| {
            // One that became a replica leads nowhere, though it answers.
            let is_replica = error.code() == Some("READONLY");
            if error.is_io_error() || error.is_unrecoverable_error() || is_replica {
                self.inner.give_up(number, &error);
            }
            failed(&error)
        })
    }
}

/// What is told of an error.
pub(super) fn failed(error: &RedisError) -> Away {
    if error.is_timeout() {
        Away::Late
    } else {
        Away::Failed(error.to_string())
    }
}

/// An answer within the time for one.
pub(super) async fn within<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    within_more(Duration::ZERO, answer).await
}

/// An answer for which Redis was asked to wait.
pub(super) async fn within_more<T>(
    more: Duration,
    answer: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    tokio::time::timeout(ANSWER_WITHIN + more, answer)
        .await
        .unwrap_or_else(late)
}

fn check_version(info: &str) -> Result<(), ConnectError> {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let Some(version) = version.map(str::trim) else {
        return Ok(());
    };
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    let number = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if number < (6, 2) {
        return Err(ConnectError::Old(version.to_owned()));
    }
    Ok(())
}

impl Inner {
    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        // Time-outs are ours: a question that Redis is asked to wait with has another one.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(None);
        let opened = self.client.get_multiplexed_async_connection_with_config(&config);
        let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        tokio::time::timeout(CONNECT_WITHIN, opened)
            .await
            .unwrap_or_else(late)
    }

    fn give_up(&self, number: u64, why: &RedisError) {
        self.state.send_if_modified(|state| {
            // Another question may have found out before, and the line be a new one by now.
            let is_it = matches!(state, State::Up(up, _) if *up == number);
            if is_it {
                let wait = if why.is_timeout() { Duration::ZERO } else { RESTART };
                *state = State::Down(why.to_string().into(), Instant::now() + wait);
            }
            is_it
        });
    }

    /// Waits until the line is given up, for whatever reason; says why.
    async fn lost(&self) -> Arc<str> {
        let mut state = self.state.subscribe();
        loop {
            let (number, mut line) = match &*state.borrow_and_update() {
                State::Down(why, _) => return Arc::clone(why),
                State::Up(number, line) => (*number, line.clone()),
            };
            // The sender is in our hand: what changes is the line, or nothing does.
            if tokio::time::timeout(PROBE, state.changed()).await.is_err() {
                let answer: RedisResult<String> = within(redis::cmd("PING").query_async(&mut line)).await;
                if let Err(error) = answer {
                    self.give_up(number, &error);
                }
            }
        }
    }

    /// Opens the line whenever there is none.
    async fn keep(self: Arc<Self>) {
        let mut number = 0;
        loop {
            let why = self.lost().await;
            let began = Instant::now();
            metrics::gauge!("atoll_redis_up").set(0.0);
            if number > 0 {
                metrics::counter!("atoll_redis_lines_lost_total").increment(1);
                tracing::error!(%why, "the line to Redis is lost");
            }
            let mut pause = AGAIN_MIN;
            let line = loop {
                match self.try_open().await {
                    Ok(line) => break line,
                    Err(error) => {
                        self.state.send_if_modified(|state| {
                            if let State::Down(why, _) = state {
                                *why = error.to_string().into();
                            }
                            false
                        });
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            };
            number += 1;
            if number > 1 {
                tracing::info!(away = ?began.elapsed(), "Redis is there again");
            }
            metrics::gauge!("atoll_redis_up").set(1.0);
            self.state.send_replace(State::Up(number, line));
        }
    }

    /// A line on which Redis answers: one that loads its data, or lost its primary, is not there yet.
    async fn try_open(&self) -> RedisResult<MultiplexedConnection> {
        let mut line = self.connect().await?;
        let _: String = within(redis::cmd("PING").query_async(&mut line)).await?;
        // Who is not allowed to ask finds out at the first write.
        let role: RedisResult<Vec<Value>> = within(redis::cmd("ROLE").query_async(&mut line)).await;
        if let Ok([Value::BulkString(role), ..]) = role.as_deref()
            && role != b"master"
        {
            return Err((ErrorKind::Client, "it is a replica, and takes nothing").into());
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_without_what_is_needed_is_refused() {
        for (version, fits) in [
            ("7.0.15", true),
            ("6.2.0", true),
            ("6.0.16", false),
            ("5.0.7", false),
            ("10.1.2", true),
        ] {
            let info = format!("# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n");
            assert_eq!(check_version(&info).is_ok(), fits, "{version}");
        }
        assert!(check_version("# Server").is_ok());
    }
}
