//! What is asked.
use std::ffi::CStr;

use rustix::io::Errno;

use super::{PIECE_BYTES_MAX, REQUEST_BYTES_MAX};

/// NAME_MAX of ext4.
const NAME_BYTES_MAX: usize = 255;
/// PATH_MAX of Linux, without its end.
const TARGET_BYTES_MAX: usize = 4095;
const HEAD_BYTES: usize = 40;

/// Bytes that no kernel says: whoever sent them is not asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no request to a file system: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// By whom something is asked, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// The request's number; its reply has it too.
    pub(crate) unique: u64,
    /// The file that is asked of, or the directory in which a name is.
    pub(crate) node: u64,
    /// The user who asks, as the machine has it.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Init {
        major: u32,
        minor: u32,
        read_ahead: u32,
        flags: u32,
    },
    Lookup {
        name: &'a CStr,
    },
    /// A word that has no reply.
    Word,
    GetAttr {
        file: Option<u64>,
    },
    SetAttr(Change),
    ReadLink,
    Symlink {
        name: &'a CStr,
        target: &'a CStr,
    },
    MkNod {
        name: &'a CStr,
        mode: u32,
    },
    MkDir {
        name: &'a CStr,
        mode: u32,
    },
    Unlink {
        name: &'a CStr,
    },
    RmDir {
        name: &'a CStr,
    },
    Rename {
        name: &'a CStr,
        into: u64,
        new_name: &'a CStr,
        flags: u32,
    },
    Link {
        from: u64,
        name: &'a CStr,
    },
    Open,
    Read {
        file: u64,
        offset: u64,
        size: u32,
    },
    Write {
        file: u64,
        offset: u64,
        appends: bool,
        data: &'a [u8],
    },
    StatFs,
    Release {
        file: u64,
    },
    FSync {
        file: u64,
        data_alone: bool,
    },
    OpenDir,
    ReadDir {
        offset: u64,
        size: u32,
    },
    ReleaseDir,
    FSyncDir,
    Create {
        name: &'a CStr,
        mode: u32,
        exclusive: bool,
    },
    Allocate {
        file: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        file: u64,
        offset: u64,
        whence: u32,
    },
    /// The end of the file system, as its kernel sees it.
    Destroy,
    /// What this file system does not do.
    Other,
    /// What cannot be done, whatever the file system is.
    Impossible(Errno),
}

/// What is to be set of a file; what is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Change {
    pub(crate) file: Option<u64>,
    pub(crate) size: Option<u64>,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) accessed: Option<Time>,
    pub(crate) modified: Option<Time>,
}

/// A time that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    Now,
    At { seconds: i64, nanoseconds: u32 },
}

/// A request, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    pub(crate) head: Head,
    pub(crate) request: Request<'a>,
}

impl<'a> Asked<'a> {
    /// Of the bytes of one request, all of them.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(Malformed("it is too long"));
        }
        let mut rest = Rest(bytes);
        if rest.u32()? as usize != bytes.len() || bytes.len() < HEAD_BYTES {
            return Err(Malformed("it is not as long as it says"));
        }
        let kind = rest.u32()?;
        let head = Head {
            unique: rest.u64()?,
            node: rest.u64()?,
            uid: rest.u32()?,
            gid: rest.u32()?,
        };
        // Who it was among the machine's processes is nothing to us.
        rest.take(8)?;
        let request = match rest.request(kind) {
            Ok(request) => request,
            Err(Bad::Malformed(malformed)) => return Err(malformed),
            Err(Bad::Impossible(errno)) => Request::Impossible(errno),
        };
        Ok(Self { head, request })
    }
}

/// Why a request is none.
enum Bad {
    Malformed(Malformed),
    Impossible(Errno),
}

