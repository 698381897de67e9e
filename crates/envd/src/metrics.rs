//! What the machine looks like from inside (contract 5.1, `/metrics`).
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::settings::Limits;

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

/// Processor time so far: of whom, and out of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

/// What was the processor time when it was last looked at.
static LAST: Mutex<Option<Ticks>> = Mutex::new(None);

/// Looks now, which blocks. With limits, at the machine that they make; without, at all that the kernel has.
pub(crate) fn now(limits: Limits) -> Metrics {
    let (disk_used, disk_total) = rustix::fs::statvfs("/").map_or((0, 0), |disk| {
        (
            disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize,
            disk.f_blocks * disk.f_frsize,
        )
    });
    let cpu_count = limits.cpu_count.map_or_else(
        || std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        u64::from,
    );
    let usage = (limits != Limits::default()).then(|| Usage::below(Path::new("/proc")));
    let memory = match (limits.memory_bytes, &usage) {
        (Some(total), Some(usage)) => Memory {
            total,
            used: usage.memory_bytes.min(total),
            // The host's is the kernel's own, and nobody's share.
            cache: 0,
        },
        _ => Memory::of_kernel(),
    };
    let ticks = match (limits.cpu_count, &usage) {
        (Some(_), Some(usage)) => Ticks {
            busy: usage.ticks,
            all: uptime_ticks().saturating_mul(cpu_count),
        },
        _ => Ticks::of_kernel(),
    };
    let mut last = LAST.lock().expect("nothing panics while it holds the last look");
    let cpu_used_pct = last.replace(ticks).map_or(0.0, |before| ticks.pct_since(before));
    Metrics {
        ts: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        cpu_count,
        cpu_used_pct,
        mem_total: memory.total,
        mem_used: memory.used,
        mem_cache: memory.cache,
        mem_total_mib: memory.total >> 20,
        mem_used_mib: memory.used >> 20,
        disk_used,
        disk_total,
    }
}

/// What there is of memory, and who has it.
struct Memory {
    total: u64,
    used: u64,
    cache: u64,
}

impl Memory {
    fn of_kernel() -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let bytes = |name: &str| kib(&text, name) * 1024;
        let total = bytes("MemTotal");
        Self {
            total,
            used: total.saturating_sub(bytes("MemAvailable")),
            cache: bytes("Cached"),
        }
    }
}

impl Ticks {
    fn of_kernel() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .filter_map(|n| n.parse().ok())
            .collect();
        let all: u64 = ticks.iter().take(8).sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Self {
            busy: all.saturating_sub(idle),
            all,
        }
    }

    /// How much of the time since an earlier look was used, in percent of all processors.
    fn pct_since(self, before: Ticks) -> f64 {
        let all = self.all.saturating_sub(before.all);
        let busy = self.busy.saturating_sub(before.busy).min(all);
        #[expect(clippy::cast_precision_loss, reason = "ticks since the last look are few")]
        let pct = if all == 0 {
            0.0
        } else {
            busy as f64 * 100.0 / all as f64
        };
        pct
    }
}

/// Hundredths of a second, in which the kernel tells processor time (`USER_HZ`), since the boot.
fn uptime_ticks() -> u64 {
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(up.tv_sec).unwrap_or(0);
    seconds * 100 + u64::try_from(up.tv_nsec).unwrap_or(0) / 10_000_000
}

/// What the processes of a machine use: its kernel is its host's as well, and tells the sum of all.
#[derive(Debug, PartialEq, Eq, Default)]
struct Usage {
    /// Memory that no file stands for; pages that several processes share by fork count for each of them.
    memory_bytes: u64,
    /// Processor time of those that live, and of those whom they reaped, which in the end is everybody.
    ticks: u64,
}

impl Usage {
    fn below(proc: &Path) -> Self {
        let mut usage = Self::default();
        let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
        let is_number = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        for entry in entries.filter(|entry| is_number(&entry.file_name())) {
            // What has ended meanwhile is counted by its parent.
            let text = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let status = text("status");
            usage.memory_bytes += (kib(&status, "RssAnon") + kib(&status, "RssShmem")) * 1024;
            usage.ticks += ticks(&text("stat"));
        }
        usage
    }
}

/// The times of `/proc/<pid>/stat` (proc_pid_stat(5)), fields 14 to 17. Its name is in parentheses, and may hold any.
fn ticks(stat: &str) -> u64 {
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(4);
    times.filter_map(|time| time.parse::<u64>().ok()).sum()
}

/// The kilobytes that a line of this name says.
fn kib(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_uses_what_its_processes_use() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, name, times) in [("1", "envd", "1 2 30 40"), ("23", "a ) b (", "100 200 0 0")] {
            let dir = proc.path().join(pid);
            std::fs::create_dir(&dir).unwrap();
            let stat = format!("{pid} ({name}) S 0 1 1 0 -1 4194560 1 2 3 4 {times} 20 0 1 0 9 9 9\n");
            std::fs::write(dir.join("stat"), stat).unwrap();
            let status = "Name:\tx\nRssAnon:\t     100 kB\nRssFile:\t     7 kB\nRssShmem:\t      20 kB\n";
            std::fs::write(dir.join("status"), status).unwrap();
        }
        std::fs::create_dir(proc.path().join("34")).unwrap();
        std::fs::write(proc.path().join("uptime"), "1 1").unwrap();
        let expected = Usage {
            memory_bytes: 2 * 120 * 1024,
            ticks: 373,
        };
        assert_eq!(Usage::below(proc.path()), expected);
    }

    #[test]
    fn a_share_of_time_is_of_all_processors_and_never_more() {
        let at = |busy, all| Ticks { busy, all };
        assert!((at(60, 400).pct_since(at(10, 200)) - 25.0).abs() < 1e-9);
        assert!((at(900, 400).pct_since(at(10, 200)) - 100.0).abs() < 1e-9);
        assert!(at(0, 200).pct_since(at(10, 200)).abs() < 1e-9);
    }
}
