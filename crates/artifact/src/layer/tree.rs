//! A directory that is filled from an archive, and that nothing of the archive leads out of.
//!
//! Every step is one name below a directory that is open, and never follows a link: a link in the way is read and walked by
//! these rules too, with the tree's root as its `/`. So nothing outside is ever named, whatever links the archive makes.
//! Nobody else writes here meanwhile.
use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use crate::tar::Time;

/// How many directories deep: each is an open file while it is worked in.
const DEPTH_MAX: usize = 256;
/// As many links as Linux follows for one path.
const LINKS_MAX: usize = 40;
/// Directories that are opened on all ways together: of two million entries, each thirty directories deep and none near the
/// last. A tar of a few MiB can say so many ways, through links of its own, that walking them takes days.
const STEPS_MAX: u64 = 1 << 26;
/// Names of directories that the archive only implies. Layers imply a handful, if any.
const IMPLIED_BYTES_MAX: usize = 8 << 20;
/// As overlayfs marks a directory that hides what lower layers have in it.
const OPAQUE: &str = "trusted.overlay.opaque";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Why a name could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    /// It leads somewhere where nothing may be.
    #[error("{0}")]
    Refused(&'static str),
    /// The file system said no.
    #[error("{0} failed")]
    Disk(&'static str, #[source] Errno),
}

type Done<T> = Result<T, TreeError>;

trait At<T> {
    fn at(self, step: &'static str) -> Done<T>;
}
impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: &'static str) -> Done<T> {
        self.map_err(|errno| match errno {
            Errno::NAMETOOLONG => TreeError::Refused("its name is too long"),
            errno => TreeError::Disk(step, errno),
        })
    }
}

/// What is set on everything that is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta<'a> {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: &'a [(String, Vec<u8>)],
}

/// A directory on the way to where it is worked.
struct Level {
    name: Vec<u8>,
    dir: OwnedFd,
    /// What its time is to be, once something in it was changed.
    mtime: Option<Timespec>,
}

