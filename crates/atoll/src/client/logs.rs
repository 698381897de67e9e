//! `atoll sandbox logs`: all that is kept, and each line that comes, once.
//!
//! A server answers at most a thousand lines, from a millisecond on. What follows is asked for from the last millisecond
//! that was read, which brings some lines again; and lines that a sandbox said a while ago may arrive late. So lines are
//! counted: of those that are read again, only the surplus is new.
use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use clap::ValueEnum;
use model::Kind;
use sdk::{CallError, Client, LogsQuery};
use wire::rest::{LogDirection, LogEntry, LogLevel};

use super::Endpoint;
use crate::out;

/// What `logs` is told.
#[derive(clap::Args)]
pub(crate) struct Logs {
    /// Whose.
    id: String,
    /// Goes on with what is said from now on.
    #[arg(long, short)]
    follow: bool,
    /// Lines that matter at least this much.
    #[arg(long)]
    level: Option<LevelFilter>,
}

/// How much a line matters.
#[derive(Clone, Copy, ValueEnum)]
enum LevelFilter {
    /// All lines.
    Debug,
    /// Ordinary events, and what follows.
    Info,
    /// Something is off, and what follows.
    Warn,
    /// Something failed.
    Error,
}

impl From<LevelFilter> for LogLevel {
    fn from(level: LevelFilter) -> Self {
        match level {
            LevelFilter::Debug => Self::Debug,
            LevelFilter::Info => Self::Info,
            LevelFilter::Warn => Self::Warn,
            LevelFilter::Error => Self::Error,
        }
    }
}

/// How often `--follow` asks.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// Lines that are asked for at a time: as many as a server gives.
const PAGE_LINES: usize = 1_000;
/// How late a line may be: nodes collect them every ten seconds.
const LATE_MS_MAX: u64 = 15_000;

/// Prints what is kept, and with `--follow` what comes.
pub(super) async fn run(endpoint: &Endpoint, logs: Logs, json: bool) -> Result<()> {
    let server = Server {
        api: endpoint.api()?,
        id: logs.id,
        level: logs.level.map(LogLevel::from),
    };
    let mut lines = since(&server, None).await?;
    if !logs.follow {
        return if json {
            out::json(&lines)
        } else {
            lines.iter().try_for_each(|line| show(line, json))
        };
    }
    let mut seen = Seen::default();
    let mut is_away = false;
    loop {
        for line in seen.news(lines) {
            show(&line, json)?;
        }
        lines = loop {
            tokio::time::sleep(FOLLOW_EVERY).await;
            match since(&server, seen.since_ms()).await {
                Ok(lines) => break lines,
                Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {
                    if !is_away {
                        out::say(format_args!("{error}; trying again"));
                    }
                    is_away = true;
                }
                Err(error) => return Err(error.into()),
            }
        };
        is_away = false;
    }
}

fn show(line: &LogEntry, json: bool) -> Result<()> {
    if json {
        return out::json(line);
    }
    let level = format!("{:?}", line.level).to_lowercase();
    out::line(format_args!("{} {level:<5} {}", line.timestamp, line.message))
}

/// Who keeps lines, oldest first.
trait Source {
    /// The first lines of `from_ms` or later.
    async fn forward(&self, from_ms: Option<u64>) -> Result<Vec<LogEntry>, CallError>;
    /// The last lines before `until_ms`.
    async fn before(&self, until_ms: u64) -> Result<Vec<LogEntry>, CallError>;
}

struct Server {
    api: Client,
    id: String,
    level: Option<LogLevel>,
}

impl Server {
    async fn ask(&self, cursor_ms: Option<u64>, direction: LogDirection) -> Result<Vec<LogEntry>, CallError> {
        let query = LogsQuery {
            cursor_ms,
            limit: Some(PAGE_LINES),
            direction: Some(direction),
            level: self.level,
        };
        self.api.logs(&self.id, query).await
    }
}

impl Source for Server {
    async fn forward(&self, from_ms: Option<u64>) -> Result<Vec<LogEntry>, CallError> {
        self.ask(from_ms, LogDirection::Forward).await
    }

    async fn before(&self, until_ms: u64) -> Result<Vec<LogEntry>, CallError> {
        let mut lines = self.ask(Some(until_ms), LogDirection::Backward).await?;
        lines.reverse();
        Ok(lines)
    }
}

/// All lines of `from_ms` or later, page by page.
async fn since(source: &impl Source, mut from_ms: Option<u64>) -> Result<Vec<LogEntry>, CallError> {
    let mut all: Vec<LogEntry> = Vec::new();
    loop {
        let page = source.forward(from_ms).await?;
        let is_full = page.len() >= PAGE_LINES;
        let last_ms = page.last().map(ms);
        add(&mut all, page);
        let Some(last_ms) = last_ms.filter(|_| is_full) else {
            return Ok(all);
        };
        if from_ms != Some(last_ms) {
            from_ms = Some(last_ms);
            continue;
        }
        // The page has no room for what follows this one millisecond: its end is read from the other side.
        let mut rest = source.before(last_ms + 1).await?;
        rest.retain(|line| ms(line) == last_ms);
        add(&mut all, rest);
        from_ms = Some(last_ms + 1);
    }
}

/// Adds those lines of a page that are not there yet; what a page repeats is in its first millisecond.
fn add(all: &mut Vec<LogEntry>, page: Vec<LogEntry>) {
    let Some(first_ms) = page.first().map(ms) else {
        return;
    };
    let known = all.iter().rev().take_while(|line| ms(line) == first_ms);
    let mut known = Counts::of(known);
    all.extend(page.into_iter().filter(|line| !known.take(line)));
}

/// What was shown, as far back as something may still come.
#[derive(Default)]
struct Seen {
    lines: Vec<LogEntry>,
}

impl Seen {
    /// From when on the server is to be asked.
    fn since_ms(&self) -> Option<u64> {
        let newest = self.lines.iter().map(ms).max()?;
        Some(newest.saturating_sub(LATE_MS_MAX))
    }

    /// Those of all lines since [`Seen::since_ms`] that were not shown yet.
    fn news(&mut self, lines: Vec<LogEntry>) -> Vec<LogEntry> {
        let mut shown = Counts::of(self.lines.iter());
        let news: Vec<_> = lines.iter().filter(|line| !shown.take(line)).cloned().collect();
        // What the server has dropped since does not come again; an answer without lines says nothing of the time.
        if !lines.is_empty() {
            self.lines = lines;
            let from_ms = self.since_ms().unwrap_or(0);
            self.lines.retain(|line| ms(line) >= from_ms);
        }
        news
    }
}

/// How often each line is there: a program may say the same thing twice in a moment.
struct Counts(HashMap<String, usize>);

impl Counts {
    fn of<'a>(lines: impl Iterator<Item = &'a LogEntry>) -> Self {
        let mut counts = HashMap::new();
        for line in lines {
            *counts.entry(key(line)).or_default() += 1;
        }
        Self(counts)
    }

    /// Takes one away, if there is one.
    fn take(&mut self, line: &LogEntry) -> bool {
        match self.0.get_mut(&key(line)) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }
}

fn key(line: &LogEntry) -> String {
    format!("{line:?}")
}

/// When it was said, in milliseconds since the epoch: what a server's cursor counts.
fn ms(line: &LogEntry) -> u64 {
    humantime::parse_rfc3339(&line.timestamp)
        .ok()
        .and_then(|at| u64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
