use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// A directory here, held open: what it is called may come to mean another, what is open does not.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    /// For words alone.
    pub(super) path: PathBuf,
}

/// A file that is being written. Its name leads to it when it is whole, and it is gone if it does not become so.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    dir: &'a Dir,
    temporary: String,
    name: String,
    pub(super) file: tokio::fs::File,
    is_whole: bool,
}

/// Makes names of unfinished files different.
static COUNT: AtomicU64 = AtomicU64::new(0);

impl Dir {
    /// Opens a directory that a person named, through whatever links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::openat(CWD, path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// Makes a directory in this one if there is none, and opens it. Links are not followed.
    pub(super) fn enter(&self, name: &str, mode: u32) -> io::Result<Self> {
        debug_assert!(
            super::place::is_plain(name),
            "names are checked where they are read"
        );
        // Its owner must be able to fill it.
        let mode = Mode::from_raw_mode(mode & 0o777 | 0o700);
        match rustix::fs::mkdirat(&self.fd, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::openat(&self.fd, name, flags, Mode::empty())?,
            path: self.path.join(name),
        })
    }

    /// Begins a file in this one, in the place of what has its name.
    pub(super) fn write(&self, name: &str, mode: u32) -> io::Result<Writing<'_>> {
        debug_assert!(
            super::place::is_plain(name),
            "names are checked where they are read"
        );
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Those of a file that runs as somebody else stay behind.
        let mode = Mode::from_raw_mode(mode & 0o777 | 0o200);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".atoll-cp-{}-{number}", std::process::id());
        let fd = rustix::fs::openat(&self.fd, &temporary, flags, mode)?;
        Ok(Writing {
            dir: self,
            temporary,
            name: name.to_owned(),
            file: tokio::fs::File::from_std(fd.into()),
            is_whole: false,
        })
    }
}

impl Writing<'_> {
    /// Gives it its name.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let dir = self.dir.fd.as_fd();
        rustix::fs::renameat(dir, &self.temporary, dir, &self.name)?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = rustix::fs::unlinkat(&self.dir.fd, &self.temporary, AtFlags::empty());
        }
    }
}
