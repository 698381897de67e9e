//! One VMM on the host, once it was started: watched, heard, ended for certain.
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use linux::process::Identity;
use ports::step::{At, Step};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::log::Log;

/// It listens some ten milliseconds after its start; on a machine that is out of breath it takes a while.
pub const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// What an ended one said is in a pipe, and read at once.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it listens.
const LOOK: Duration = Duration::from_millis(2);
/// What of a log goes into an error.
pub const LAST_WORDS_BYTES: usize = 1024;

/// What a VMM says itself.
#[derive(Debug, Clone)]
pub struct Heard {
    log: Arc<Log>,
    /// Whether all is in the log; at once so for one that an earlier daemon started.
    is_all: watch::Receiver<bool>,
}

impl Heard {
    /// Listens to a pipe from now on.
    ///
    /// # Errors
    /// There is no runtime to do it in.
    pub fn by(reader: io::PipeReader) -> io::Result<Self> {
        let reader = pipe::Receiver::from_owned_fd(reader.into())?;
        let log = Arc::<Log>::default();
        let (all, is_all) = watch::channel(false);
        let listening = Arc::clone(&log);
        tokio::spawn(async move {
            listening.take_in(reader).await;
            all.send_replace(true);
        });
        Ok(Self { log, is_all })
    }

    fn nothing() -> Self {
        Self {
            log: Arc::default(),
            is_all: watch::channel(true).1,
        }
    }

    /// The last of what one that has ended said.
    pub async fn last_words(&self) -> String {
        let mut is_all = self.is_all.clone();
        let _ = tokio::time::timeout(HEARD_WITHIN, is_all.wait_for(|is_all| *is_all)).await;
        self.log.tail(LAST_WORDS_BYTES)
    }
}

/// A VMM.
#[derive(Debug)]
pub struct Process {
    /// Which process it is.
    pub identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
    /// What it and its guest said.
    pub log: Arc<Log>,
    heard: Heard,
}

impl Process {
    /// Watches over one that was just started: its number is still its own.
    ///
    /// # Errors
    /// It has ended, and somebody has waited for it.
    pub fn watch(pid: u32, heard: Heard) -> Result<Self, Step> {
        let identity = Identity::of(pid).at(format!("reading the start time of process {pid}"))?;
        Self::open(identity, heard)
    }

    /// Finds one again that an earlier daemon started; `None` when it has ended.
    #[must_use]
    pub fn adopt(identity: &Identity) -> Option<Self> {
        // It may have ended since it was on record, and its number have come again.
        let process = Self::open(identity.clone(), Heard::nothing());
        process.ok().filter(Self::is_alive)
    }

    fn open(identity: Identity, heard: Heard) -> Result<Self, Step> {
        let step = || format!("opening process {}", identity.pid);
        let pid = i32::try_from(identity.pid).ok().and_then(Pid::from_raw);
        let pid = pid
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .at(step())?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).at(step())?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the descriptor is owned here, and nobody replaces it"
        )]
        let pidfd = AsyncFd::new(pidfd).at(step())?;
        Ok(Self {
            identity,
            pidfd,
            log: Arc::clone(&heard.log),
            heard,
        })
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.identity.is_alive()
    }

    /// Ends it, and every process in a process namespace of its own. What it has not written yet is not written.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Returns when it has ended, and nothing of it is left.
    pub async fn ended(&self) {
        let _ = self.pidfd.readable().await;
        // One that an earlier daemon, or a child of ours, started is not ours to be waited for.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options);
    }

    /// That it has ended, with its last words.
    pub async fn last_words(&self) -> io::Error {
        let said = self.heard.last_words().await;
        io::Error::new(io::ErrorKind::BrokenPipe, format!("it has ended: {said}"))
    }

    /// Tries to reach it until it listens, has ended, or lets wait for too long.
    ///
    /// # Errors
    /// What it was that did not come to be.
    pub async fn reach<T, F>(&self, mut attempt: impl FnMut() -> F) -> io::Result<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        let deadline = Instant::now() + LISTENS_WITHIN;
        loop {
            let error = match attempt().await {
                Ok(reached) => return Ok(reached),
                Err(error) => error,
            };
            if tokio::time::timeout(LOOK, self.pidfd.readable()).await.is_ok() {
                return Err(self.last_words().await);
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
        }
    }
}

/// Between a VMM's start and somebody who watches over it.
pub(crate) struct KilledUnlessTaken(Option<Process>);

impl KilledUnlessTaken {
    pub(crate) fn new(process: Process) -> Self {
        Self(Some(process))
    }
    pub(crate) fn get(&self) -> &Process {
        self.0.as_ref().expect("it is taken once, and not looked at then")
    }
    pub(crate) fn take(mut self) -> Process {
        self.0.take().expect("it is taken once")
    }
}

impl Drop for KilledUnlessTaken {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process.kill();
            tokio::spawn(async move { process.ended().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[expect(clippy::zombie_processes, reason = "whoever watches over it waits for it")]
    fn started(line: &str) -> Process {
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        let child = command.args(["-c", line]).stderr(writer).spawn().unwrap();
        drop(command);
        Process::watch(child.id(), Heard::by(reader).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn what_is_killed_has_ended_and_is_not_adopted() {
        let process = started("exec sleep 60");
        assert!(Process::adopt(&process.identity).is_some());
        let waits = tokio::time::timeout(Duration::from_millis(50), process.ended());
        assert!(waits.await.is_err());
        process.kill();
        tokio::time::timeout(SOON, process.ended()).await.unwrap();
        assert!(Process::adopt(&process.identity).is_none());
    }

    #[tokio::test]
    async fn what_does_not_listen_is_told_with_its_last_words() {
        let process = started("echo no such machine >&2");
        let nobody = || async { Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)) };
        let failed = tokio::time::timeout(SOON, process.reach(nobody)).await.unwrap();
        let failed = failed.unwrap_err();
        assert!(failed.to_string().contains("no such machine"), "{failed:?}");
    }

    #[tokio::test]
    async fn whom_nobody_takes_is_ended() {
        let process = started("exec sleep 60");
        let identity = process.identity.clone();
        drop(KilledUnlessTaken::new(process));
        while identity.is_alive() {
            tokio::time::sleep(LOOK).await;
        }
        let kept = KilledUnlessTaken::new(started("exec sleep 60"));
        assert!(kept.get().is_alive());
        let kept = kept.take();
        assert!(kept.is_alive());
        kept.kill();
    }
}
