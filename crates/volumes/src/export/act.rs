//! What is done of what is asked.
use std::ffi::CStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Timespec,
    Timestamps, Uid,
};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Done, Export, USER_MAX, set_mode};
use crate::fuse::{Change, Entries, Head, Reply, Request, Space, Time};

/// Names that are read from a directory at a time.
const NAMES_BYTES: usize = 16 * 1024;
/// `UTIME_NOW` and `UTIME_OMIT` of Linux.
const NOW: i64 = (1 << 30) - 1;
const OMIT: i64 = (1 << 30) - 2;

impl Export {
    pub(super) fn act(&self, head: Head, request: &Request<'_>, again: bool) -> Done<Reply> {
        let Head { unique, node, .. } = head;
        let done = |()| Reply::done(unique);
        match *request {
            Request::Init {
                major,
                minor,
                read_ahead,
                flags,
            } => Ok(Reply::init(unique, major, minor, read_ahead, flags)),
            Request::Lookup { name } => {
                let child = self.child(&self.dir(node)?, name)?;
                Ok(Reply::entry(unique, &self.attributes(child)?))
            }
            Request::GetAttr { file } => {
                let held = file.and_then(|file| self.opened.get(file, node));
                let attributes = match held {
                    Some(held) => self.attributes(&*held)?,
                    None => self.attributes(self.thing(node)?)?,
                };
                Ok(Reply::attributes(unique, &attributes))
            }
            Request::SetAttr(change) => self.change(head, &change),
            Request::ReadLink => {
                let target = rustix::fs::readlinkat(self.thing(node)?, "", Vec::new())?;
                Ok(Reply::bytes(unique, target.to_bytes()))
            }
            Request::Symlink { name, target } => {
                let made = |dir: &OwnedFd| rustix::fs::symlinkat(target, dir, name);
                self.make(head, name, FileType::Symlink, 0, again, made)
            }
            Request::MkNod { name, mode } => {
                let kind = match FileType::from_raw_mode(mode) {
                    kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => kind,
                    FileType::Unknown => FileType::RegularFile,
                    // Devices are the host's.
                    _ => return Err(Errno::PERM),
                };
                let made = |dir: &OwnedFd| rustix::fs::mknodat(dir, name, kind, Mode::empty(), 0);
                self.make(head, name, kind, mode, again, made)
            }
            Request::MkDir { name, mode } => {
                let made = |dir: &OwnedFd| rustix::fs::mkdirat(dir, name, Mode::RWXU);
                self.make(head, name, FileType::Directory, mode, again, made)
            }
            Request::Create {
                name,
                mode,
                exclusive,
            } => self.create(head, name, mode, exclusive, again),
            Request::Unlink { name } => self.unlink(node, name, AtFlags::empty(), again).map(done),
            Request::RmDir { name } => self.unlink(node, name, AtFlags::REMOVEDIR, again).map(done),
            Request::Rename {
                name,
                into,
                new_name,
                flags,
            } => self.rename(node, name, into, new_name, flags, again).map(done),
            Request::Link { from, name } => self.link(head, from, name, again),
            Request::Open => {
                let file = self.file(node, 0)?;
                Ok(Reply::opened(unique, self.opened.hold(node, file)))
            }
            Request::Read { file, offset, size } => {
                let bytes = read(&*self.file(node, file)?, offset, size as usize)?;
                Ok(Reply::bytes(unique, &bytes))
            }
            Request::Write {
                file,
                offset,
                appends,
                data,
            } => {
                let file = self.file(node, file)?;
                let count = if appends {
                    append(&*file, offset, data, again)?
                } else {
                    write(&*file, offset, data)?
                };
                Ok(Reply::written(unique, count))
            }
            Request::StatFs => Ok(Reply::space(unique, &Space(rustix::fs::fstatvfs(&self.root)?))),
            Request::Release { file } => {
                self.opened.let_go(file);
                Ok(Reply::done(unique))
            }
            Request::FSync { file, data_alone } => {
                let file = self.file(node, file)?;
                let synced = if data_alone {
                    rustix::fs::fdatasync(&*file)
                } else {
                    rustix::fs::fsync(&*file)
                };
                synced.map(done)
            }
            // They are read from where the last reader stopped, whoever opened them.
            Request::OpenDir => self.dir(node).map(|_| Reply::opened(unique, 0)),
            Request::ReadDir { offset, size } => self.names(head, offset, size),
            Request::ReleaseDir | Request::Destroy => Ok(Reply::done(unique)),
            Request::FSyncDir => {
                let dir = self.open(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
                rustix::fs::fsync(&dir).map(done)
            }
            Request::Allocate {
                file,
                offset,
                length,
                mode,
            } => {
                let known =
                    FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
                let mode = FallocateFlags::from_bits_retain(mode);
                if !known.contains(mode) {
                    return Err(Errno::OPNOTSUPP);
                }
                rustix::fs::fallocate(&*self.file(node, file)?, mode, offset, length).map(done)
            }
            Request::Seek { file, offset, whence } => {
                let from = match whence {
                    3 => SeekFrom::Data(offset),
                    4 => SeekFrom::Hole(offset),
                    _ => return Err(Errno::INVAL),
                };
                // Where the description stands means nothing: everybody says where they read.
                let found = rustix::fs::seek(&*self.file(node, file)?, from)?;
                Ok(Reply::found(unique, found))
            }
            // Kernels ask no second time.
            Request::Other => Err(Errno::NOSYS),
            Request::Impossible(errno) => Err(errno),
            Request::Word => Err(Errno::INVAL),
        }
    }

    fn change(&self, head: Head, change: &Change) -> Done<Reply> {
        let Head { unique, node, .. } = head;
        let held = change.file.and_then(|file| self.opened.get(file, node));
        let thing = match held {
            Some(held) => held,
            None => Arc::new(self.thing(node)?),
        };
        let thing = &*thing;
        if let Some(size) = change.size {
            rustix::fs::ftruncate(&*self.file(node, change.file.unwrap_or(0))?, size)?;
        }
        is_user(change.uid.into_iter().chain(change.gid))?;
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        if uid.is_some() || gid.is_some() {
            rustix::fs::chownat(thing, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        // After the owner, whose change takes some of it.
        if let Some(mode) = change.mode {
            set_mode(thing, mode)?;
        }
        if change.accessed.is_some() || change.modified.is_some() {
            let times = Timestamps {
                last_access: time(change.accessed)?,
                last_modification: time(change.modified)?,
            };
            rustix::fs::utimensat(thing, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(Reply::attributes(unique, &self.attributes(thing)?))
    }

    /// Makes something with a name that is free, and gives it to whoever asks.
    fn make(
        &self,
        head: Head,
        name: &CStr,
        kind: FileType,
        mode: u32,
        again: bool,
        made: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> Done<Reply> {
        is_user([head.uid, head.gid])?;
        let dir = self.dir(head.node)?;
        let is_there = match made(&dir) {
            Ok(()) => false,
            Err(Errno::EXIST) if again => true,
            Err(errno) => return Err(errno),
        };
        let child = self.child(&dir, name)?;
        if !is_there {
            self.give(&dir, &child, head, mode)?;
        } else if FileType::from_raw_mode(rustix::fs::fstat(&child)?.st_mode) != kind {
            return Err(Errno::EXIST);
        }
        Ok(Reply::entry(head.unique, &self.attributes(child)?))
    }

    fn create(&self, head: Head, name: &CStr, mode: u32, exclusive: bool, again: bool) -> Done<Reply> {
        is_user([head.uid, head.gid])?;
        let dir = self.dir(head.node)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else opens it until it is its owner's.
        let file = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
            Ok(file) => {
                self.give(&dir, &file, head, mode)?;
                Arc::new(file)
            }
            Err(Errno::EXIST) if again => {
                let number = self.attributes(self.child(&dir, name)?)?.number;
                self.file(number, 0)?
            }
            // Somebody made it just now: the kernel looks again, and whether its user may open it.
            Err(Errno::EXIST) if !exclusive => return Err(Errno::STALE),
            Err(errno) => return Err(errno),
        };
        let attributes = self.attributes(&*file)?;
        let word = self.opened.hold(attributes.number, file);
        Ok(Reply::created(head.unique, &attributes, word))
    }

    fn unlink(&self, node: u64, name: &CStr, flags: AtFlags, again: bool) -> Done<()> {
        match rustix::fs::unlinkat(self.dir(node)?, name, flags) {
            Err(Errno::NOENT) if again => Ok(()),
            unlinked => unlinked,
        }
    }

    fn rename(
        &self,
        node: u64,
        name: &CStr,
        into: u64,
        new_name: &CStr,
        flags: u32,
        again: bool,
    ) -> Done<()> {
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits_retain(flags);
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let (from, into) = (self.dir(node)?, self.dir(into)?);
        match rustix::fs::renameat_with(&from, name, &into, new_name, flags) {
            Err(Errno::NOENT) if again && !flags.contains(RenameFlags::EXCHANGE) => {
                self.child(&into, new_name).map(drop)
            }
            renamed => renamed,
        }
    }

    fn link(&self, head: Head, from: u64, name: &CStr, again: bool) -> Done<Reply> {
        let (thing, dir) = (self.thing(from)?, self.dir(head.node)?);
        let attributes = match rustix::fs::linkat(&thing, c"", &dir, name, AtFlags::EMPTY_PATH) {
            Ok(()) => self.attributes(&thing)?,
            Err(Errno::EXIST) if again => {
                let there = self.attributes(self.child(&dir, name)?)?;
                if there.handle != self.handle_of(from) {
                    return Err(Errno::EXIST);
                }
                there
            }
            Err(errno) => return Err(errno),
        };
        Ok(Reply::entry(head.unique, &attributes))
    }

    fn names(&self, head: Head, offset: u64, size: u32) -> Done<Reply> {
        let dir = self.open(head.node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::seek(&dir, SeekFrom::Start(offset))?;
        let mut entries = Entries::new(head.unique, size);
        let mut buffer = [MaybeUninit::uninit(); NAMES_BYTES];
        let mut read = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = read.next() {
            let entry = entry?;
            let kind = entry.file_type().as_raw_mode() >> 12;
            let name = entry.file_name().to_bytes();
            if !entries.push(entry.ino(), entry.next_entry_cookie(), kind, name) {
                break;
            }
        }
        Ok(entries.into_reply())
    }
}

/// Whether sandboxes have such users.
fn is_user(ids: impl IntoIterator<Item = u32>) -> Done<()> {
    if ids.into_iter().all(|id| id <= USER_MAX) {
        Ok(())
    } else {
        Err(Errno::OVERFLOW)
    }
}

fn time(time: Option<Time>) -> Done<Timespec> {
    let (tv_sec, tv_nsec) = match time {
        None => (0, OMIT),
        Some(Time::Now) => (0, NOW),
        Some(Time::At { nanoseconds, .. }) if nanoseconds >= 1_000_000_000 => return Err(Errno::INVAL),
        Some(Time::At { seconds, nanoseconds }) => (seconds, i64::from(nanoseconds)),
    };
    Ok(Timespec { tv_sec, tv_nsec })
}

/// Reads as much as there is: less is the end of the file to whoever asks.
fn read(file: impl AsFd, offset: u64, size: usize) -> Done<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut read = 0;
    while read < size {
        let at = offset.checked_add(read as u64).ok_or(Errno::INVAL)?;
        match rustix::io::pread(&file, &mut bytes[read..], at) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(Errno::INTR) => {}
            Err(_) if read > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

fn write(file: impl AsFd, offset: u64, data: &[u8]) -> Done<usize> {
    let mut written = 0;
    while written < data.len() {
        let at = offset.checked_add(written as u64).ok_or(Errno::FBIG)?;
        match rustix::io::pwrite(&file, &data[written..], at) {
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(_) if written > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(written)
}

/// Writes at the end, wherever that is by now: others append too. `offset` is where whoever asks takes it to be.
fn append(file: impl AsFd, offset: u64, data: &[u8], again: bool) -> Done<usize> {
    if again && !data.is_empty() && read(&file, offset, data.len())? == data {
        return Ok(data.len());
    }
    let mut written = 0;
    while written < data.len() {
        let piece = IoSlice::new(&data[written..]);
        match rustix::io::pwritev2(&file, &[piece], 0, ReadWriteFlags::APPEND) {
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(_) if written > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(written)
}
