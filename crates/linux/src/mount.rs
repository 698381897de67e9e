//! Attributes of mounts: what `rustix` does not offer of the mount API.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
