//! One Firecracker on the host: started in its jail, watched, ended for certain.
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ports::step::{At, Step};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::Api;
use crate::jail::Jail;
use crate::log::Log;
use linux::process::Identity;

/// The jailer is done in some ten milliseconds; with many mounts on the host, and many beside it, it takes ten times as long.
const JAILED_WITHIN: Duration = Duration::from_secs(30);
/// Firecracker listens some thirty milliseconds after that.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// What an ended one said is in a pipe, and read at once.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it listens.
const LOOK: Duration = Duration::from_millis(2);
/// What of a log goes into an error.
pub(crate) const LAST_WORDS_BYTES: usize = 1024;

/// Who starts Firecrackers.
#[async_trait]
pub(crate) trait Launch: Send + Sync {
    /// Starts one in a jail that is furnished, with the jailer's arguments, and returns its process id. It says what it says
    /// into `output`.
    async fn launch(&self, jail: &Jail, arguments: &[OsString], output: Output) -> Result<u32, Step>;
}

/// Where a program writes, on both its outputs.
#[derive(Debug)]
pub(crate) struct Output(pub(crate) io::PipeWriter);

impl Output {
    pub(crate) fn both(self) -> io::Result<(Stdio, Stdio)> {
        Ok((self.0.try_clone()?.into(), self.0.into()))
    }
}

/// The real one: the jailer, which leaves a Firecracker behind in namespaces of its own.
#[derive(Debug)]
pub(crate) struct Jailer(pub(crate) PathBuf);

#[async_trait]
impl Launch for Jailer {
    async fn launch(&self, jail: &Jail, arguments: &[OsString], output: Output) -> Result<u32, Step> {
        let step = || format!("running {}", self.0.display());
        let (stdout, stderr) = output.both().at(step())?;
        let mut command = tokio::process::Command::new(&self.0);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            // What a terminal tells the daemon is not for it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(true);
        let mut child = command.spawn().at(step())?;
        drop(command);
        let ended = tokio::time::timeout(JAILED_WITHIN, child.wait()).await;
        let status = ended
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
            .at(step())?
            .at(step())?;
        if !status.success() {
            return Err(io::Error::other(status.to_string())).at(step());
        }
        jail.pid()
    }
}

/// A Firecracker.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
    /// What it and its guest said.
    pub(crate) log: Arc<Log>,
    /// Whether all is in the log that it said; at once so for one that an earlier daemon started.
    is_heard: watch::Receiver<bool>,
}

impl Process {
    /// Starts one.
    pub(crate) async fn start(
        launcher: &dyn Launch,
        jail: &Jail,
        arguments: &[OsString],
    ) -> Result<Self, Step> {
        let step = || "starting Firecracker";
        let (reader, writer) = io::pipe().at(step())?;
        let reader = pipe::Receiver::from_owned_fd(reader.into()).at(step())?;
        let log = Arc::<Log>::default();
        let (heard, mut is_heard) = watch::channel(false);
        let listening = Arc::clone(&log);
        tokio::spawn(async move {
            listening.take_in(reader).await;
            heard.send_replace(true);
        });
        let launched = launcher.launch(jail, arguments, Output(writer)).await;
        let pid = match launched {
            Ok(pid) => pid,
            Err(failed) => {
                let _ = tokio::time::timeout(HEARD_WITHIN, is_heard.wait_for(|is_heard| *is_heard)).await;
                let said = log.tail(LAST_WORDS_BYTES);
                return Err(io::Error::other(format!("{}: {said}", failed.source))).at(failed.step);
            }
        };
        // It lives, or nobody has waited for it yet but whoever inherits it: what has become of its number is looked at below.
        let identity = Identity::of(pid).at(format!("reading the start time of process {pid}"))?;
        let process = Self::watch(identity, log, is_heard)?;
        if !process.identity.is_alive() {
            return Err(process.ended_with().await).at(step());
        }
        Ok(process)
    }

    /// Finds one again that an earlier daemon started; `None` when it has ended.
    pub(crate) fn adopt(identity: &Identity) -> Option<Self> {
        // It may have ended since it was on record, and its number have come again.
        let process = Self::watch(identity.clone(), Arc::default(), watch::channel(true).1);
        process.ok().filter(|process| process.identity.is_alive())
    }

    fn watch(identity: Identity, log: Arc<Log>, is_heard: watch::Receiver<bool>) -> Result<Self, Step> {
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
            log,
            is_heard,
        })
    }

    /// Ends it, and with it every process in its namespace. What it has not written yet is not written.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Returns when it has ended, and nothing of it is left.
    pub(crate) async fn ended(&self) {
        let _ = self.pidfd.readable().await;
        // It is a child's child: only where orphans come to this process is it ours to be waited for.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options);
    }

    /// Waits until its API listens.
    pub(crate) async fn listen(&self, socket: &Path) -> Result<Api, Step> {
        let step = || format!("connecting to Firecracker, process {}", self.identity.pid);
        let deadline = Instant::now() + LISTENS_WITHIN;
        let api = Api::new(socket);
        loop {
            let Err(error) = api.listens().await else {
                return Ok(api);
            };
            if tokio::time::timeout(LOOK, self.pidfd.readable()).await.is_ok() {
                return Err(self.ended_with().await).at(step());
            }
            if Instant::now() >= deadline {
                return Err(error).at(step());
            }
        }
    }

    async fn ended_with(&self) -> io::Error {
        let mut is_heard = self.is_heard.clone();
        let _ = tokio::time::timeout(HEARD_WITHIN, is_heard.wait_for(|is_heard| *is_heard)).await;
        io::Error::other(format!("it has ended: {}", self.log.tail(LAST_WORDS_BYTES)))
    }
}

/// Kills a process of which nothing but its number is known, if `is_wanted` says so of it when it cannot be another any more, and
/// waits for its end. Blocks.
pub(crate) fn kill_if(pid: u32, is_wanted: impl FnOnce(u32) -> bool) {
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
