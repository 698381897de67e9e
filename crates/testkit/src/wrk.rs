//! Load by `wrk`, which takes little of the processors that it shares with what it measures.
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// What it measured.
pub(crate) struct Load {
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
}

/// Asks `url` on so many connections for so many seconds.
pub(crate) fn load(url: &str, headers: &[String], connections: u32, seconds: u32) -> Result<Load> {
    let mut wrk = Command::new("wrk");
    wrk.args([
        "--threads",
        "1",
        "--latency",
        "--duration",
        &format!("{seconds}s"),
    ])
    .args(["--connections", &connections.to_string()]);
    for header in headers {
        wrk.args(["--header", header]);
    }
    let output = wrk
        .arg(url)
        .output()
        .context("cannot run wrk: run `cargo xtask bench`")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() && !text.contains("Non-2xx"),
        "wrk {url} said: {text}"
    );
    parse(&text).with_context(|| format!("wrk {url} said: {text}"))
}

fn parse(text: &str) -> Option<Load> {
    let value = |name| text.lines().find_map(|line| line.trim().strip_prefix(name));
    Some(Load {
        per_second: value("Requests/sec:")?.trim().parse().ok()?,
        p50: time(value("50%")?.trim())?,
    })
}

/// `81.00us`, `1.20ms`, `2.00s`
fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(digits.parse::<f64>().ok()? * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_report_is_read() {
        let load = parse(
            "  Latency Distribution\n     50%   81.50us\n     75%    1.20ms\nRequests/sec:  10045.5\nTransfer/sec: 1MB\n",
        )
        .unwrap();
        assert!((load.per_second - 10_045.5).abs() < 1e-9);
        assert_eq!(load.p50, Duration::from_nanos(81_500));
        assert_eq!(time("2.00s"), Some(Duration::from_secs(2)));
        assert!(time("2.00").is_none());
    }
}
