//! Paths within a volume. Whoever has the volume may change what lies in it at any moment, so that a path is walked by the
//! kernel alone, which leads no link out of the volume's root (`openat2(2)`).
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use ports::volumes::{FileError, FileKind, FileStat, Ownership};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::store::OWNER;

/// PATH_MAX of Linux, with its end.
const PATH_BYTES_MAX: usize = 4096;
/// NAME_MAX of ext4.
const NAME_BYTES_MAX: usize = 255;
/// Users of a sandbox.
const USER_MAX: u32 = 65_535;
/// So often is a path walked anew over which something was renamed. A rename anywhere counts, so that a sandbox which
/// renames without end, and lays a long way of links, could keep a walk from its end for ever.
const WALKS_MAX: usize = 256;

/// A clean path from the root of a volume: names without `.`, `..` and links' meanings, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Within(Vec<String>);

impl Within {
    /// Takes a path as if it began at the root of the volume.
    pub(crate) fn parse(path: &str) -> Result<Self, FileError> {
        let invalid = |why: &str| Err(FileError::Invalid(format!("path '{path}' {why}")));
        if path.len() >= PATH_BYTES_MAX {
            return Err(FileError::Invalid(format!(
                "a path of {} bytes: at most {} are possible",
                path.len(),
                PATH_BYTES_MAX - 1
            )));
        }
        if path.contains('\0') {
            return Err(FileError::Invalid("a path holds a zero byte".to_owned()));
        }
        let names: Vec<&str> = path
            .split('/')
            .filter(|name| !matches!(*name, "" | "."))
            .collect();
        if names.contains(&"..") {
            return invalid("has a part '..': name what it leads to");
        }
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return invalid("has a name that is too long");
        }
        Ok(Self(names.into_iter().map(str::to_owned).collect()))
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last name; that of the root is `/`.
    pub(crate) fn name(&self) -> &str {
        self.0.last().map_or("/", String::as_str)
    }

    /// From the root, absolute.
    pub(crate) fn absolute(&self) -> String {
        format!("/{}", self.0.join("/"))
    }

    /// What it is told to the kernel as.
    fn relative(&self) -> String {
        if self.is_root() {
            ".".to_owned()
        } else {
            self.0.join("/")
        }
    }

