//! Processes that cannot be mistaken for others.
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for another: numbers come again, but not with the same start in the same boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since the boot.
    pub start_ticks: u64,
    /// The host's `boot_id`.
    pub boot: String,
}

impl Identity {
    /// Of a process that lives, or has ended and nobody has waited for.
    ///
    /// # Errors
    /// There is no such process, or `/proc` is not there.
    pub fn of(pid: u32) -> io::Result<Self> {
        let (_, start_ticks) = state_and_start(pid)?;
        Ok(Self {
            pid,
            start_ticks,
            boot: host_boot()?,
        })
    }

    /// Whether the process of this number is still this one, and has not ended. To be asked after its pidfd was opened: then
    /// it stays so.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        host_boot().is_ok_and(|boot| boot == self.boot)
            && state_and_start(self.pid)
                .is_ok_and(|(state, ticks)| ticks == self.start_ticks && !matches!(&*state, "Z" | "X"))
    }
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
    fn one_that_has_ended_is_not_alive_before_anybody_waited_for_it() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        let ended = Identity::of(child.id()).unwrap();
        assert!(!ended.is_alive());
        child.wait().unwrap();
        assert!(Identity::of(child.id()).is_err());
    }
}
