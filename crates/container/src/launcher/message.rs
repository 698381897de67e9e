//! What the daemon, the launcher and parked machines say to each other: one JSON value in one packet, with descriptors.
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A packet holds paths and names, never content.
const PACKET_BYTES_MAX: usize = 32 * 1024;
/// A boot takes a handful of mounts, cgroup files and a pipe.
const FDS_MAX: usize = 32;

/// What the daemon asks of the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Make a skeleton for the users from `first_user` on, in the cgroup (v2) that comes along, if one does. Answer:
    /// [`Reply::Skeleton`] with the child's pidfd, the socket on which it waits for its [`Boot`], and the user namespace
    /// that maps its disk.
    Skeleton {
        /// What its root is on the host.
        first_user: u32,
        /// How many users it has.
        users: u32,
    },
    /// Name the machine whose pidfd comes along. Answer: [`Reply::Done`].
    Rename(String),
    /// Attach the mount that comes along, after the machine's pidfd, at a place of the machine. Answer: [`Reply::Done`].
    Attach {
        /// Where: absolute and clean. What is missing of it is made.
        path: String,
        /// Whose, on the host, the directories are that are made.
        owner: u32,
    },
    /// Make user namespaces for the users from `first_user` on, in which no process runs. Answer: [`Reply::Done`] with one
    /// that maps a disk, and one that maps layers.
    Users {
        /// What their root is on the host.
        first_user: u32,
        /// How many users there are.
        users: u32,
    },
    /// Let everybody ping in the machine whose pidfd comes along, as it does itself when it boots. Answer: [`Reply::Done`].
    LetPing,
    /// Start CRIU. Answer: [`Reply::Started`] with its pidfd. Why it could not be started it says on its line.
    Criu(crate::criu::child::Start),
}

/// What the launcher answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// A child waits in new namespaces.
    Skeleton {
        /// Its number.
        pid: u32,
    },
    /// It is done.
    Done,
    /// A program runs.
    Started {
        /// Its number.
        pid: u32,
    },
    /// It was not done.
    Failed {
        /// What was tried.
        step: String,
        /// The kernel's error number, 0 where it was not the kernel.
        errno: i32,
    },
}

/// What a skeleton needs to become a machine. The descriptors that come along, in this order: the `tasks` files of its
/// cgroups (v1), the mounts, the write end of the ready pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Boot {
    /// How many `tasks` files come along.
    pub(crate) cgroups: usize,
    /// Where each mount goes: `/` first, then what lies below it.
    pub(crate) mounts: Vec<String>,
    /// The machine's first name.
    pub(crate) hostname: String,
    /// The resolvers that its programs ask.
    pub(crate) nameservers: Vec<String>,
    /// Its `/etc/machine-id`, for a disk that never had one of its own.
    pub(crate) machine_id: String,
    /// Its disk is the first of a sandbox, whatever it is a copy of.
    pub(crate) is_new: bool,
    /// What the kernel's `boot_id` reads as.
    pub(crate) boot_id: String,
    /// envd's arguments, the program's name first.
    pub(crate) envd: Vec<String>,
}

/// What a machine says when it cannot boot, before it ends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BootFailed {
    pub(crate) step: String,
    pub(crate) errno: i32,
}

/// Sends a value with descriptors.
pub(crate) fn send(socket: impl AsFd, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    if bytes.len() > PACKET_BYTES_MAX || fds.len() > FDS_MAX {
        return Err(io::Error::other("the message is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives a value with descriptors; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, fds)))
}

/// The kernel's number of an error, 0 for others.
pub(crate) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// The error of a number that came in a message.
pub(crate) fn error(errno: i32) -> io::Error {
    if errno == 0 {
        io::Error::other("not an error of the kernel")
    } else {
        io::Error::from_raw_os_error(errno)
    }
}
