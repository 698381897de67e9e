//! Processes that nobody knows any more: how they are found, and ended.
use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Processes with one of these on their command line, on which every word is between two zero bytes: those whose record was not
/// finished when their daemon died. Nobody else's have an execution's id there.
#[must_use]
pub fn started_with(parts: &[Vec<u8>]) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let has = |part: &Vec<u8>| line.windows(part.len()).any(|own| own == part);
            parts.iter().any(has)
        })
        .collect()
}

/// Two words after one another, as [`started_with`] finds them.
#[must_use]
pub fn words(flag: &str, value: &str) -> Vec<u8> {
    format!("\0{flag}\0{value}\0").into_bytes()
}

/// Kills a process of which nothing but its number is known, if `is_wanted` says so of it when it cannot be another any more, and
/// waits for its end. Blocks.
pub fn kill_if(pid: u32, is_wanted: impl FnOnce(u32) -> bool) {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(process) = process.filter(|_| pid != std::process::id()) else {
        return;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else {
        return;
    };
    if !is_wanted(pid) {
        return;
    }
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    let mut over = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let _ = rustix::event::poll(&mut over, Some(&patience));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_what_it_was_started_with() {
        let id = uuid::Uuid::new_v4().to_string();
        let mut command = std::process::Command::new("/bin/sh");
        let mut child = command
            .args(["-c", "read x", "--id", &id, "more"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let found = |value: &str| started_with(&[b"no such word".to_vec(), words("--id", value)]);
        // A program has its words a moment after it is that program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while found(&id) != [child.id()] {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(found(&id[..8]).is_empty());
        kill_if(child.id(), |_| false);
        assert_eq!(found(&id), [child.id()]);
        kill_if(child.id(), |_| true);
        child.wait().unwrap();
        assert!(found(&id).is_empty());
    }
}