/// The tree, and where in it the last entry was put: the next is near.
pub(super) struct Tree {
    /// The root first. All are real directories, each in the one before it.
    way: Vec<Level>,
    implied: BTreeSet<Vec<u8>>,
    implied_bytes: usize,
    steps_left: Cell<u64>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self::with_steps(root, STEPS_MAX)
    }

    fn with_steps(root: OwnedFd, steps: u64) -> Self {
        let root = Level {
            name: Vec::new(),
            dir: root,
            mtime: None,
        };
        Self {
            way: vec![root],
            implied: BTreeSet::new(),
            implied_bytes: 0,
            steps_left: Cell::new(steps),
        }
    }

    /// The root of it.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.way[0].dir.as_fd()
    }

    fn take_step(&self) -> Done<()> {
        let left = self.steps_left.get().checked_sub(1);
        self.steps_left.set(left.ok_or(TreeError::Refused(
            "the ways to the layer's entries are too long together",
        ))?);
        Ok(())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.way.last().expect("the root is never left").dir.as_fd()
    }

    /// Where it is worked, from the root on.
    fn path(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for part in self.way[1..]
            .iter()
            .map(|level| level.name.as_slice())
            .chain([name])
        {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        path
    }

    /// Something here is about to change: its time is put back when it is left.
    fn touch(&mut self) -> Done<()> {
        let level = self.way.last_mut().expect("the root is never left");
        if level.mtime.is_none() {
            let stat = rustix::fs::fstat(&level.dir).at("looking at a directory")?;
            level.mtime = Some(modified(&stat));
        }
        Ok(())
    }

    fn up(&mut self) -> Done<()> {
        let level = self.way.pop().expect("the root is never left");
        level
            .mtime
            .map_or(Ok(()), |time| set_time(level.dir.as_fd(), time))
    }

    fn back_to(&mut self, depth: usize) -> Done<()> {
        while self.way.len() > depth {
            self.up()?;
        }
        Ok(())
    }

    /// Goes to the directory of these names; what is missing on the way is made, and noted as implied.
    pub(super) fn go(&mut self, names: &[&[u8]]) -> Done<()> {
        let known = self.way[1..].iter().zip(names);
        let known = known.take_while(|(level, name)| level.name == **name).count();
        self.back_to(known + 1)?;
        let mut ahead: Vec<Vec<u8>> = names[known..].iter().rev().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                // A link says so. Above the root is the root.
                let depth = self.way.len();
                self.back_to((depth - 1).max(1))?;
                continue;
            }
            let Some(to) = self.step(&name)? else {
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(TreeError::Refused("too many links lead to it"));
            }
            if to.starts_with(b"/") {
                self.back_to(1)?;
            }
            ahead.extend(parts(&to).rev().map(<[u8]>::to_vec));
            if ahead.len() > 2 * DEPTH_MAX {
                return Err(TreeError::Refused("it lies too deep"));
            }
        }
        Ok(())
    }

    /// Into one directory below; or what a link says that is there instead.
    fn step(&mut self, name: &[u8]) -> Done<Option<Vec<u8>>> {
        self.take_step()?;
        if self.way.len() > DEPTH_MAX {
            return Err(TreeError::Refused("it lies too deep"));
        }
        match rustix::fs::openat(self.here(), name, DIRECTORY, Mode::empty()) {
            Ok(dir) => {
                self.enter(name, dir);
                return Ok(None);
            }
            Err(Errno::NOENT) => {
                self.imply(name)?;
                return self.make_implied(name).map(|()| None);
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno).at("opening a directory"),
        }
        let stat = self
            .stat(name)?
            .ok_or(TreeError::Refused("what led to it is gone"))?;
        if FileType::from_raw_mode(stat.st_mode).is_symlink() {
            let to = rustix::fs::readlinkat(self.here(), name, Vec::new()).at("reading a link")?;
            return Ok(Some(to.into_bytes()));
        }
        if is_whiteout(&stat) {
            // What lower layers have there is hidden, and this layer puts a directory of its own in its place.
            self.remove(name)?;
            self.make_implied(name)?;
            self.hide_lower()?;
            return Ok(None);
        }
        Err(TreeError::Refused("what leads to it is no directory"))
    }

    fn enter(&mut self, name: &[u8], dir: OwnedFd) {
        self.way.push(Level {
            name: name.to_vec(),
            dir,
            mtime: None,
        });
    }

    fn imply(&mut self, name: &[u8]) -> Done<()> {
        let path = self.path(name);
        self.implied_bytes += path.len();
        if self.implied_bytes > IMPLIED_BYTES_MAX {
            return Err(TreeError::Refused(
                "too many directories have no entry of their own",
            ));
        }
        self.implied.insert(path);
        Ok(())
    }

    fn make_implied(&mut self, name: &[u8]) -> Done<()> {
        let mode = Mode::from_raw_mode(0o755);
        self.touch()?;
        rustix::fs::mkdirat(self.here(), name, mode).at("making a directory")?;
        let dir =
            rustix::fs::openat(self.here(), name, DIRECTORY, Mode::empty()).at("opening a directory")?;
        // Whatever the mask of this process is.
        rustix::fs::fchmod(&dir, mode).at("setting a directory's mode")?;
        self.enter(name, dir);
        self.way.last_mut().expect("it was entered").mtime = Some(timespec((0, 0)));
        Ok(())
    }

    fn stat(&self, name: &[u8]) -> Done<Option<Stat>> {
        match rustix::fs::statat(self.here(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).at("looking at a name"),
        }
    }

    /// The root's own entry.
    pub(super) fn set_root(&mut self, meta: Meta<'_>) -> Done<()> {
        self.back_to(1)?;
        self.dress(meta)
    }

    /// A directory here, new or not, and goes into it.
    pub(super) fn dir(&mut self, name: &[u8], meta: Meta<'_>) -> Done<()> {
        let mut hides = false;
        match self.stat(name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                let path = self.path(name);
                if self.implied.remove(&path) {
                    self.implied_bytes -= path.len();
                }
            }
            there => {
                if let Some(stat) = there {
                    hides = is_whiteout(&stat);
                    self.remove(name)?;
                }
                self.touch()?;
                rustix::fs::mkdirat(self.here(), name, Mode::RWXU).at("making a directory")?;
            }
        }
        if self.way.len() > DEPTH_MAX {
            return Err(TreeError::Refused("it lies too deep"));
        }
        let dir =
            rustix::fs::openat(self.here(), name, DIRECTORY, Mode::empty()).at("opening a directory")?;
        self.enter(name, dir);
        if hides {
            self.hide_lower()?;
        }
        self.dress(meta)
    }

    /// Sets what is said of the directory here; what was said before counts no more.
    fn dress(&mut self, meta: Meta<'_>) -> Done<()> {
        let here = self.here();
        undress(here)?;
        dress(here, meta)?;
        let time = timespec(meta.mtime);
        self.way.last_mut().expect("the root is never left").mtime = Some(time);
        set_time(self.here(), time)
    }

    /// An empty file here, in the place of whatever has its name.
    pub(super) fn file(&mut self, name: &[u8]) -> Done<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.make(
            name,
            |here| rustix::fs::openat(here, name, flags, Mode::RUSR | Mode::WUSR),
            "making a file",
        )
    }

    /// A symbolic link here.
    pub(super) fn symlink(&mut self, name: &[u8], to: &[u8], meta: Meta<'_>) -> Done<()> {
        self.make(
            name,
            |here| rustix::fs::symlinkat(to, here, name),
            "making a link",
        )?;
        self.own(name, meta)
    }

    /// A pipe here.
    pub(super) fn fifo(&mut self, name: &[u8], meta: Meta<'_>) -> Done<()> {
        let mode = Mode::from_raw_mode(meta.mode);
        self.make(
            name,
            |here| rustix::fs::mknodat(here, name, FileType::Fifo, mode, 0),
            "making a pipe",
        )?;
        self.own(name, meta)?;
        // It is no link: it was made just now.
        rustix::fs::chmodat(self.here(), name, mode, AtFlags::empty()).at("setting a pipe's mode")
    }

    fn own(&self, name: &[u8], meta: Meta<'_>) -> Done<()> {
        let (uid, gid) = owners(meta);
        rustix::fs::chownat(self.here(), name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).at("setting an owner")?;
        let times = times(timespec(meta.mtime));
        rustix::fs::utimensat(self.here(), name, &times, AtFlags::SYMLINK_NOFOLLOW).at("setting a time")
    }

    /// Another name here, of a file that this layer has.
    pub(super) fn link(&mut self, name: &[u8], to: &[&[u8]]) -> Done<()> {
        const GONE: TreeError = TreeError::Refused(
            "it is a hard link to a file that is not in this layer; build the image anew with the file in it",
        );
        let (last, parents) = to
            .split_last()
            .ok_or(TreeError::Refused("it is a hard link to the root"))?;
        let Some(dir) = self.find(parents)? else {
            return Err(GONE);
        };
        let there = match rustix::fs::statat(&dir, *last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(GONE),
            Err(errno) => return Err(errno).at("looking at what a hard link names"),
        };
        match FileType::from_raw_mode(there.st_mode) {
            FileType::RegularFile | FileType::Symlink => {}
            _ if is_whiteout(&there) => return Err(GONE),
            _ => {
                return Err(TreeError::Refused(
                    "it is a hard link to what is neither a file nor a link",
                ));
            }
        }
        if let Some(stat) = self.stat(name)?
            && (stat.st_dev, stat.st_ino) == (there.st_dev, there.st_ino)
        {
            // It has the name already.
            return Ok(());
        }
        self.make(
            name,
            |here| rustix::fs::linkat(&dir, *last, here, name, AtFlags::empty()),
            "making a hard link",
        )
    }

    /// A directory that is there, without going into it. Links on the way are walked within the tree.
    fn find(&self, names: &[&[u8]]) -> Done<Option<OwnedFd>> {
        let root = || {
            self.way[0]
                .dir
                .try_clone()
                .map_err(|_| TreeError::Disk("keeping a directory", Errno::MFILE))
        };
        let known = self.way[1..].iter().zip(names);
        let known = known.take_while(|(level, name)| level.name == **name).count();
        let mut way: Vec<OwnedFd> = Vec::new();
        for level in &self.way[..=known] {
            let dir = level.dir.try_clone();
            way.push(dir.map_err(|_| TreeError::Disk("keeping a directory", Errno::MFILE))?);
        }
        let mut ahead: Vec<Vec<u8>> = names[known..].iter().rev().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            self.take_step()?;
            let here = way.last().expect("the root is in it");
            match rustix::fs::openat(here, &name, DIRECTORY, Mode::empty()) {
                Ok(dir) if way.len() <= DEPTH_MAX => way.push(dir),
                Ok(_) => return Err(TreeError::Refused("it lies too deep")),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let Ok(to) = rustix::fs::readlinkat(here, &name, Vec::new()) else {
                        return Ok(None);
                    };
                    let to = to.into_bytes();
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(TreeError::Refused("too many links lead to it"));
                    }
                    if to.starts_with(b"/") {
                        way = vec![root()?];
                    }
                    ahead.extend(parts(&to).rev().map(<[u8]>::to_vec));
                    if ahead.len() > 2 * DEPTH_MAX {
                        return Err(TreeError::Refused("it lies too deep"));
                    }
                }
                Err(errno) => return Err(errno).at("opening a directory"),
            }
        }
        Ok(way.pop())
    }

    /// Hides what lower layers have of this name. What this layer itself has there stays, and hides it.
    pub(super) fn whiteout(&mut self, name: &[u8]) -> Done<()> {
        match self.stat(name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                let path = self.path(name);
                let dir = rustix::fs::openat(self.here(), name, DIRECTORY, Mode::empty())
                    .at("opening a directory")?;
                if self.implied.remove(&path) {
                    self.implied_bytes -= path.len();
                }
                opaque(dir.as_fd())
            }
            Some(_) => Ok(()),
            None => {
                self.touch()?;
                rustix::fs::mknodat(self.here(), name, FileType::CharacterDevice, Mode::empty(), 0)
                    .at("making a whiteout")
            }
        }
    }

    /// Hides whatever lower layers have in the directory here.
    pub(super) fn hide_lower(&mut self) -> Done<()> {
        opaque(self.here())
    }

    /// Whether it is worked in the root.
    pub(super) fn is_at_root(&self) -> bool {
        self.way.len() == 1
    }

    fn make<T>(
        &mut self,
        name: &[u8],
        made: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
        step: &'static str,
    ) -> Done<T> {
        self.touch()?;
        match made(self.here()) {
            Err(Errno::EXIST) => {
                self.remove(name)?;
                made(self.here()).at(step)
            }
            done => done.at(step),
        }
    }

    fn remove(&mut self, name: &[u8]) -> Done<()> {
        self.touch()?;
        match rustix::fs::unlinkat(self.here(), name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                let mut below = self.path(name);
                let gone = |path: &Vec<u8>| {
                    path.starts_with(&below) && matches!(path.get(below.len()), None | Some(b'/'))
                };
                let mut bytes = 0;
                let all: Vec<Vec<u8>> = self
                    .implied
                    .range(below.clone()..)
                    .take_while(|path| path.starts_with(&below))
                    .filter(|path| gone(path))
                    .cloned()
                    .collect();
                for path in all {
                    bytes += path.len();
                    self.implied.remove(&path);
                }
                self.implied_bytes -= bytes;
                below.clear();
                remove_dir(self.here(), name)
            }
            done => done.at("removing what an earlier entry made"),
        }
    }

    /// Leaves the tree, with all times as they are to be, and tells which directories were only implied.
    pub(super) fn finish(mut self) -> Done<BTreeSet<Vec<u8>>> {
        while !self.way.is_empty() {
            self.up()?;
        }
        Ok(self.implied)
    }
}