impl From<Malformed> for Bad {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let taken = self.0.split_at_checked(count).ok_or(Malformed("it ends early"))?;
        self.0 = taken.1;
        Ok(taken.0)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed("it ends early"))?;
        Ok(u32::from_ne_bytes(bytes))
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed("it ends early"))?;
        Ok(u64::from_ne_bytes(bytes))
    }
    fn text(&mut self) -> Result<&'a CStr, Malformed> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Malformed("a name has no end"))?;
        self.take(text.count_bytes() + 1)?;
        Ok(text)
    }
    /// A name of something in a directory: it leads nowhere else.
    fn name(&mut self) -> Result<&'a CStr, Bad> {
        let name = self.text()?;
        let bytes = name.to_bytes();
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Malformed("that is no name").into());
        }
        if bytes.len() > NAME_BYTES_MAX {
            return Err(Bad::Impossible(Errno::NAMETOOLONG));
        }
        Ok(name)
    }
    fn piece(&mut self) -> Result<u32, Malformed> {
        let size = self.u32()?;
        if size > PIECE_BYTES_MAX {
            return Err(Malformed("more is asked for at once than was agreed"));
        }
        Ok(size)
    }
    fn over<T>(&self, read: T) -> Result<T, Bad> {
        if self.0.is_empty() {
            Ok(read)
        } else {
            Err(Malformed("something follows it").into())
        }
    }

    fn request(&mut self, kind: u32) -> Result<Request<'a>, Bad> {
        let read = match kind {
            1 => Request::Lookup { name: self.name()? },
            // Forgetting, and an interruption: no file is remembered, and what was begun is done.
            2 | 36 | 42 => return Ok(Request::Word),
            3 => {
                let has_file = self.u32()? & 1 != 0;
                self.take(4)?;
                let file = self.u64()?;
                Request::GetAttr {
                    file: has_file.then_some(file),
                }
            }
            4 => Request::SetAttr(self.change()?),
            5 => Request::ReadLink,
            6 => {
                let (name, target) = (self.name()?, self.text()?);
                if !(1..=TARGET_BYTES_MAX).contains(&target.count_bytes()) {
                    return Err(Bad::Impossible(Errno::NAMETOOLONG));
                }
                Request::Symlink { name, target }
            }
            8 => {
                let mode = self.u32()?;
                self.take(12)?;
                Request::MkNod {
                    name: self.name()?,
                    mode,
                }
            }
            9 => {
                let mode = self.u32()?;
                self.take(4)?;
                Request::MkDir {
                    name: self.name()?,
                    mode,
                }
            }
            10 => Request::Unlink { name: self.name()? },
            11 => Request::RmDir { name: self.name()? },
            12 | 45 => {
                let into = self.u64()?;
                let flags = if kind == 45 { self.u32()? } else { 0 };
                self.take(if kind == 45 { 4 } else { 0 })?;
                Request::Rename {
                    name: self.name()?,
                    into,
                    new_name: self.name()?,
                    flags,
                }
            }
            13 => Request::Link {
                from: self.u64()?,
                name: self.name()?,
            },
            14 => {
                self.take(8)?;
                Request::Open
            }
            15 => {
                let (file, offset, size) = (self.u64()?, self.u64()?, self.piece()?);
                self.take(20)?;
                Request::Read { file, offset, size }
            }
            16 => self.write()?,
            17 => Request::StatFs,
            18 => {
                let file = self.u64()?;
                self.take(16)?;
                Request::Release { file }
            }
            20 | 30 => {
                let (file, flags) = (self.u64()?, self.u32()?);
                self.take(4)?;
                match kind {
                    20 => Request::FSync {
                        file,
                        data_alone: flags & 1 != 0,
                    },
                    _ => Request::FSyncDir,
                }
            }
            26 => {
                let init = Request::Init {
                    major: self.u32()?,
                    minor: self.u32()?,
                    read_ahead: self.u32()?,
                    flags: self.u32()?,
                };
                // Newer kernels say more.
                return Ok(init);
            }
            27 => {
                self.take(8)?;
                Request::OpenDir
            }
            28 => {
                self.take(8)?;
                let (offset, size) = (self.u64()?, self.piece()?);
                self.take(20)?;
                Request::ReadDir { offset, size }
            }
            29 => {
                self.take(24)?;
                Request::ReleaseDir
            }
            35 => {
                let (flags, mode) = (self.u32()?, self.u32()?);
                self.take(8)?;
                Request::Create {
                    name: self.name()?,
                    mode,
                    exclusive: flags & O_EXCL != 0,
                }
            }
            38 => Request::Destroy,
            43 => {
                let (file, offset, length, mode) = (self.u64()?, self.u64()?, self.u64()?, self.u32()?);
                self.take(4)?;
                Request::Allocate {
                    file,
                    offset,
                    length,
                    mode,
                }
            }
            46 => {
                let (file, offset, whence) = (self.u64()?, self.u64()?, self.u32()?);
                self.take(4)?;
                Request::Seek { file, offset, whence }
            }
            _ => return Ok(Request::Other),
        };
        self.over(read)
    }

    fn write(&mut self) -> Result<Request<'a>, Bad> {
        let (file, offset, size, how) = (self.u64()?, self.u64()?, self.piece()?, self.u32()?);
        self.take(8)?;
        let flags = self.u32()?;
        self.take(4)?;
        // Of a page that was mapped it is known where it lies, whoever else appends.
        let is_page = how & WRITE_CACHE != 0;
        Ok(Request::Write {
            file,
            offset,
            appends: flags & O_APPEND != 0 && !is_page,
            data: self.take(size as usize)?,
        })
    }

    fn change(&mut self) -> Result<Change, Malformed> {
        let valid = self.u32()?;
        self.take(4)?;
        let (file, size) = (self.u64()?, self.u64()?);
        // Whose lock it is.
        self.take(8)?;
        let (accessed, modified) = (self.u64()?, self.u64()?);
        // When the file itself was changed is the host's to know.
        self.take(8)?;
        let (accessed_ns, modified_ns) = (self.u32()?, self.u32()?);
        self.take(4)?;
        let mode = self.u32()?;
        self.take(4)?;
        let (uid, gid) = (self.u32()?, self.u32()?);
        self.take(4)?;
        let is = |bit: u32| valid & (1 << bit) != 0;
        let time = |bit: u32, now: u32, seconds: u64, nanoseconds: u32| {
            let at = Time::At {
                seconds: seconds.cast_signed(),
                nanoseconds,
            };
            is(bit).then_some(if is(now) { Time::Now } else { at })
        };
        Ok(Change {
            file: is(6).then_some(file),
            size: is(3).then_some(size),
            mode: is(0).then_some(mode),
            uid: is(1).then_some(uid),
            gid: is(2).then_some(gid),
            accessed: time(4, 7, accessed, accessed_ns),
            modified: time(5, 8, modified, modified_ns),
        })
    }
}

// As Linux has them on x86-64 and arm64 alike.
const O_EXCL: u32 = 0o200;
const O_APPEND: u32 = 0o2000;
/// `FUSE_WRITE_CACHE`.
const WRITE_CACHE: u32 = 1;

#[cfg(test)]
pub(crate) mod tests;
