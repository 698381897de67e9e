//! Directories of the sandbox, walked by what they are: no path is trusted to mean the same twice.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, FsWord, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// File systems whose files are the kernel's own words: nothing is copied there, whatever links lead to them.
const KERNELS: [FsWord; 10] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6e73_6673, // nsfs
];

/// Whose something new is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    /// Who makes it.
    pub(crate) const ROOT: Self = Self { uid: 0, gid: 0 };

    /// Gives an open file to whom it belongs, where we may.
    pub(super) fn take(self, file: impl AsFd) -> rustix::io::Result<()> {
        if is_root() {
            rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        }
        Ok(())
    }

    /// The same for a link.
    pub(super) fn take_entry(self, dir: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
        if is_root() {
            let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
            rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The root of the sandbox.
pub(super) fn root() -> rustix::io::Result<OwnedFd> {
    open(CWD, b"/")
}

/// Opens a directory. Links are followed, but for those of the kernel's that lead to what a process holds open.
pub(super) fn open(at: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat2(at, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    if KERNELS.contains(&rustix::fs::fstatfs(&dir)?.f_type) {
        return Err(Errno::PERM);
    }
    Ok(dir)
}

/// What lies at a name, the last link followed; none where nothing does.
pub(super) fn leads_to(at: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Option<FileType>> {
    // A link to what a process holds open is no place to begin with.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(at, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode))),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(Errno::LOOP) if is_round(at, path) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether links lead round in circles, and not to what a process holds open: the kernel says the same of both.
fn is_round(at: BorrowedFd<'_>, path: &[u8]) -> bool {
    rustix::fs::statat(at, path, AtFlags::empty()).is_err_and(|error| error == Errno::LOOP)
}

/// Makes a directory, if there is none, and opens it. Says whether it was made; then it is `owner`'s.
///
/// # Errors
/// `ENOTDIR`, where something else is in its place.
pub(super) fn make(at: BorrowedFd<'_>, name: &[u8], owner: Owner) -> rustix::io::Result<(OwnedFd, bool)> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            let dir = rustix::fs::openat(
                at,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            owner.take(&dir)?;
            Ok((dir, true))
        }
        Err(Errno::EXIST) => match open(at, name) {
            Ok(dir) => Ok((dir, false)),
            // A link that leads nowhere.
            Err(Errno::NOENT) => Err(Errno::NOTDIR),
            Err(Errno::LOOP) if is_round(at, name) => Err(Errno::NOTDIR),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Makes a directory and those above it, as far as they are missing, as root's but for the last, and opens it.
pub(super) fn make_all(path: &[u8], last: Owner) -> rustix::io::Result<OwnedFd> {
    let mut dir = root()?;
    let mut parts = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .peekable();
    while let Some(part) = parts.next() {
        if part == b".." {
            dir = open(dir.as_fd(), part)?;
            continue;
        }
        let owner = if parts.peek().is_none() { last } else { Owner::ROOT };
        dir = make(dir.as_fd(), part, owner)?.0;
    }
    Ok(dir)
}
