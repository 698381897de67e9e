//! Figures of programs that time themselves: benchmarks of their crates, built beside this one.
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::figures::{Figures, Goal};
use crate::scale::Scale;

/// `cargo bench -p orchestrator --bench placement`.
pub(super) fn placement(scale: Scale, figures: &mut Figures) -> Result<()> {
    let told = run("ATOLL_BENCH_PLACEMENT", whole(scale))?;
    for what in [
        "half full",
        "half full, 3 hold the build",
        "97 of 100 nodes are full",
        "all are full",
    ] {
        let (p50, p99) = told.times(&format!("decision: {what}"))?;
        figures.told(
            format!("placement among 10000 nodes, {what}: one decision"),
            Goal::p99_ms(0.05),
            p50,
            p99,
        );
    }
    Ok(())
}

/// `cargo bench -p cluster --bench events`.
pub(super) fn events(scale: Scale, figures: &mut Figures) -> Result<()> {
    let told = run("ATOLL_BENCH_EVENTS", whole(scale))?;
    figures.one(
        "events from process to process, through a Redis Stream",
        Goal::at_least(10_000.0),
        told.rate("events from process to process")?,
        "/s",
    );
    let (p50, p99) = told.times("a route is in another process")?;
    figures.told(
        "a route: published by one process → in the catalog of another",
        Goal::p99_ms(50.0),
        p50,
        p99,
    );
    for what in ["one of a rate is taken", "a share is claimed"] {
        let (p50, p99) = told.times(what)?;
        figures.told(format!("Redis: {what}"), Goal::NONE, p50, p99);
    }
    Ok(())
}

/// `cargo test --release -p rpc --test rpc speed::a_call -- --ignored --nocapture`.
pub(super) fn rpc(figures: &mut Figures) -> Result<()> {
    let told = run(
        "ATOLL_BENCH_RPC",
        &["--ignored", "--nocapture", "--exact", "speed::a_call"],
    )?;
    for (what, named) in [("kill", "a word"), ("start", "an order to start")] {
        let (p50, p99) = told.times(what)?;
        figures.told(
            format!("RPC over mutual TLS on loopback: {named}"),
            Goal::NONE,
            p50,
            p99,
        );
    }
    figures.one(
        "RPC over mutual TLS on loopback: words, 64 at a time",
        Goal::NONE,
        told.rate("64 at a time")?,
        "/s",
    );
    Ok(())
}

/// A benchmark does little without this, as `cargo test` runs it.
fn whole(scale: Scale) -> &'static [&'static str] {
    if scale.whole { &["--bench"] } else { &[] }
}

/// What a program printed.
struct Told(String);

/// Runs the program that a variable names. Some fail where a goal of theirs is missed: that is told by the table.
fn run(variable: &str, arguments: &[&str]) -> Result<Told> {
    let program = std::env::var(variable)
        .with_context(|| format!("{variable} is not set: run `cargo xtask bench cluster`"))?;
    let output = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(
        !text.contains("SKIPPED"),
        "{program} has not what it needs: {text}"
    );
    Ok(Told(text))
}

impl Told {
    /// The line that begins with these words; whatever else is on the line counts from there on.
    fn rest<'a>(&'a self, what: &str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter_map(move |line| {
            let line = line.trim_start();
            let at = line.find(what)?;
            // Of something with a number before it, such as how many events.
            let is_its_own = line[..at]
                .chars()
                .all(|char| char.is_ascii_digit() || char == ' ');
            is_its_own.then_some(&line[at + what.len()..])
        })
    }

    /// p50 and p99 of a line `what: p50 1.2µs, p99 3.4ms`, with or without its signs.
    fn times(&self, what: &str) -> Result<(Duration, Duration)> {
        let read = |rest: &str| {
            let rest = rest.trim_start_matches(':').trim_start();
            let words: Vec<&str> = rest.split_whitespace().collect();
            let value = |name| {
                let at = words.iter().position(|word| *word == name)?;
                time(words.get(at + 1)?.trim_end_matches(','))
            };
            // Another line may begin with the same words, and go on.
            (words.first() == Some(&"p50")).then_some(())?;
            Some((value("p50")?, value("p99")?))
        };
        let found = self.rest(what).find_map(read);
        found.with_context(|| format!("nothing was told of '{what}': {}", self.0))
    }

    /// What a line that begins so ends with: so many each second.
    fn rate(&self, what: &str) -> Result<f64> {
        let read = |rest: &str| {
            let word = rest
                .trim_end()
                .strip_suffix("calls/s")
                .or(rest.trim_end().strip_suffix("/s"))?;
            word.split_whitespace().last()?.parse().ok()
        };
        let found = self.rest(what).find_map(read);
        found.with_context(|| format!("nothing was told of '{what}': {}", self.0))
    }
}

/// A time as `Duration` shows itself.
fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|char: char| !char.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(digits.parse::<f64>().ok()? * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = "\
decision: half full, 3 hold the build          p50    3.2µs  p99    6.8µs  p99.9   10.0µs
decision: half full                            p50    1.8µs  p99    5.0µs  p99.9    9.9µs
100000 events from process to process in 2.5s: 40000/s
a route is published: p50 101.5µs, p99 300µs, p999 1.2ms
kill: p50 95.2µs, p99 1.5ms, max 2s
64 at a time: 12345 calls/s
";

    #[test]
    fn lines_are_found_by_their_whole_beginning() {
        let told = Told(TOLD.to_owned());
        let micros = |p50, p99| (Duration::from_nanos(p50), Duration::from_nanos(p99));
        assert_eq!(told.times("decision: half full").unwrap(), micros(1_800, 5_000));
        assert_eq!(
            told.times("a route is published").unwrap(),
            micros(101_500, 300_000)
        );
        assert_eq!(told.times("kill").unwrap(), micros(95_200, 1_500_000));
        assert!(told.times("full").is_err());
    }

    #[test]
    fn rates_are_the_last_word_of_a_line() {
        let told = Told(TOLD.to_owned());
        assert!((told.rate("events from process to process").unwrap() - 40_000.0).abs() < 1e-9);
        assert!((told.rate("64 at a time").unwrap() - 12_345.0).abs() < 1e-9);
        assert!(told.rate("kill").is_err());
    }
}
