//! A sandbox's log: what envd said, and what the node did.
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use ports::logs::{Level, LogLine, LogQuery};
use wire::init::{LogEntries, LogEntry};

/// Kept for each sandbox.
const LINES_MAX: usize = 2_000;
const BYTES_MAX: usize = 512 * 1024;
/// A guest's line is cut here.
const MESSAGE_CHARS_MAX: usize = 4096;
const FIELDS_MAX: usize = 16;

/// Lines, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    lines: VecDeque<LogLine>,
    bytes: usize,
    /// The last of envd's that we have.
    seen: u64,
}

impl Lines {
    /// Says something of the node's own.
    pub(crate) fn say(&mut self, now: SystemTime, level: Level, message: String) {
        self.push(LogLine {
            timestamp: now,
            level,
            logger: "atoll".to_owned(),
            message,
            fields: BTreeMap::new(),
        });
    }

    /// What envd is to be asked from.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// A new envd counts from the beginning.
    pub(crate) fn forget_seen(&mut self) {
        self.seen = 0;
    }

    /// Takes over what envd said.
    pub(crate) fn take(&mut self, heard: LogEntries) {
        let seen = self.seen;
        for entry in heard.entries.into_iter().filter(|entry| entry.seq > seen) {
            self.push(line(entry));
        }
        self.seen = self.seen.max(heard.next);
    }

    fn push(&mut self, line: LogLine) {
        self.bytes += weight(&line);
        self.lines.push_back(line);
        while self.lines.len() > LINES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= weight(&oldest);
        }
    }

    /// The lines that a query asks for, in the order that it asks for.
    pub(crate) fn find(&self, query: &LogQuery) -> Vec<LogLine> {
        let wanted = |line: &&LogLine| {
            let in_time = query.from.is_none_or(|from| {
                if query.forward {
                    line.timestamp >= from
                } else {
                    line.timestamp < from
                }
            });
            in_time
                && query.level.is_none_or(|level| line.level >= level)
                && query
                    .search
                    .as_ref()
                    .is_none_or(|text| line.message.contains(text.as_str()))
        };
        let mut found: Vec<&LogLine> = self.lines.iter().filter(wanted).collect();
        // envd's lines arrive later than ours of the same moment.
        found.sort_by_key(|line| line.timestamp);
        if !query.forward {
            found.reverse();
        }
        found.into_iter().take(query.limit).cloned().collect()
    }
}

fn weight(line: &LogLine) -> usize {
    let fields: usize = line
        .fields
        .iter()
        .map(|(key, value)| key.len() + value.len() + 48)
        .sum();
    96 + line.message.len() + fields
}

fn line(entry: LogEntry) -> LogLine {
    let level = match entry.level.as_str() {
        "debug" => Level::Debug,
        "warn" => Level::Warn,
        "error" => Level::Error,
        _ => Level::Info,
    };
    let short = |text: String| text.chars().take(MESSAGE_CHARS_MAX).collect::<String>();
    LogLine {
        timestamp: SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_millis(entry.timestamp_ms))
            .unwrap_or(SystemTime::UNIX_EPOCH),
        level,
        logger: short(entry.logger),
        message: short(entry.message),
        fields: entry
            .fields
            .into_iter()
            .take(FIELDS_MAX)
            .map(|(key, value)| (short(key), short(value)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn queries_choose_and_order() {
        let mut lines = Lines::default();
        for i in 0..10 {
            lines.say(
                at(i),
                if i % 2 == 0 { Level::Info } else { Level::Error },
                format!("line {i}"),
            );
        }
        let query = LogQuery {
            from: Some(at(3)),
            limit: 3,
            forward: true,
            level: Some(Level::Error),
            search: None,
        };
        let messages = |query: &LogQuery| {
            lines
                .find(query)
                .into_iter()
                .map(|line| line.message)
                .collect::<Vec<_>>()
        };
        assert_eq!(messages(&query), ["line 3", "line 5", "line 7"]);
        assert_eq!(
            messages(&LogQuery {
                forward: false,
                level: None,
                ..query.clone()
            }),
            ["line 2", "line 1", "line 0"]
        );
        assert_eq!(
            messages(&LogQuery {
                search: Some("9".into()),
                ..query
            }),
            ["line 9"]
        );
    }

    #[test]
    fn what_was_heard_before_is_not_heard_again() {
        let mut lines = Lines::default();
        let entry = |seq| LogEntry {
            seq,
            timestamp_ms: seq,
            level: "info".into(),
            logger: "envd".into(),
            message: seq.to_string(),
            fields: BTreeMap::new(),
        };
        lines.take(LogEntries {
            next: 2,
            entries: vec![entry(1), entry(2)],
        });
        lines.take(LogEntries {
            next: 3,
            entries: vec![entry(2), entry(3)],
        });
        let all = LogQuery {
            from: None,
            limit: 10,
            forward: true,
            level: None,
            search: None,
        };
        assert_eq!(lines.find(&all).len(), 3);
    }
}
