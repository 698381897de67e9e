//! Attaching a mount in a machine that runs: from within its mount namespace, where its root is ours too.
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;
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
    let place = place(path, owner).at(format!("finding a place at {path}"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", &place, "", flags).at(format!("attaching a mount at {path}"))
}

/// A directory of the machine. The machine owns the path: no link on it is followed.
fn place(path: &str, owner: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let open = |dir: &OwnedFd| rustix::fs::openat2(dir, name, flags, Mode::empty(), within);
        dir = match open(&dir) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                let made = open(&dir)?;
                let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
                rustix::fs::chownat(&made, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
                made
            }
            opened => opened?,
        };
    }
    Ok(dir)
}
