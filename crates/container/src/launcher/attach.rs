//! Attaching a mount in a machine that runs: from within its mount namespace, where its root is ours too.
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use crate::step::{At, Step};

/// Attaches the mount at `path` of the machine. `fds`: the machine's pidfd, the mount.
pub(super) fn attach(
    path: &str,
    owner: u32,
    fds: &[OwnedFd],
    own_mounts: BorrowedFd<'_>,
) -> Result<(), Step> {
    let [machine, mount] = fds else {
        return Err(io::Error::other("not a pidfd and a mount came along")).at("attaching a mount");
    };
    rustix::thread::move_into_thread_name_spaces(machine.as_fd(), ThreadNameSpaceType::MOUNT)
        .at("entering a mount namespace")?;
    let attached = attach_here(path, owner, mount.as_fd());
    // A launcher that stays among a machine's mounts would make the next machine there.
    if rustix::thread::move_into_link_name_space(own_mounts, Some(LinkNameSpaceType::Mount)).is_err() {
        std::process::abort();
    }
    attached
}

fn attach_here(path: &str, owner: u32, mount: BorrowedFd<'_>) -> Result<(), Step> {
    let place = linux::mount::place(path, owner).at(format!("finding a place at {path}"))?;
    linux::mount::attach(mount, place.as_fd()).at(format!("attaching a mount at {path}"))
}
