//! Files on the machine's disk, of which the machine may have made what it likes: no link is followed, no pipe waited for.
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The directory that the machine sees at a path, as it resolves links itself.
pub(crate) fn directory(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        path.trim_start_matches('/'),
        flags,
        Mode::empty(),
        within,
    )?)
}

/// The root that this process has now.
pub(crate) fn root() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, "/", flags, Mode::empty())?)
}

/// Sees to it that a file in a directory is a regular one with this text, whatever was there.
pub(crate) fn put(directory: impl AsFd, name: &str, text: &str) -> io::Result<()> {
    let directory = directory.as_fd();
    // Beside it, and then in its place: nobody inside finds half of it.
    let fresh = format!(".{name}.atoll");
    remove(directory, &fresh)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat(directory, fresh.as_str(), flags, mode)?;
    rustix::fs::fchmod(&file, mode)?;
    std::fs::File::from(file).write_all(text.as_bytes())?;
    match rustix::fs::renameat(directory, fresh.as_str(), directory, name) {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
            remove(directory, name)?;
            Ok(rustix::fs::renameat(directory, fresh.as_str(), directory, name)?)
        }
        renamed => Ok(renamed?),
    }
}

/// Removes what is not a directory with something in it.
fn remove(directory: impl AsFd, name: &str) -> io::Result<()> {
    let directory = directory.as_fd();
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => Ok(rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?),
        Err(error) => Err(error.into()),
    }
}
