//! A slot: everything that one machine holds on the host, from its skeleton on.
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use linux::process::Identity;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::agent;
use crate::cgroup::Cgroup;
use crate::house::{House, Shape};
use crate::step::{At, Step};

/// A machine whose envd listens, claimed or not.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    /// Its first process, as the host numbers it.
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// envd's host-only socket, as a place: held from the boot on, so that nothing inside can put another there.
    pub(crate) socket: OwnedFd,
    pub(crate) cgroup: Cgroup,
    pub(crate) shape: Shape,
    /// Whether its processes went on from memory.
    pub(crate) restored: bool,
}

impl Slot {
    /// Finds envd's socket below the root of a machine. The path is the machine's: no link of it is followed, and no
    /// step leads out of the root.
    pub(crate) fn open_socket(pid: u32, pidfd: &OwnedFd) -> Result<OwnedFd, Step> {
        let root = open_root(pid, pidfd).at(format!("opening the root of process {pid}"))?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(
            &root,
            agent::SOCKET,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            inside,
        )
        .at("opening envd's socket")
    }

    /// Finds the machine of an earlier daemon, if it lives.
    pub(crate) fn adopt(
        house: &House,
        number: u32,
        identity: &Identity,
        shape: Shape,
        restored: bool,
    ) -> Result<Self, Step> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = i32::try_from(identity.pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)
            .at("reading a process number")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).at("opening a pidfd")?;
        if !identity.is_alive() {
            return Err(gone()).at(format!("looking for process {}", identity.pid));
        }
        let cgroup = house.cgroups.of(number);
        if !cgroup.processes().contains(&identity.pid) {
            return Err(gone()).at(format!("looking for process {} in its cgroup", identity.pid));
        }
        let socket = Self::open_socket(identity.pid, &pidfd)?;
        Ok(Self {
            number,
            pid: identity.pid,
            pidfd,
            socket,
            cgroup,
            shape,
            restored,
        })
    }

    /// Whether its first process lives.
    pub(crate) fn is_alive(&self) -> bool {
        lives(&self.pidfd)
    }

    /// A path by which envd's socket can be connected to.
    pub(crate) fn socket_path(&self) -> String {
        format!("/proc/self/fd/{}", self.socket.as_raw_fd())
    }

    /// Bytes of its disk: in use, and in all.
    pub(crate) fn disk_use(&self) -> io::Result<(u64, u64)> {
        // Held no longer than that: whoever holds the root holds the disk.
        let space = rustix::fs::fstatvfs(&open_root(self.pid, &self.pidfd)?)?;
        Ok((
            (space.f_blocks - space.f_bfree) * space.f_frsize,
            space.f_blocks * space.f_frsize,
        ))
    }

    /// Lets its file system write all that it holds back to the image. The overlay at its root hands that on to its disk
    /// (syncfs(2)).
    pub(crate) fn write_back(&self) -> io::Result<()> {
        let root = open_root(self.pid, &self.pidfd)?;
        // A descriptor of a place alone cannot be written back.
        let root = rustix::fs::openat(
            &root,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(rustix::fs::syncfs(&root)?)
    }

    /// When its first process started, by the age of its directory in `/proc`.
    pub(crate) fn started_at(&self) -> std::time::SystemTime {
        fs::metadata(format!("/proc/{}", self.pid))
            .and_then(|about| about.modified())
            .ok()
            .filter(|_| self.is_alive())
            .unwrap_or_else(std::time::SystemTime::now)
    }
}

/// The root of a process that lives: while it does its number is nobody else's, so what was opened by the number is its.
pub(crate) fn open_root(pid: u32, pidfd: impl AsFd) -> io::Result<OwnedFd> {
    let root = rustix::fs::openat(
        CWD,
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if lives(pidfd) {
        Ok(root)
    } else {
        Err(io::Error::from(io::ErrorKind::NotFound))
    }
}

fn lives(pidfd: impl AsFd) -> bool {
    let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    matches!(
        rustix::event::poll(&mut polled, Some(&rustix::time::Timespec::default())),
        Ok(0)
    )
}
