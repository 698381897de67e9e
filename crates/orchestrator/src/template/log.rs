//! The log of a build, as it is written: bounded, in batches, in the order in which it was told.
use std::sync::Arc;
use std::time::Duration;

use model::{BuildId, BuildStep};
use ports::builds::{BuildLine, LinesQuery};
use ports::logs::Level;
use ports::{BuildStore, Clock};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// The most lines of a node that are kept of one build: some megabytes. What is beyond is left out, and the log says so.
pub(crate) const LINES_MAX: u64 = 20_000;
/// The longest line, in bytes: longer ones are cut.
const LINE_BYTES_MAX: usize = 8 << 10;
/// Lines that are written at once.
const BATCH_MAX: usize = 256;
/// Lines wait for others for this long: clients look every 200 ms.
const BATCH_PATIENCE: Duration = Duration::from_millis(100);
/// Lines that a node may be ahead; when it is, the build waits.
pub(crate) const CAPACITY: usize = 1024;
/// How often writing is tried. Lines that cannot be written are left out: a build does not fail for its log.
const TRIES_MAX: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// What the lines that count attempts begin with. Only lines of no step count, and no command can write one.
const ATTEMPT: &str = "attempt ";
const PAGE: u32 = 1000;

/// The log of one build.
pub(crate) struct Log {
    store: Arc<dyn BuildStore>,
    clock: Arc<dyn Clock>,
    build: BuildId,
    /// Lines that are in it.
    written: u64,
    /// Attempts that it tells of.
    attempts: u32,
}

fn is_attempt(line: &BuildLine) -> bool {
    line.step.is_none() && line.message.starts_with(ATTEMPT)
}

fn cut(mut message: String) -> String {
    if message.len() > LINE_BYTES_MAX {
        let end = (0..=LINE_BYTES_MAX)
            .rev()
            .find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or_default());
        message.push('…');
    }
    message
}

impl Log {
    /// Reads how far a log is.
    pub(crate) async fn open(
        store: Arc<dyn BuildStore>,
        clock: Arc<dyn Clock>,
        build: BuildId,
    ) -> Result<Self, ports::StoreError> {
        let mut log = Self {
            store,
            clock,
            build,
            written: 0,
            attempts: 0,
        };
        loop {
            let query = LinesQuery {
                offset: log.written,
                limit: PAGE,
                level: Level::Debug,
            };
            let lines = log.store.lines(build, query).await?;
            let attempts = lines.iter().filter(|line| is_attempt(line)).count();
            log.attempts += u32::try_from(attempts).unwrap_or(u32::MAX);
            log.written += lines.len() as u64;
            if lines.len() < PAGE as usize {
                return Ok(log);
            }
        }
    }

    /// Attempts that were begun.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Notes that another attempt begins. Where that cannot be written, it does not: they would not be counted.
    pub(crate) async fn begin_attempt(&mut self, most: u32, why: &str) -> Result<(), ports::StoreError> {
        let number = self.attempts + 1;
        let line = self.line(Level::Info, None, format!("{ATTEMPT}{number} of {most}{why}"));
        self.store.append_lines(self.build, &[line]).await?;
        self.attempts = number;
        self.written += 1;
        Ok(())
    }

    /// Adds a line of the orchestrator's own, whatever the bound.
    pub(crate) async fn say(&mut self, level: Level, step: Option<BuildStep>, message: impl Into<String>) {
        let line = self.line(level, step, message.into());
        self.append(vec![line]).await;
    }

    fn line(&self, level: Level, step: Option<BuildStep>, message: String) -> BuildLine {
        BuildLine {
            at: self.clock.now(),
            level,
            step,
            message: cut(message),
        }
    }

    /// Writes what a node tells until it tells no more, or `done` and everything that was told before is written.
    pub(crate) async fn follow(&mut self, mut lines: mpsc::Receiver<BuildLine>, done: CancellationToken) {
        let mut batch = Vec::new();
        let mut is_closed = false;
        loop {
            let count = tokio::select! {
                biased;
                count = lines.recv_many(&mut batch, BATCH_MAX) => count,
                () = done.cancelled(), if !is_closed => {
                    lines.close();
                    is_closed = true;
                    continue;
                }
            };
            if count == 0 {
                return;
            }
            // What follows closely is written with it.
            let until = Instant::now() + BATCH_PATIENCE;
            while batch.len() < BATCH_MAX && !done.is_cancelled() {
                let room = BATCH_MAX - batch.len();
                let more = timeout_at(until, lines.recv_many(&mut batch, room));
                if !matches!(more.await, Ok(1..)) {
                    break;
                }
            }
            self.take(std::mem::take(&mut batch)).await;
        }
    }

