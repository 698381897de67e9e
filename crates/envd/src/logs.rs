//! A bounded memory of what happened, for the node to fetch.
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use wire::init::{LogEntries, LogEntry};

/// What is remembered, in bytes of text: some thousand lines, a fraction of what a sandbox may use.
const BYTES_MAX: usize = 256 * 1024;
/// Longer messages are cut: a line that fills the whole memory tells nothing about the others.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What happened, newest last.
#[derive(Default)]
pub(crate) struct Logs(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// As JSON, which takes a fraction of the memory.
    entries: VecDeque<Box<str>>,
    bytes: usize,
    /// The number of the newest.
    last: u64,
}

impl Logs {
    /// Remembers one thing, and forgets the oldest where there is no room.
    pub(crate) fn say(&self, level: &str, logger: &str, message: &str, fields: BTreeMap<String, String>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut ring = self.0.lock().expect("nothing panics while it holds the log");
        ring.last += 1;
        let message: String = message.chars().take(MESSAGE_BYTES_MAX).collect();
        let timestamp_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let entry = LogEntry {
            seq: ring.last,
            timestamp_ms,
            level: level.into(),
            logger: logger.into(),
            message,
            fields,
        };
        let entry = serde_json::to_string(&entry).unwrap_or_default().into_boxed_str();
        ring.bytes += weight(&entry);
        ring.entries.push_back(entry);
        while ring.bytes > BYTES_MAX {
            let Some(oldest) = ring.entries.pop_front() else {
                break;
            };
            ring.bytes -= weight(&oldest);
        }
    }

    /// Forgets what happened to another machine. Numbers go on.
    pub(crate) fn forget(&self) {
        let mut ring = self.0.lock().expect("nothing panics while it holds the log");
        ring.entries.clear();
        ring.bytes = 0;
    }

    /// What came after `after`.
    pub(crate) fn since(&self, after: u64) -> LogEntries {
        let ring = self.0.lock().expect("nothing panics while it holds the log");
        let wanted = usize::try_from(ring.last.saturating_sub(after)).unwrap_or(usize::MAX);
        let known = ring.entries.len().saturating_sub(wanted);
        let entries = ring
            .entries
            .iter()
            .skip(known)
            .filter_map(|entry| serde_json::from_str(entry).ok());
        LogEntries {
            next: ring.last,
            entries: entries.collect(),
        }
    }
}

fn weight(entry: &str) -> usize {
    /// What an entry costs beside its text.
    const OVERHEAD: usize = 32;
    OVERHEAD + entry.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_and_numbers_go_on() {
        let logs = Logs::default();
        for i in 0..10_000 {
            logs.say(
                "info",
                "test",
                &format!("{i} {}", "x".repeat(100)),
                BTreeMap::new(),
            );
        }
        let all = logs.since(0);
        assert_eq!(all.next, 10_000);
        assert!(all.entries.len() < 3_000 && all.entries.last().unwrap().seq == 10_000);
        assert_eq!(logs.since(9_999).entries.len(), 1);
        assert_eq!(logs.since(10_000).entries.len(), 0);
        logs.forget();
        assert_eq!((logs.since(0).entries.len(), logs.since(0).next), (0, 10_000));
    }
}
