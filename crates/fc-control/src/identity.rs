//! Processes that cannot be mistaken for others.
use std::fs;
use std::io;

use ports::step::{At, Step};
use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for another: numbers come again, but not with the same start in the same boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since the boot.
    pub(crate) start_ticks: u64,
    /// The host's `boot_id`.
    pub(crate) boot: String,
}

impl Identity {
    /// Of a process that lives, or has ended and nobody has waited for.
    pub(crate) fn of(pid: u32) -> Result<Self, Step> {
        let (_, start_ticks) = state_and_start(pid).at(format!("reading the start time of process {pid}"))?;
        let boot = host_boot().at("reading the host's boot id")?;
        Ok(Self {
            pid,
            start_ticks,
            boot,
        })
    }

    /// Whether the process of this number is still this one. To be asked after its pidfd was opened: then it stays so.
    pub(crate) fn is_alive(&self) -> bool {
        host_boot().is_ok_and(|boot| boot == self.boot)
            && state_and_start(self.pid)
                .is_ok_and(|(state, ticks)| ticks == self.start_ticks && !matches!(&*state, "Z" | "X"))
    }
}

/// Processes that were started with the words `flag` and `value` after one another: those whose record was not finished when
/// their daemon died. Nobody else's have an execution's id there.
pub(crate) fn started_with(flag: &str, value: &str) -> Vec<u32> {
    let wanted = format!("\0{flag}\0{value}\0").into_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(wanted.len()).any(|part| part == wanted)
        })
        .collect()
}

fn host_boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

fn state_and_start(pid: u32) -> io::Result<(String, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in brackets, may hold anything.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields = after_name.split(' ');
    let state = fields.next().unwrap_or_default().to_owned();
    // The state, just taken, is field 3.
    let ticks = fields.nth(18).and_then(|ticks| ticks.parse().ok());
    Ok((
        state,
        ticks.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        let later = Identity {
            start_ticks: own.start_ticks + 1,
            ..own.clone()
        };
        let elsewhere = Identity {
            boot: "another".into(),
            ..own
        };
        assert!(!later.is_alive() && !elsewhere.is_alive());
    }

    #[test]
    fn a_process_is_found_by_what_it_was_started_with() {
        let id = uuid::Uuid::new_v4().to_string();
        let mut command = std::process::Command::new("/bin/sh");
        let mut child = command
            .args(["-c", "read x", "--id", &id, "more"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // A program has its words a moment after it is that program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while started_with("--id", &id) != [child.id()] {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(started_with("--id", &id[..8]).is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(started_with("--id", &id).is_empty());
    }
}