    /// Writes lines of a node, within the bound.
    async fn take(&mut self, mut lines: Vec<BuildLine>) {
        let room = LINES_MAX.saturating_sub(self.written);
        let fits = usize::try_from(room).unwrap_or(usize::MAX);
        let is_over = lines.len() > fits;
        lines.truncate(fits);
        for line in &mut lines {
            line.message = cut(std::mem::take(&mut line.message));
            // Only the orchestrator's own lines are of no step.
            line.step = line.step.or(Some(BuildStep::Base));
        }
        // The line that says so is the one beyond the bound.
        if is_over && self.written <= LINES_MAX {
            let end =
                format!("the log ends here: a build's log has at most {LINES_MAX} lines; the build goes on");
            lines.push(self.line(Level::Warn, None, end));
        }
        self.append(lines).await;
    }

    async fn append(&mut self, lines: Vec<BuildLine>) {
        if lines.is_empty() {
            return;
        }
        for attempt in 1..=TRIES_MAX {
            match self.store.append_lines(self.build, &lines).await {
                Ok(()) => {
                    self.written += lines.len() as u64;
                    return;
                }
                // Its template was deleted.
                Err(ports::StoreError::Missing) => return,
                Err(error) if attempt == TRIES_MAX => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(build = %self.build, lines = lines.len(), error, "lines of a build were not stored");
                }
                Err(_) => tokio::time::sleep(TRY_AGAIN).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use model::{Build, BuildStatus, TemplateId};
    use ports::store::{Memory, contract};

    use super::*;

    struct Now;
    impl Clock for Now {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }
    }

    async fn log() -> (Arc<Memory>, Log) {
        let store = Arc::new(Memory::default());
        let at = SystemTime::UNIX_EPOCH;
        let build = Build {
            status: BuildStatus::Building,
            created_at: at,
            updated_at: at,
            ..contract::build(TemplateId::random())
        };
        store.insert_build(&build).await.unwrap();
        let log = Log::open(store.clone(), Arc::new(Now), build.id).await.unwrap();
        (store, log)
    }

    fn line(message: impl Into<String>) -> BuildLine {
        BuildLine {
            at: SystemTime::UNIX_EPOCH,
            level: Level::Info,
            step: Some(BuildStep::Step(1)),
            message: message.into(),
        }
    }

    async fn all(store: &Memory, log: &Log, limit: u32) -> Vec<BuildLine> {
        let query = LinesQuery {
            offset: 0,
            limit,
            level: Level::Debug,
        };
        store.lines(log.build, query).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn everything_that_was_told_before_the_end_is_written_in_order() {
        let (store, mut log) = log().await;
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let done = CancellationToken::new();
        for n in 0..600 {
            sender.send(line(n.to_string())).await.unwrap();
        }
        // Somebody on the node has forgotten the sender.
        done.cancel();
        log.follow(receiver, done).await;
        let messages: Vec<_> = all(&store, &log, 1000)
            .await
            .into_iter()
            .map(|line| line.message)
            .collect();
        assert_eq!(messages, (0..600).map(|n| n.to_string()).collect::<Vec<_>>());
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_is_bounded_and_says_so_once_and_the_orchestrator_is_heard_still() {
        let (store, mut log) = log().await;
        for _ in 0..LINES_MAX / 100 + 2 {
            log.take(vec![line("x"); 100]).await;
        }
        log.take(vec![line("y".repeat(LINE_BYTES_MAX + 10))]).await;
        log.say(Level::Error, None, "it failed").await;
        let lines = all(&store, &log, 30_000).await;
        assert_eq!(lines.len() as u64, LINES_MAX + 2);
        let told: Vec<_> = lines[20_000..].iter().map(|line| line.message.as_str()).collect();
        assert!(
            told[0].starts_with("the log ends here") && told[1] == "it failed",
            "{told:?}"
        );
        // Nor after another start.
        let mut again = Log::open(log.store.clone(), log.clock.clone(), log.build)
            .await
            .unwrap();
        again.take(vec![line("z"); 3]).await;
        assert_eq!(all(&store, &log, 30_000).await.len(), lines.len());
    }

    #[tokio::test]
    async fn a_long_line_is_cut_where_a_character_ends() {
        let (store, mut log) = log().await;
        log.take(vec![line("ä".repeat(LINE_BYTES_MAX))]).await;
        let cut = &all(&store, &log, 10).await[0].message;
        assert!(cut.len() <= LINE_BYTES_MAX + "…".len() && cut.ends_with("ä…"));
    }

    #[tokio::test]
    async fn attempts_are_counted_over_restarts_and_no_command_writes_one() {
        let (_store, mut log) = log().await;
        log.begin_attempt(3, "").await.unwrap();
        let forged = BuildLine {
            step: None,
            ..line("attempt 9 of 3")
        };
        log.take(vec![forged]).await;
        let mut again = Log::open(log.store.clone(), log.clock.clone(), log.build)
            .await
            .unwrap();
        assert_eq!(again.attempts(), 1);
        again.begin_attempt(3, ": why").await.unwrap();
        assert_eq!(again.attempts(), 2);
    }
}
