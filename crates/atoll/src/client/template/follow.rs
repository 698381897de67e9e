//! The log of a build, line by line, until it is over.
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use model::Kind;
use sdk::{CallError, Client, StatusQuery};
use wire::rest::{BuildEntry, BuildInfo, BuildStatus, LogLevel};

use crate::client::words::plain;
use crate::out;

/// How often a build is asked about: a person sees a line as it comes.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// How long a server may be away: a restart of it takes seconds.
const AWAY_MAX: Duration = Duration::from_secs(300);

/// A build that is watched.
pub(super) struct Watch<'a> {
    api: &'a Client,
    template: &'a str,
    build: &'a str,
    /// Lines that were read.
    offset: u64,
    away: Duration,
}

/// What came of one question.
pub(super) struct News {
    pub(super) info: BuildInfo,
    /// Nothing comes any more.
    pub(super) is_last: bool,
}

impl<'a> Watch<'a> {
    pub(super) const fn new(api: &'a Client, template: &'a str, build: &'a str) -> Self {
        Self {
            api,
            template,
            build,
            offset: 0,
            away: Duration::ZERO,
        }
    }

    /// The next lines. It waits before it asks where there were none, and goes on through a restart of the server.
    pub(super) async fn next(&mut self, waits: bool) -> Result<News, CallError> {
        if waits {
            tokio::time::sleep(ASK_EVERY).await;
        }
        loop {
            let query = StatusQuery {
                offset: self.offset,
                ..StatusQuery::default()
            };
            match self.api.build_status(self.template, self.build, query).await {
                Ok(info) => {
                    self.away = Duration::ZERO;
                    self.offset += info.log_entries.len() as u64;
                    let is_over = matches!(info.status, BuildStatus::Ready | BuildStatus::Error);
                    let is_last = is_over && info.log_entries.is_empty();
                    return Ok(News { info, is_last });
                }
                Err(error)
                    if matches!(error.kind(), Kind::Unavailable | Kind::Timeout | Kind::Exhausted)
                        && self.away < AWAY_MAX =>
                {
                    if self.away.is_zero() {
                        out::say(format_args!("{error}; trying again"));
                    }
                    let pause = Duration::from_secs(1);
                    self.away += pause;
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A line as it is shown. What says no part of the build by itself is told which part says it.
pub(super) fn shown(line: &BuildEntry, part: &str) -> String {
    let level = match line.level {
        LogLevel::Debug => "debug: ",
        LogLevel::Info => "",
        LogLevel::Warn => "warning: ",
        LogLevel::Error => "error: ",
    };
    let message = plain(&line.message);
    let tells = message.trim_start_matches("CACHED ").starts_with('[');
    let part = if tells {
        String::new()
    } else {
        format!("[{part}] ")
    };
    let lines: Vec<String> = message
        .trim_end_matches('\n')
        .split('\n')
        .map(|line| format!("{part}{level}{line}"))
        .collect();
    lines.join("\n")
}

/// `template logs`: lines on standard output, and how it ended as the exit code where that is waited for.
pub(super) async fn print(
    api: &Client,
    template: &str,
    build: &str,
    follows: bool,
    json: bool,
) -> Result<ExitCode> {
    let mut watch = Watch::new(api, template, build);
    let (mut waits, mut all) = (false, Vec::new());
    loop {
        let News { info, is_last } = watch.next(waits).await?;
        waits = info.log_entries.is_empty();
        for line in info.log_entries {
            match (json, follows) {
                (true, true) => out::json(&line)?,
                (true, false) => all.push(line),
                (false, _) => {
                    let part = line.step.as_deref().unwrap_or("build");
                    out::line(format_args!("{} {}", line.timestamp, shown(&line, part)))?;
                }
            }
        }
        if is_last || (waits && !follows) {
            if json && !follows {
                out::json(&all)?;
            }
            if let Some(reason) = info.reason.filter(|_| follows) {
                out::say(format_args!("the build failed: {}", plain(&reason.message)));
                return Ok(ExitCode::FAILURE);
            }
            return Ok(ExitCode::SUCCESS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_who_says_them_and_control_no_terminal() {
        let line = |level, message: &str| BuildEntry {
            timestamp: String::new(),
            level,
            message: message.to_owned(),
            step: None,
        };
        assert_eq!(
            shown(&line(LogLevel::Info, "a\u{1b}[2J\nb\n"), "1/2 RUN x"),
            "[1/2 RUN x] a\n[1/2 RUN x] b"
        );
        assert_eq!(shown(&line(LogLevel::Warn, "a"), "base"), "[base] warning: a");
        let own = line(LogLevel::Info, "CACHED [builder 1/2] RUN x");
        assert_eq!(shown(&own, "1/2 RUN x"), "CACHED [builder 1/2] RUN x");
    }
}
