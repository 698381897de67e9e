//! One QEMU on the host: started, watched, ended for certain.
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use linux::netns;
use linux::process::Identity;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::command::process_name;
use crate::log::Log;
use crate::qmp::{Qmp, QmpError};
use crate::users::User;
use linux::spawn::Bounds;
use ports::step::{At, Step};

/// QEMU makes its sockets in some ten milliseconds; on a machine that is out of breath it takes a while.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// What an ended QEMU said is in a pipe, and read at once.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(3);
/// Three for each image of a disk, which has some tens at most; its sockets, and events of its devices.
const DESCRIPTORS_MAX: u64 = 1024;
/// QEMU has up to 64 for reading and writing, and a few for what else there is.
const THREADS_BESIDE: u64 = 128;

/// What a QEMU is given, and what it is not.
#[derive(Debug)]
pub(crate) struct Rights {
    /// Whom it runs as; `None`: as whoever the daemon is.
    pub(crate) user: Option<User>,
    /// Descriptors, which have the same numbers there.
    pub(crate) given: Vec<OwnedFd>,
    /// No file that it writes to becomes longer.
    pub(crate) file_bytes: u64,
    /// Threads that run a guest's instructions.
    pub(crate) cpus: u32,
    /// The network namespace that it is in; `None`: the daemon's.
    pub(crate) netns: Option<OwnedFd>,
    /// Control groups that it is in from the beginning, by the files by which it joins them.
    pub(crate) groups: Vec<OwnedFd>,
}

impl Rights {
    fn bounds(&self) -> Bounds {
        Bounds {
            file_bytes: self.file_bytes,
            descriptors: DESCRIPTORS_MAX,
            // Where it has no user of its own the threads of all that its user runs are counted.
            tasks: self.user.map(|_| threads_max(self.cpus)),
        }
    }
}

/// Threads of a QEMU with so many processors, at most.
pub(crate) fn threads_max(cpus: u32) -> u64 {
    u64::from(cpus) + THREADS_BESIDE
}

/// A QEMU.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
    /// What it and its guest said.
    pub(crate) log: Arc<Log>,
    /// Whether all is in the log that it said itself; at once so for one that an earlier daemon started.
    is_heard: watch::Receiver<bool>,
}

impl Process {
    /// Starts one, in a process group of its own: what a terminal tells the daemon is not for it.
    pub(crate) fn start(program: &Path, arguments: &[OsString], rights: Rights) -> Result<Self, Step> {
        let step = || match rights.user {
            Some(User { uid, .. }) => format!("starting {} as user {uid}", program.display()),
            None => format!("starting {}", program.display()),
        };
        let (reader, writer) = io::pipe().at(step())?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().at(step())?)
            .stderr(writer);
        if let Some(User { uid, gid }) = rights.user {
            // Of the groups that the daemon is of none is left.
            command.uid(uid).gid(gid);
        }
        let bounds = rights.bounds();
        linux::spawn::join(&mut command, rights.groups);
        linux::spawn::confine(&mut command, bounds);
        for given in rights.given {
            linux::spawn::hand_down(&mut command, given);
        }
        let child = match rights.netns {
            Some(netns) => {
                let home = netns::current().at(step())?;
                netns::within(netns.as_fd(), home.as_fd(), || command.spawn()).at(step())?
            }
            None => command.spawn(),
        };
        let child = child.at(step())?;
        drop(command);
        let pid = child.id();
        // It is our child and nobody has waited for it, so its number is its own.
        let known = Identity::of(pid).at(format!("reading the start time of process {pid}"));
        let watched = known.and_then(|identity| {
            let mut process = Self::watch(identity)?;
            let (heard, is_heard) = watch::channel(false);
            process.is_heard = is_heard;
            let reader = pipe::Receiver::from_owned_fd(reader.into()).at(step())?;
            let log = Arc::clone(&process.log);
            tokio::spawn(async move {
                log.take_in(reader).await;
                heard.send_replace(true);
            });
            Ok(process)
        });
        if watched.is_err() {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
        }
        watched
    }

    /// Finds one again that an earlier daemon started; `None` when it has ended.
    pub(crate) fn adopt(identity: &Identity) -> Option<Self> {
        // It may have ended since it was on record, and its number have come again.
        Self::watch(identity.clone())
            .ok()
            .filter(|process| process.identity.is_alive())
    }

    fn watch(identity: Identity) -> Result<Self, Step> {
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
            log: Arc::default(),
            is_heard: watch::channel(true).1,
        })
    }

    /// Ends it. What it has not written yet is not written.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Returns when it has ended, and nothing of it is left.
    pub(crate) async fn ended(&self) {
        let _ = self.pidfd.readable().await;
        // One that an earlier daemon started is not ours to be waited for.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options);
    }

    /// Connects to its monitor, and listens to its serial port from now on.
    pub(crate) async fn listen(&self, qmp: &Path, serial: &Path) -> Result<Qmp, Step> {
        let step = || format!("connecting to QEMU, process {}", self.identity.pid);
        let deadline = Instant::now() + LISTENS_WITHIN;
        let qmp = loop {
            let error = match Qmp::connect(qmp, LISTENS_WITHIN).await {
                Ok(qmp) => break qmp,
                Err(error) => error,
            };
            if tokio::time::timeout(LOOK, self.pidfd.readable()).await.is_ok() {
                return Err(self.ended_with().await).at(step());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::from(error)).at(step());
            }
        };
        let serial = UnixStream::connect(serial).await.at(step())?;
        let log = Arc::clone(&self.log);
        tokio::spawn(async move { log.take_in(serial).await });
        Ok(qmp)
    }

    async fn ended_with(&self) -> io::Error {
        let mut is_heard = self.is_heard.clone();
        let _ = tokio::time::timeout(HEARD_WITHIN, is_heard.wait_for(|is_heard| *is_heard)).await;
        QmpError::Gone(format!("it has ended: {}", self.log.tail(LAST_WORDS_BYTES))).into()
    }
}

