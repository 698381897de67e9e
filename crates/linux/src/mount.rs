//! Mounts: their attributes, which `rustix` does not offer, and attaching one among somebody else's.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MoveMountFlags;

/// What a mount does beyond its file system
/// ([mount_setattr(2)](https://man7.org/linux/man-pages/man2/mount_setattr.2.html)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// Nothing can be written through it.
    pub read_only: bool,
    /// Setuid bits and file capabilities mean nothing.
    pub no_setuid: bool,
    /// Setuid bits and file capabilities mean what they say, where the mount that was cloned gave them no meaning.
    pub setuid_again: bool,
    /// Device nodes mean nothing.
    pub no_devices: bool,
    /// Owners are seen as this user namespace maps them.
    pub id_map: Option<BorrowedFd<'a>>,
}

/// Sets attributes of a mount that is attached nowhere yet, or of one by its root.
///
/// # Errors
/// What mount_setattr(2) answered.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes<'_>) -> io::Result<()> {
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    let attr = libc::mount_attr {
        attr_set: flag(attributes.read_only, libc::MOUNT_ATTR_RDONLY)
            | flag(attributes.no_setuid, libc::MOUNT_ATTR_NOSUID)
            | flag(attributes.no_devices, libc::MOUNT_ATTR_NODEV)
            | flag(attributes.id_map.is_some(), libc::MOUNT_ATTR_IDMAP),
        attr_clr: flag(attributes.setuid_again, libc::MOUNT_ATTR_NOSUID),
        propagation: 0,
        userns_fd: attributes
            .id_map
            .map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: the path is an empty C string, `attr` is of the size that is told, and both outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives the calling thread a root and a working directory that are its own, as it must have to enter another namespace of mounts.
///
/// # Errors
/// What unshare(2) answered.
pub fn own_directories() -> io::Result<()> {
    // SAFETY: takes a number alone; the thread's directories are what they were.
    let rc = unsafe { libc::unshare(libc::CLONE_FS) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A directory below the root that the thread has, for a mount to be attached at. Whoever else is there owns the path: no link
/// on it is followed. What is missing of it is made, and is the user's and group's with this number.
///
/// # Errors
/// What the kernel answered: `ELOOP` where a link lies on the way, `ENOTDIR` where something else does.
pub fn place(path: &str, owner: u32) -> rustix::io::Result<OwnedFd> {
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

/// Attaches a mount that is attached nowhere at such a directory.
///
/// # Errors
/// What move_mount(2) answered.
pub fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}
