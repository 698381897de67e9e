//! What is answered.
use linux::handle::Handle;
use rustix::fs::{Stat, StatVfs};
use rustix::io::Errno;

use super::{MAJOR, MINOR, PAGE_BYTES, PIECE_BYTES_MAX};

/// Requests that a kernel has under way without anybody who waits for them.
const BACKGROUND_MAX: u16 = 16;
/// From so many on it does not begin more by itself.
const CONGESTED_FROM: u16 = 12;
/// What of what kernels offer is taken: reads and writes in large pieces, several at once; what was read is thrown away where the
/// file has another time or size; names are looked up beside one another.
const TAKEN: u32 = 1 << 0 | 1 << 5 | 1 << 12 | 1 << 18 | 1 << 22;
/// How long a kernel knows how a file is: to the next tick of its clock, which spares it to ask for what it was just told. Whoever
/// opens a file by its name, or looks at it so, asks anew.
const VALID_NS: u32 = 1;
/// Kernels before it have other structures.
const MINOR_MIN: u32 = 31;

/// A reply, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply(Vec<u8>);

impl Reply {
    fn begun(unique: u64, error: i32, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(16 + room);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&error.to_ne_bytes());
        bytes.extend_from_slice(&unique.to_ne_bytes());
        Self(bytes)
    }

    /// The bytes.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.0;
        let length = u32::try_from(bytes.len()).expect("a reply is bounded");
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// That it was not done.
    pub(crate) fn refused(unique: u64, errno: Errno) -> Self {
        Self::begun(unique, -errno.raw_os_error(), 0)
    }

    /// That it was done, and nothing more.
    pub(crate) fn done(unique: u64) -> Self {
        Self::begun(unique, 0, 0)
    }

    /// Bytes of a file, or of a link.
    pub(crate) fn bytes(unique: u64, bytes: &[u8]) -> Self {
        let mut reply = Self::begun(unique, 0, bytes.len());
        reply.0.extend_from_slice(bytes);
        reply
    }

    /// What both sides do.
    pub(crate) fn init(unique: u64, major: u32, minor: u32, read_ahead: u32, flags: u32) -> Self {
        if major < MAJOR || (major == MAJOR && minor < MINOR_MIN) {
            return Self::refused(unique, Errno::PROTO);
        }
        let reply = Self::begun(unique, 0, 64).u32(MAJOR).u32(MINOR);
        if major > MAJOR {
            // It asks again with ours.
            return reply;
        }
        let pages = u16::try_from(PIECE_BYTES_MAX / PAGE_BYTES).expect("some tens of pages");
        let reply = reply
            .u32(read_ahead.min(PIECE_BYTES_MAX))
            .u32(flags & TAKEN)
            .u16(BACKGROUND_MAX)
            .u16(CONGESTED_FROM)
            .u32(PIECE_BYTES_MAX)
            // Nanoseconds.
            .u32(1)
            .u16(pages)
            .u16(0);
        (0..8).fold(reply, |reply, _| reply.u32(0))
    }

    /// What has a name: its number, and how it is.
    pub(crate) fn entry(unique: u64, attributes: &Attributes) -> Self {
        Self::begun(unique, 0, 128).with_entry(attributes)
    }

    /// The same of what was just made, opened.
    pub(crate) fn created(unique: u64, attributes: &Attributes, file: u64) -> Self {
        Self::begun(unique, 0, 144).with_entry(attributes).with_open(file)
    }

    /// A file that was opened.
    pub(crate) fn opened(unique: u64, file: u64) -> Self {
        Self::begun(unique, 0, 16).with_open(file)
    }

    /// How a file is.
    pub(crate) fn attributes(unique: u64, attributes: &Attributes) -> Self {
        Self::begun(unique, 0, 104)
            .u64(0)
            .u32(VALID_NS)
            .u32(0)
            .with(attributes)
    }

    /// How much was written.
    pub(crate) fn written(unique: u64, count: usize) -> Self {
        let count = u32::try_from(count).expect("no more than was asked");
        Self::begun(unique, 0, 8).u32(count).u32(0)
    }

    /// Where something was found.
    pub(crate) fn found(unique: u64, offset: u64) -> Self {
        Self::begun(unique, 0, 8).u64(offset)
    }

    /// How much room there is.
    pub(crate) fn space(unique: u64, space: &Space) -> Self {
        let Space(about) = space;
        let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let reply = Self::begun(unique, 0, 80)
            .u64(about.f_blocks)
            .u64(about.f_bfree)
            .u64(about.f_bavail)
            .u64(about.f_files)
            .u64(about.f_ffree)
            .u32(short(about.f_bsize))
            .u32(short(about.f_namemax))
            .u32(short(about.f_frsize));
        (0..7).fold(reply, |reply, _| reply.u32(0))
    }

    fn with_entry(self, attributes: &Attributes) -> Self {
        let Attributes { handle, number, .. } = attributes;
        self.u64(*number)
            .u64(u64::from(handle.generation))
            // A name is valid for no time: others have the volume too.
            .u64(0)
            .u64(0)
            .u32(0)
            .u32(VALID_NS)
            .with(attributes)
    }

    fn with_open(self, file: u64) -> Self {
        self.u64(file).u64(0)
    }

    fn with(self, Attributes { stat, .. }: &Attributes) -> Self {
        let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let nanoseconds = |value: u64| u32::try_from(value).unwrap_or(0);
        self.u64(stat.st_ino)
            .u64(u64::try_from(stat.st_size).unwrap_or(0))
            .u64(u64::try_from(stat.st_blocks).unwrap_or(0))
            .u64(stat.st_atime.cast_unsigned())
            .u64(stat.st_mtime.cast_unsigned())
            .u64(stat.st_ctime.cast_unsigned())
            .u32(nanoseconds(stat.st_atime_nsec))
            .u32(nanoseconds(stat.st_mtime_nsec))
            .u32(nanoseconds(stat.st_ctime_nsec))
            .u32(stat.st_mode)
            .u32(short(stat.st_nlink))
            .u32(stat.st_uid)
            .u32(stat.st_gid)
            // No device is one here.
            .u32(0)
            .u32(u32::try_from(stat.st_blksize).unwrap_or(PAGE_BYTES))
            .u32(0)
    }
}

/// How a file is, and what it is called by numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) handle: Handle,
    /// As requests have it.
    pub(crate) number: u64,
    pub(crate) stat: Stat,
}

/// What a file system holds and has room for.
pub(crate) struct Space(pub(crate) StatVfs);

/// Names of a directory, as many as fit.
#[derive(Debug)]
pub(crate) struct Entries {
    reply: Reply,
    room: usize,
}

impl Entries {
    /// None yet, of at most so many bytes.
    pub(crate) fn new(unique: u64, size: u32) -> Self {
        let room = size as usize;
        Self {
            reply: Reply::begun(unique, 0, room),
            room,
        }
    }

    /// Adds one, after which a reader goes on at `next`. Says whether it fitted.
    pub(crate) fn push(&mut self, inode: u64, next: u64, kind: u32, name: &[u8]) -> bool {
        let length = 24 + name.len().next_multiple_of(8);
        let Some(left) = self.room.checked_sub(length) else {
            return false;
        };
        self.room = left;
        let Self {
            reply: Reply(bytes), ..
        } = self;
        bytes.extend_from_slice(&inode.to_ne_bytes());
        bytes.extend_from_slice(&next.to_ne_bytes());
        let length = u32::try_from(name.len()).expect("names are short");
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        true
    }

    /// With all that were added.
    pub(crate) fn into_reply(self) -> Reply {
        self.reply
    }
}
