//! The machine: a child in namespaces of its own, on the root disk. The user namespace is the first one, as the kernel is the
//! sandbox's own.
mod become_machine;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use guest::boot::Settings;
use linux::clone::{Fork, SingleThreaded, namespace};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

use crate::boot::{MACHINE, machine_cgroup};
use crate::console::say;
use crate::step::{At as _, Step};
use crate::volumes::Volumes;

/// envd's host-only socket, inside.
const SOCKET: &str = "/run/atoll/envd.sock";
/// No order to end takes longer.
const GRACE_MAX: Duration = Duration::from_secs(60);
/// Who waits for a disk that does not answer is not gone by then, and never will be.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// The machine that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    pid: u32,
    pidfd: OwnedFd,
    /// Its root, as it is on the disk.
    pub(crate) root: OwnedFd,
    /// Its names.
    pub(crate) host_name: OwnedFd,
    /// Its mounts.
    pub(crate) mounts: OwnedFd,
    /// The volumes among them.
    pub(crate) volumes: Volumes,
    /// envd's socket, once it listens: this very one, whatever is put in its place later.
    envd: watch::Sender<Option<Arc<OwnedFd>>>,
    /// How its first process ended, once it has.
    ended: watch::Receiver<Option<String>>,
    /// An order to end came, with this grace.
    end: watch::Sender<Option<Duration>>,
    /// The order was answered.
    pub(crate) end_told: Notify,
}

/// Where envd says that it listens.
pub(crate) struct Ready(io::PipeReader);

impl Machine {
    /// Starts it.
    pub(crate) fn start(settings: &Settings) -> Result<(Self, Ready), Step> {
        let (ready, readies) = io::pipe().at("making a pipe")?;
        let alone = SingleThreaded::prove().at("counting threads")?;
        let cgroup = fs::File::open(machine_cgroup()).at("opening the machine's cgroup")?;
        let namespaces = namespace::PID | namespace::MOUNT | namespace::UTS | namespace::IPC;
        let forked =
            linux::clone::fork(&alone, namespaces, Some(cgroup.as_fd())).at("forking the machine")?;
        let Fork::Parent { pid, pidfd } = forked else {
            drop(ready);
            let failed = become_machine::become_machine(settings, &readies.into());
            say(format_args!("{failed}: {}", failed.source));
            // A forked child has no caller to return to.
            std::process::exit(1)
        };
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, MACHINE, directory, Mode::empty()).at("opening the root disk")?;
        let host_name = fs::File::open(format!("/proc/{pid}/ns/uts")).at("opening the machine's names")?;
        let mounts = fs::File::open(format!("/proc/{pid}/ns/mnt")).at("opening the machine's mounts")?;
        let (has_ended, ended) = watch::channel(None);
        let first = i32::try_from(pid).ok().and_then(Pid::from_raw);
        std::thread::Builder::new()
            .name("wait".to_owned())
            .spawn(move || has_ended.send_replace(Some(wait(first))))
            .at("starting a thread")?;
        let machine = Self {
            pid,
            pidfd,
            root,
            host_name: host_name.into(),
            mounts: mounts.into(),
            volumes: Volumes::default(),
            envd: watch::channel(None).0,
            ended,
            end: watch::channel(None).0,
            end_told: Notify::new(),
        };
        Ok((machine, Ready(ready)))
    }

    /// Waits until envd listens, and takes hold of its socket. Returns only what went wrong.
    pub(crate) async fn become_ready(&self, Ready(pipe): Ready) -> Step {
        let ready = async {
            let pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe.into()).at("watching a pipe")?;
            loop {
                pipe.readable().await.at("waiting for envd")?;
                match pipe.try_read(&mut [0]) {
                    Ok(1) => break,
                    // It ends; who watches it says how.
                    Ok(_) => return Ok(std::future::pending().await),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).at("waiting for envd"),
                }
            }
            let path = format!("/proc/{}/root{SOCKET}", self.pid);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let socket = rustix::fs::openat(CWD, path, flags, Mode::empty()).at("opening envd's socket")?;
            self.envd.send_replace(Some(Arc::new(socket)));
            std::future::pending().await
        };
        let ready: Result<std::convert::Infallible, Step> = ready.await;
        match ready {
            Ok(never) => match never {},
            Err(failed) => failed,
        }
    }

    /// Waits until envd listens.
    pub(crate) async fn ready(&self) {
        let mut envd = self.envd.subscribe();
        // The sender is ours.
        let _ = envd.wait_for(Option::is_some).await;
    }

    /// Connects to envd's host-only socket.
    pub(crate) async fn envd(&self) -> io::Result<UnixStream> {
        let socket = self.envd.borrow().clone().ok_or(io::ErrorKind::NotConnected)?;
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
    }

    /// Waits for the end of its first process, with which everything inside ends, and says how it was.
    pub(crate) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        // The thread that says it says it, or is gone with everything.
        let told = ended.wait_for(Option::is_some).await;
        told.ok().and_then(|told| told.clone()).unwrap_or_default()
    }

    /// Waits for an end that nobody ordered.
    pub(crate) async fn died(&self) -> String {
        let status = self.ended().await;
        if self.end.borrow().is_some() {
            std::future::pending().await
        }
        status
    }

    /// Orders its end.
    pub(crate) fn end(&self, grace: Duration) {
        self.end.send_replace(Some(grace.min(GRACE_MAX)));
    }

    /// Waits for an order to end, and for the end of its processes: politely, then surely.
    pub(crate) async fn told_to_end(&self) -> String {
        let mut end = self.end.subscribe();
        let grace = match end.wait_for(Option::is_some).await {
            Ok(grace) => grace.unwrap_or_default(),
            Err(_) => return std::future::pending().await,
        };
        // Everybody but us, in all namespaces. Envd ends the others when it is told, and what they wrote is on the disk then.
        let _ = rustix::process::kill_process_group(Pid::INIT, Signal::TERM);
        let ended = tokio::time::timeout(grace, self.ended()).await;
        // Whoever asked is to have the answer.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.end_told.notified()).await;
        match ended {
            Ok(status) => format!("told to end: {status}"),
            Err(_) => "told to end: killed".to_owned(),
        }
    }

    /// Kills everything inside: the kernel does so when the first process is gone.
    pub(crate) async fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = tokio::time::timeout(KILLED_WITHIN, self.ended()).await;
    }
}

/// Waits for a child's end, and says how it was.
fn wait(child: Option<Pid>) -> String {
    match rustix::process::waitpid(child, WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no word".to_owned(),
        },
        Ok(None) => "no word".to_owned(),
        Err(error) => error.to_string(),
    }
}
