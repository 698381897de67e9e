//! Files that are taken from one tree into another.
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

/// Puts what is no directory where nothing is: the same file where that can be, a copy where not.
///
/// # Errors
/// `AlreadyExists`, or what the kernel answered.
pub fn put(from: &Path, onto: &Path, about: &fs::Metadata) -> io::Result<()> {
    match rustix::fs::linkat(CWD, from, CWD, onto, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        // Another file system, a file that is not ours, or one with as many names as it can have.
        Err(Errno::XDEV | Errno::PERM | Errno::MLINK) => {}
        Err(error) => return Err(error.into()),
    }
    let kind = about.file_type();
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, onto)?;
        return own(onto, about);
    }
    if kind.is_file() {
        fs::copy(from, onto)?;
        return dress(onto, about);
    }
    if kind.is_socket() {
        // Nobody listens on it.
        return Ok(());
    }
    let kind = FileType::from_raw_mode(about.mode());
    let made = rustix::fs::mknodat(CWD, onto, kind, Mode::from_raw_mode(about.mode()), about.rdev());
    match made {
        // Devices are root's to make; the guest has its own.
        Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => dress(onto, about),
    }
}

fn own(path: &Path, about: &fs::Metadata) -> io::Result<()> {
    match std::os::unix::fs::lchown(path, Some(about.uid()), Some(about.gid())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        owned => owned,
    }
}

/// Gives it the owner, mode and time of what it is a copy of.
///
/// # Errors
/// What the kernel answered.
pub fn dress(path: &Path, about: &fs::Metadata) -> io::Result<()> {
    own(path, about)?;
    fs::set_permissions(path, fs::Permissions::from_mode(about.mode() & 0o7777))?;
    let time = |sec, nsec| Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: time(about.atime(), about.atime_nsec()),
        last_modification: time(about.mtime(), about.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}