/// Sets everything but the time, in the order in which the kernel keeps it: a new owner clears modes and capabilities.
pub(super) fn dress(file: BorrowedFd<'_>, meta: Meta<'_>) -> Done<()> {
    let (uid, gid) = owners(meta);
    rustix::fs::fchown(file, uid, gid).at("setting an owner")?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode)).at("setting a mode")?;
    for (name, value) in meta.xattrs {
        rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty())
            .at("setting an extended attribute")?;
    }
    Ok(())
}

/// Sets the time of last change.
pub(super) fn set_mtime(file: BorrowedFd<'_>, time: Time) -> Done<()> {
    set_time(file, timespec(time))
}

fn set_time(file: BorrowedFd<'_>, time: Timespec) -> Done<()> {
    rustix::fs::futimens(file, &times(time)).at("setting a time")
}

fn undress(dir: BorrowedFd<'_>) -> Done<()> {
    let mut names = [0_u8; 4096];
    let Ok(bytes) = rustix::fs::flistxattr(dir, &mut names[..]) else {
        return Ok(());
    };
    let ours = names[..bytes]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."));
    for name in ours {
        rustix::fs::fremovexattr(dir, name).at("removing an extended attribute")?;
    }
    Ok(())
}

fn opaque(dir: BorrowedFd<'_>) -> Done<()> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty()).at("hiding what lower layers have")
}

