//! What is copied, put where it belongs: one entry after the other, each in the directory that was found for it.
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::place::{self, Owner};

/// One piece of a file on its way to the disk.
const PIECE_BYTES: usize = 128 * 1024;
/// What the directories that were made may take in memory.
const DIRS_BYTES_MAX: usize = 32 << 20;
const DIR_OVERHEAD_BYTES: usize = 96;
/// Somebody in the sandbox puts something in the way again and again.
const ATTEMPTS_MAX: usize = 8;

/// What a new file or directory gets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) mode: u32,
    /// Seconds since the epoch.
    pub(super) modified: i64,
}

/// Why something is not put in its place.
#[derive(Debug)]
pub(crate) enum PutError {
    /// What is copied cannot be read.
    Source(io::Error),
    /// The disk, or what is in the way.
    Place(io::Error),
    /// A directory that is not empty, where a file or link is to be.
    InTheWay,
    /// A second name for what was not copied.
    NotCopied,
    /// Too many directories to be remembered.
    TooMany,
}

impl<E: Into<io::Error>> From<E> for PutError {
    fn from(error: E) -> Self {
        Self::Place(error.into())
    }
}

/// A directory that is being filled.
pub(super) struct Tree {
    root: OwnedFd,
    owner: Owner,
    /// Of directories that nothing else is said of.
    mode: Option<u32>,
    /// Where the last entry was put, as most entries lie beside the one before.
    at: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that were made here, and what they get at the end: what is in them changes their times, and they may
    /// become unwritable.
    made: BTreeMap<Vec<u8>, Option<Facts>>,
    made_bytes: usize,
    /// The files that were put here, as hashes of their paths: what may have a second name.
    files: HashSet<u64>,
    hasher: RandomState,
    buffer: Vec<u8>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, owner: Owner, mode: Option<u32>) -> Self {
        Self {
            root,
            owner,
            mode,
            at: None,
            made: BTreeMap::new(),
            made_bytes: 0,
            files: HashSet::new(),
            hasher: RandomState::new(),
            buffer: Vec::new(),
        }
    }

    /// A directory. One that is there already stays as it is, and a link to one stays a link, unless it is of what is
    /// copied itself.
    pub(super) fn directory(&mut self, path: &[u8], facts: Facts, was_link: bool) -> Result<(), PutError> {
        if !path.is_empty() {
            if was_link {
                let (dir, name) = split(path);
                self.enter(dir)?;
                match rustix::fs::unlinkat(self.here(), name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.enter(path)?;
            if let Some(made) = self.made.get_mut(path) {
                *made = Some(facts);
            }
        }
        Ok(())
    }

    /// A file. Whatever was there before is another file afterwards, also for those who have it open.
    pub(super) fn file(
        &mut self,
        path: &[u8],
        facts: Facts,
        content: &mut impl Read,
    ) -> Result<u64, PutError> {
        let (dir, name) = split(path);
        self.enter(dir)?;
        let parent = self.here();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make =
            |parent: BorrowedFd<'_>| rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let (file, was_directory) = instead(parent, name, make)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(PIECE_BYTES, 0);
        let written = fill(file, facts, self.owner, content, &mut buffer);
        self.buffer = buffer;
        if written.is_err() {
            let _ = rustix::fs::unlinkat(self.here(), name, AtFlags::empty());
        } else {
            self.files.insert(self.hasher.hash_one(path));
        }
        self.forget_directory(path, was_directory);
        written
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8], modified: i64) -> Result<(), PutError> {
        let (dir, name) = split(path);
        self.enter(dir)?;
        let parent = self.here();
        let ((), was_directory) =
            instead(parent, name, |parent| rustix::fs::symlinkat(target, parent, name))?;
        self.owner.take_entry(parent, name)?;
        rustix::fs::utimensat(parent, name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)?;
        self.files.remove(&self.hasher.hash_one(path));
        self.forget_directory(path, was_directory);
        Ok(())
    }

    /// A second name for a file that was put here.
    pub(super) fn same(&mut self, path: &[u8], other: &[u8]) -> Result<(), PutError> {
        if !self.files.contains(&self.hasher.hash_one(other)) {
            return Err(PutError::NotCopied);
        }
        if path == other {
            return Ok(());
        }
        let (other_dir, other_name) = split(other);
        self.enter(other_dir)?;
        let from = self.here().try_clone_to_owned()?;
        let (dir, name) = split(path);
        self.enter(dir)?;
        let parent = self.here();
        let make = |parent: BorrowedFd<'_>| {
            rustix::fs::linkat(from.as_fd(), other_name, parent, name, AtFlags::empty())
        };
        let ((), was_directory) = instead(parent, name, make)?;
        // Somebody in the sandbox may have put another file there since: it is a name of that, and nothing else.
        self.files.insert(self.hasher.hash_one(path));
        self.forget_directory(path, was_directory);
        Ok(())
    }

    /// Gives the directories that were made what they are to have.
    pub(super) fn finish(mut self) -> Result<(), PutError> {
        // The deepest first: a directory that cannot be entered any more holds nothing that is still to be changed.
        while let Some((path, facts)) = self.made.pop_last() {
            let (parent, name) = split(&path);
            let dir = match self.find(parent, name) {
                // Another name of the same directory led something else to its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                found => found?,
            };
            if let Some(mode) = facts.map(|facts| facts.mode).or(self.mode) {
                rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
            }
            if let Some(facts) = facts {
                rustix::fs::futimens(&dir, &times(facts.modified))?;
            }
        }
        Ok(())
    }

    fn find(&self, parent: &[u8], name: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |at: BorrowedFd<'_>| rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW, Mode::empty());
        if parent.is_empty() {
            return open(self.root.as_fd());
        }
        open(
            rustix::fs::openat2(
                &self.root,
                parent,
                flags,
                Mode::empty(),
                ResolveFlags::NO_MAGICLINKS,
            )?
            .as_fd(),
        )
    }

    /// Where we are.
    fn here(&self) -> BorrowedFd<'_> {
        self.at.as_ref().map_or(self.root.as_fd(), |(_, dir)| dir.as_fd())
    }

    /// Goes to a directory, which is made where it is missing. A file or a dangling link on the way gives way.
    fn enter(&mut self, path: &[u8]) -> Result<(), PutError> {
        if self.at.as_ref().map_or(&b""[..], |(here, _)| here) == path {
            return Ok(());
        }
        self.at = None;
        let mut dir: Option<OwnedFd> = None;
        let mut end = 0;
        while end < path.len() {
            let begin = if end == 0 { 0 } else { end + 1 };
            end = path[begin..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |length| begin + length);
            let here = dir.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let (next, is_new) = make_dir(here, &path[begin..end], self.owner)?;
            if is_new {
                self.made_bytes += end + DIR_OVERHEAD_BYTES;
                if self.made_bytes > DIRS_BYTES_MAX {
                    return Err(PutError::TooMany);
                }
                self.made.insert(path[..end].to_vec(), None);
            }
            dir = Some(next);
        }
        self.at = dir.map(|dir| (path.to_vec(), dir));
        Ok(())
    }

    fn forget_directory(&mut self, path: &[u8], was_directory: bool) {
        if was_directory {
            self.made.remove(path);
            // It was empty, so nobody is deeper in it.
            self.at = None;
        }
    }
}