    /// The directory above it; that of the root is the root.
    pub(crate) fn above(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// What lies below it.
    pub(crate) fn below(&self, name: &str) -> Self {
        let mut names = self.0.clone();
        names.push(name.to_owned());
        Self(names)
    }

    /// This path and those above it, the root first and left out.
    pub(crate) fn steps(&self) -> impl Iterator<Item = Self> {
        (1..=self.0.len()).map(|length| Self(self.0[..length].to_vec()))
    }

    /// Opens what lies there. No link leads out of the volume, nor does a mount.
    pub(crate) fn open(&self, root: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, FileError> {
        self.try_open(root, flags).map_err(|errno| self.refused(errno))
    }

    pub(crate) fn try_open(&self, root: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let path = self.relative();
        let walk = || rustix::fs::openat2(root, &*path, flags | OFlags::CLOEXEC, Mode::empty(), within);
        until_walked(walk)
    }

    /// The directory there, to find what lies in it.
    pub(crate) fn open_dir(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, FileError> {
        self.open(root, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The thing itself, be it a link.
    pub(crate) fn open_itself(&self, root: BorrowedFd<'_>) -> Result<OwnedFd, FileError> {
        self.open(root, OFlags::PATH | OFlags::NOFOLLOW)
    }

    /// How what the kernel said is told.
    pub(crate) fn refused(&self, errno: Errno) -> FileError {
        let path = self.absolute();
        match errno {
            Errno::NOENT => FileError::NotFound(path),
            Errno::EXIST | Errno::NOTEMPTY => FileError::Exists(path),
            Errno::NOTDIR => FileError::WrongKind {
                path,
                wanted: "a directory",
            },
            Errno::ISDIR | Errno::NXIO | Errno::ACCESS => FileError::WrongKind {
                path,
                wanted: "a file",
            },
            Errno::NOSPC | Errno::DQUOT | Errno::MLINK => FileError::Full,
            Errno::LOOP => FileError::Invalid(format!("path '{path}' leads through too many links")),
            Errno::NAMETOOLONG => FileError::Invalid(format!("path '{path}' is too long")),
            Errno::XDEV => FileError::Invalid(format!("path '{path}' leads out of the volume")),
            Errno::TIMEDOUT => FileError::Invalid(format!(
                "path '{path}' could not be removed in time; what is gone stays gone: remove it again for the rest"
            )),
            Errno::AGAIN => FileError::Invalid(format!(
                "path '{path}' could not be walked, for all that is renamed meanwhile; try again"
            )),
            errno => FileError::Failed {
                step: "using a file of a volume",
                source: errno.into(),
            },
        }
    }

    /// What lies there, by a descriptor of it.
    pub(crate) fn stat(&self, thing: impl AsFd) -> Result<FileStat, FileError> {
        let about = rustix::fs::fstat(&thing).map_err(|errno| self.refused(errno))?;
        let kind = match FileType::from_raw_mode(about.st_mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            _ => FileKind::Other,
        };
        let target = (kind == FileKind::Symlink)
            .then(|| rustix::fs::readlinkat(&thing, "", Vec::new()).ok())
            .flatten()
            .map(|target| target.to_string_lossy().into_owned());
        Ok(FileStat {
            name: self.name().to_owned(),
            path: self.absolute(),
            kind,
            size: u64::try_from(about.st_size).unwrap_or(0),
            mode: about.st_mode,
            uid: about.st_uid,
            gid: about.st_gid,
            atime: time(about.st_atime, about.st_atime_nsec),
            mtime: time(about.st_mtime, about.st_mtime_nsec),
            ctime: time(about.st_ctime, about.st_ctime_nsec),
            target,
        })
    }
}

/// Walks a path until nothing was renamed meanwhile: where something was, the kernel does not say whether a step led out.
fn until_walked<T>(mut walk: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 1..WALKS_MAX {
        match walk() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            walked => return walked,
        }
    }
    walk()
}

/// What a calendar can tell: the years 1 to 9999, in seconds.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// A time that whoever has the volume may have set to anything.
fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let seconds = seconds.clamp(*SECONDS.start(), *SECONDS.end());
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 {
        SystemTime::UNIX_EPOCH - whole
    } else {
        SystemTime::UNIX_EPOCH + whole
    };
    second + Duration::from_nanos(nanoseconds.min(999_999_999))
}

/// Refuses owners and permissions that no sandbox could have.
pub(crate) fn checked(ownership: Ownership) -> Result<Ownership, FileError> {
    for (what, id) in [("user", ownership.uid), ("group", ownership.gid)] {
        if let Some(id) = id.filter(|id| *id > USER_MAX) {
            return Err(FileError::Invalid(format!("{what} {id}: they end at {USER_MAX}")));
        }
    }
    match ownership.mode {
        Some(mode) if mode >= 0o10000 => Err(FileError::Invalid(format!(
            "mode {mode:o}: permissions end at 7777"
        ))),
        _ => Ok(ownership),
    }
}

/// What something new belongs to, where nobody said it.
pub(crate) fn or_usual(ownership: Ownership, mode: u32) -> Ownership {
    Ownership {
        uid: ownership.uid.or(Some(OWNER)),
        gid: ownership.gid.or(Some(OWNER)),
        mode: ownership.mode.or(Some(mode)),
    }
}

/// Gives a thing an owner, then permissions, which a change of owner takes some of.
pub(crate) fn give(thing: impl AsFd, ownership: Ownership) -> rustix::io::Result<()> {
    let (uid, gid) = (ownership.uid.map(Uid::from_raw), ownership.gid.map(Gid::from_raw));
    if uid.is_some() || gid.is_some() {
        rustix::fs::chownat(&thing, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    if let Some(mode) = ownership.mode {
        // By its name among our descriptors: one of a place alone has no other way.
        let itself = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&thing.as_fd())
        );
        rustix::fs::chmod(itself, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_at_the_root_of_the_volume_however_they_are_written() {
        for (path, expected) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("//a/./b/", "/a/b"),
            ("/a b/ü", "/a b/ü"),
        ] {
            assert_eq!(Within::parse(path).unwrap().absolute(), expected, "{path}");
        }
        let long = "x".repeat(256);
        let longer = "x/".repeat(2048);
        for path in ["..", "/a/../b", "a\0b", &long, &longer] {
            assert!(
                matches!(Within::parse(path), Err(FileError::Invalid(_))),
                "{path}"
            );
        }
    }

    #[test]
    fn a_path_over_which_somebody_renames_without_end_is_given_up() {
        let mut walks = 0;
        let walked: rustix::io::Result<()> = until_walked(|| {
            walks += 1;
            Err(Errno::AGAIN)
        });
        assert_eq!((walked, walks), (Err(Errno::AGAIN), WALKS_MAX));
        let told = Within::parse("/a").unwrap().refused(Errno::AGAIN);
        assert!(matches!(told, FileError::Invalid(_)), "{told}");
        let mut few = [Err(Errno::AGAIN), Err(Errno::INTR), Ok(7)].into_iter();
        assert_eq!(until_walked(|| few.next().unwrap()), Ok(7));
    }

    #[test]
    fn times_are_such_as_a_calendar_can_tell() {
        let last = SystemTime::UNIX_EPOCH + Duration::new(253_402_300_799, 999_999_999);
        assert_eq!(time(i64::MAX, u64::MAX), last);
        assert!(time(i64::MIN, 0) < SystemTime::UNIX_EPOCH);
        assert_eq!(time(-1, 0), SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(time(1, 2), SystemTime::UNIX_EPOCH + Duration::new(1, 2));
    }
}
