//! What the machine looks like from inside (contract 5.1, `/metrics`).
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// One look.
#[derive(Debug, Serialize)]
pub(crate) struct Metrics {
    ts: u64,
    cpu_count: u64,
    cpu_used_pct: f64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    disk_used: u64,
    disk_total: u64,
}

/// When processor time was last looked at, and what it was then: (idle, all).
static LAST: Mutex<Option<(Instant, u64, u64)>> = Mutex::new(None);

/// Looks now.
pub(crate) fn now() -> Metrics {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| {
            rest.trim_start_matches(':')
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0)
    };
    let total = kib("MemTotal") * 1024;
    let used = total.saturating_sub(kib("MemAvailable") * 1024);
    let (disk_used, disk_total) = rustix::fs::statvfs("/").map_or((0, 0), |disk| {
        (
            disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize,
            disk.f_blocks * disk.f_frsize,
        )
    });
    Metrics {
        ts: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        cpu_count: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        cpu_used_pct: busy_pct(),
        mem_total: total,
        mem_used: used,
        mem_cache: kib("Cached") * 1024,
        mem_total_mib: total >> 20,
        mem_used_mib: used >> 20,
        disk_used,
        disk_total,
    }
}

/// How busy the processors were since the last look.
fn busy_pct() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    let all: u64 = ticks.iter().take(8).sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let mut last = LAST.lock().expect("nothing panics while it holds the last look");
    let before = last.replace((Instant::now(), idle, all));
    let Some((_, idle_before, all_before)) = before else {
        return 0.0;
    };
    let (idle, all) = (idle.saturating_sub(idle_before), all.saturating_sub(all_before));
    #[expect(clippy::cast_precision_loss, reason = "ticks since the last look are few")]
    let pct = if all == 0 {
        0.0
    } else {
        (all - idle.min(all)) as f64 * 100.0 / all as f64
    };
    pct
}