fn remove_dir(parent: BorrowedFd<'_>, name: &[u8]) -> Done<()> {
    const STEP: &str = "removing what an earlier entry made";
    let dir = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()).at(STEP)?;
    for entry in rustix::fs::Dir::read_from(&dir).at(STEP)? {
        let entry = entry.at(STEP)?;
        let child = entry.file_name().to_bytes();
        if matches!(child, b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(&dir, child, AtFlags::empty()) {
            // As deep as trees are: no deeper than they may be made.
            Err(Errno::ISDIR | Errno::PERM) => remove_dir(dir.as_fd(), child)?,
            done => done.at(STEP)?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).at(STEP)
}

/// Names of a path, without those that mean nothing.
pub(super) fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
}

fn owners(meta: Meta<'_>) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (
        Some(rustix::fs::Uid::from_raw(meta.uid)),
        Some(rustix::fs::Gid::from_raw(meta.gid)),
    )
}

fn timespec((seconds, nanoseconds): Time) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    }
}

fn modified(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

fn times(time: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(steps: u64) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), DIRECTORY, Mode::empty()).unwrap();
        (dir, Tree::with_steps(root, steps))
    }

    #[test]
    fn ways_that_are_too_long_together_are_refused_however_short_each_is() {
        let (_dir, mut tree) = tree(10);
        let ways: [[&[u8]; 2]; 2] = [[b"a", b"b"], [b"c", b"d"]];
        let walked = (0..100).take_while(|at| tree.go(&ways[at % 2]).is_ok()).count();
        assert_eq!(walked, 5);
        assert!(matches!(tree.find(&[b"a"]), Err(TreeError::Refused(_))));
    }

    #[test]
    fn what_lies_near_the_last_entry_costs_nothing() {
        let (_dir, mut tree) = tree(2);
        for _ in 0..100 {
            tree.go(&[b"a", b"b"]).unwrap();
        }
    }
}