/// QEMUs that were started for a directory of sockets, which has their name: those whose record was not finished when their
/// daemon died.
pub(crate) fn started_with(dir: &Path) -> Vec<u32> {
    // As on the command line; nobody else's has it so.
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    let by_name = format!("\0-name\0{}\0", process_name(&id)).into_bytes();
    // The first that there were made their sockets themselves.
    let path = dir.to_string_lossy().replace(',', ",,");
    let by_path = format!(",path={path}/").into_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let has = |wanted: &[u8]| line.windows(wanted.len()).any(|part| part == wanted);
            has(&by_name) || has(&by_path)
        })
        .collect()
}

/// Kills a process that is not known by more than its number, and waits for it. The number may have come again: `is_still` says,
/// once it is held, whether it is the one that is meant.
pub(crate) fn end(pid: u32, is_still: impl Fn() -> bool) {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(process) = process.filter(|_| pid != std::process::id()) else {
        return;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else {
        return;
    };
    if is_still() {
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        let mut over = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let _ = rustix::event::poll(&mut over, Some(&patience));
    }
}

/// What of a log goes into an error.
pub(crate) const LAST_WORDS_BYTES: usize = 1024;

/// Between a QEMU's start and somebody who watches over it.
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
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn rights() -> Rights {
        Rights {
            user: None,
            given: Vec::new(),
            file_bytes: 1 << 20,
            cpus: 1,
            netns: None,
            groups: Vec::new(),
        }
    }

    #[tokio::test]
    async fn what_is_killed_has_ended_and_is_not_adopted() {
        let process = Process::start(Path::new("/bin/sleep"), &["60".into()], rights()).unwrap();
        assert!(Process::adopt(&process.identity).is_some());
        let waits = tokio::time::timeout(Duration::from_millis(50), process.ended());
        assert!(waits.await.is_err());
        process.kill();
        tokio::time::timeout(SOON, process.ended()).await.unwrap();
        assert!(Process::adopt(&process.identity).is_none());
    }

    #[tokio::test]
    async fn what_does_not_listen_is_told_with_its_last_words() {
        let script = ["-c".into(), "echo no such machine >&2".into()];
        let process = Process::start(Path::new("/bin/sh"), &script, rights()).unwrap();
        let nowhere = Path::new("/nowhere/qmp");
        let failed = tokio::time::timeout(SOON, process.listen(nowhere, nowhere))
            .await
            .unwrap();
        let failed = failed.map(drop).unwrap_err();
        assert!(
            failed.source.to_string().contains("no such machine"),
            "{failed:?}"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error() {
        let failed = Process::start(Path::new("/nowhere/qemu"), &[], rights()).unwrap_err();
        assert_eq!(failed.source.kind(), io::ErrorKind::NotFound);
    }
}
