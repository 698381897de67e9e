//! What the machine uses.
use std::fs;

use guest::line::Usage;

use crate::boot::machine_cgroup;
use crate::machine::Machine;

pub(crate) fn usage(machine: &Machine) -> Result<Usage, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("reading {path}: {error}"));
    let group = machine_cgroup();
    let memory = Memory::parse(&read("/proc/meminfo")?);
    let disk =
        rustix::fs::fstatvfs(&machine.root).map_err(|error| format!("looking at the disk: {error}"))?;
    let block_bytes = disk.f_frsize;
    Ok(Usage {
        cpu_time_us: value(&read(&format!("{group}/cpu.stat"))?, "usage_usec"),
        memory_used_bytes: memory.used_bytes,
        memory_cache_bytes: memory.cache_bytes,
        memory_total_bytes: memory.total_bytes,
        disk_used_bytes: disk
            .f_blocks
            .saturating_sub(disk.f_bfree)
            .saturating_mul(block_bytes),
        disk_total_bytes: disk.f_blocks.saturating_mul(block_bytes),
        tasks: read(&format!("{group}/pids.current"))?
            .trim()
            .parse()
            .unwrap_or(0),
        oom_kills: value(&read("/proc/vmstat")?, "oom_kill"),
    })
}

/// The number after a word at the beginning of a line; 0, where there is none.
fn value(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let is_it = words.next()?.trim_end_matches(':') == name;
            words.next().filter(|_| is_it)?.parse().ok()
        })
        .unwrap_or(0)
}

/// The whole kernel's memory: it is the machine's own.
#[derive(Debug, PartialEq, Eq)]
struct Memory {
    used_bytes: u64,
    cache_bytes: u64,
    total_bytes: u64,
}

impl Memory {
    fn parse(meminfo: &str) -> Self {
        let bytes = |name| value(meminfo, name).saturating_mul(1024);
        let total_bytes = bytes("MemTotal");
        // Shared memory is told among the cache, and cannot be reclaimed.
        let cache_bytes =
            (bytes("Cached") + bytes("Buffers") + bytes("SReclaimable")).saturating_sub(bytes("Shmem"));
        Self {
            used_bytes: total_bytes
                .saturating_sub(bytes("MemFree"))
                .saturating_sub(cache_bytes),
            cache_bytes,
            total_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_apart_from_cache() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 300 kB\nBuffers: 10 kB\nCached: 200 kB\nSwapCached: 9 kB\n\
                       Shmem: 50 kB\nSReclaimable: 40 kB\n";
        let memory = Memory {
            used_bytes: 500 * 1024,
            cache_bytes: 200 * 1024,
            total_bytes: 1000 * 1024,
        };
        assert_eq!(Memory::parse(meminfo), memory);
    }

    #[test]
    fn a_value_is_that_of_the_whole_name() {
        let check =
            |name, expected| assert_eq!(value("usage_usec 7\nuser_usec 5\n", name), expected, "{name}");
        check("usage_usec", 7);
        check("user_usec", 5);
        check("usec", 0);
    }
}