/// Makes a directory; what is in its place and is neither one nor leads to one gives way.
fn make_dir(at: BorrowedFd<'_>, name: &[u8], owner: Owner) -> Result<(OwnedFd, bool), PutError> {
    for _ in 0..ATTEMPTS_MAX {
        match place::make(at, name, owner) {
            Err(Errno::NOTDIR) => match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            },
            made => return Ok(made?),
        }
    }
    Err(Errno::BUSY.into())
}

/// Makes something at a name. What is there gives way: but for a directory that is not empty. Says whether one gave way.
fn instead<T>(
    parent: BorrowedFd<'_>,
    name: &[u8],
    make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
) -> Result<(T, bool), PutError> {
    let mut was_directory = false;
    for _ in 0..ATTEMPTS_MAX {
        match make(parent) {
            Err(Errno::EXIST) => {}
            made => return Ok((made?, was_directory)),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) if is_directory(parent, name) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => was_directory = true,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => return Err(PutError::InTheWay),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

fn is_directory(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_dir())
}

/// Puts a file that nothing is in the way of: where a directory is, nothing is put.
pub(super) fn put_file(
    parent: BorrowedFd<'_>,
    name: &[u8],
    facts: Facts,
    owner: Owner,
    content: &mut impl Read,
) -> Result<u64, PutError> {
    refuse_directory(parent, name)?;
    Tree::new(parent.try_clone_to_owned()?, owner, None).file(name, facts, content)
}

/// The same for a link.
pub(super) fn put_link(
    parent: BorrowedFd<'_>,
    name: &[u8],
    target: &[u8],
    modified: i64,
    owner: Owner,
) -> Result<(), PutError> {
    refuse_directory(parent, name)?;
    Tree::new(parent.try_clone_to_owned()?, owner, None).link(name, target, modified)
}

fn refuse_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), PutError> {
    if is_directory(parent, name) {
        return Err(PutError::InTheWay);
    }
    Ok(())
}

/// Fills a file that was made a moment ago.
fn fill(
    file: OwnedFd,
    facts: Facts,
    owner: Owner,
    content: &mut impl Read,
    buffer: &mut [u8],
) -> Result<u64, PutError> {
    let mut file = File::from(file);
    let mut bytes = 0;
    loop {
        let read = match content.read(buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PutError::Source(error)),
        };
        file.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
    // In this order: a new owner takes set-user-id away.
    owner.take(&file)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(facts.mode))?;
    rustix::fs::futimens(&file, &times(facts.modified))?;
    Ok(bytes)
}

fn times(modified: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: modified,
            tv_nsec: 0,
        },
    }
}

/// A path's directory, and its name there.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}
