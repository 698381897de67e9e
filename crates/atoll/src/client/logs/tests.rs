use std::collections::BTreeMap;

use super::*;

/// Keeps lines, and answers as a server does.
struct Kept(Vec<LogEntry>);

impl Source for Kept {
    async fn forward(&self, from_ms: Option<u64>) -> Result<Vec<LogEntry>, CallError> {
        let from_ms = from_ms.unwrap_or(0);
        let lines = self.0.iter().filter(|line| ms(line) >= from_ms);
        Ok(lines.take(PAGE_LINES).cloned().collect())
    }

    async fn before(&self, until_ms: u64) -> Result<Vec<LogEntry>, CallError> {
        let mut lines: Vec<_> = self
            .0
            .iter()
            .rev()
            .filter(|line| ms(line) < until_ms)
            .take(PAGE_LINES)
            .cloned()
            .collect();
        lines.reverse();
        Ok(lines)
    }
}

fn line(at_ms: u64, message: impl ToString) -> LogEntry {
    LogEntry {
        timestamp: humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_millis(at_ms)).to_string(),
        level: LogLevel::Info,
        message: message.to_string(),
        fields: BTreeMap::new(),
    }
}

async fn read(kept: Vec<LogEntry>) {
    assert_eq!(since(&Kept(kept.clone()), None).await.unwrap(), kept);
}

#[tokio::test]
async fn every_line_is_read_however_many_there_are() {
    read(vec![]).await;
    read((0..10).map(|n| line(n, n)).collect()).await;
    read((0..1_000).map(|n| line(n, n)).collect()).await;
    read((0..2_000).map(|n| line(n, n)).collect()).await;
    // Seven in each millisecond: pages end within one.
    read((0..2_000).map(|n| line(n / 7, n)).collect()).await;
}

#[tokio::test]
async fn more_lines_in_a_millisecond_than_a_page_holds_hide_nothing() {
    let flood = (0..1_500).map(|n| line(5, n));
    let around = |at_ms| (0..200).map(move |n| line(at_ms, n));
    read(around(4).chain(flood).chain(around(9)).collect()).await;
}

#[tokio::test]
async fn a_line_that_is_said_twice_in_a_millisecond_is_read_twice() {
    read((0..1_200).map(|n| line(n / 3, "again")).collect()).await;
}

#[test]
fn each_line_is_news_once_and_late_ones_are_news_too() {
    let mut seen = Seen::default();
    let said = |lines: &[LogEntry]| lines.to_vec();
    let first = [line(20_000, "a"), line(20_001, "a")];
    assert_eq!(seen.news(said(&first)), first);
    assert_eq!(seen.since_ms(), Some(5_001));
    assert_eq!(seen.news(said(&first)), []);
    assert_eq!(seen.news(vec![]), []);
    let [a, b] = first;
    let late = line(19_000, "late");
    let twice = line(20_001, "a");
    assert_eq!(seen.news(vec![late.clone(), a, b, twice.clone()]), [late, twice]);
}
