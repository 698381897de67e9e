//! The root of a build, looked at from outside: what is another in it than in the build it was made from, and all of it
//! as a tar.
//!
//! ```text
//! build ──seal──▶ layers ──▶ a view of each overlay, read-only, attached nowhere ──▶ walked
//! ```
//!
//! What lies in a root is its machine's: names, links, depth and sizes are as somebody wants them. Every path is walked by
//! the kernel within the view, and no link is followed; what is looked at, and what is kept in memory, is bounded.
//!
//! Which paths may have changed is told by the upper of the build's disk. What has become of each is told by the views of
//! both builds, so that white-outs, opaque directories and renamed ones mean what they mean to machines.
mod export;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::BuildId;
use ports::RuntimeError;
use ports::blobs::ByteStream;
use ports::root::{CHANGES_MAX, Change, ChangeKind, Changes};
use ports::volumes::FileKind;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use tokio::sync::OwnedSemaphorePermit;

use crate::build::{Build, Layer};
use crate::house::House;
use crate::pool::Pool;
use crate::root::view;
use crate::step::{At, Step};

/// Names that are looked at, changed or not.
const LOOKED_AT_MAX: usize = 4_000_000;
/// Directories that wait to be looked at.
const WAITING_MAX: usize = 200_000;
/// Bytes of files of the same size and time that are compared; beyond that they are told as changed.
const COMPARED_BYTES_MAX: u64 = 1 << 30;
/// Bytes that are compared at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Says what is another in the root of `build` than in that of `since`.
pub(crate) fn changes(
    house: &Arc<House>,
    pool: &Pool,
    _turn: OwnedSemaphorePermit,
    build: BuildId,
    since: BuildId,
) -> Result<Changes, RuntimeError> {
    let new = Laid::open(house, pool, build)?;
    let told = Laid::open(house, pool, since).and_then(|old| {
        let told = compare(&new, &old);
        old.close(house, pool);
        Ok(told?)
    });
    new.close(house, pool);
    told
}

fn compare(new: &Laid, old: &Laid) -> Result<Changes, Step> {
    let mut found = Found::default();
    for place in &new.places {
        let Some(before) = old.places.iter().find(|other| other.target == place.target) else {
            continue;
        };
        let comparison = Comparison {
            target: Path::new(&place.target),
            new: &place.view,
            old: &before.view,
        };
        // What the build's disk has may be new, or hide what was there; what the other's has may be gone without a trace.
        if let Some(upper) = &place.upper {
            comparison.walk(upper, Wanted::All, &mut found)?;
        }
        if let Some(upper) = &before.upper {
            comparison.walk(upper, Wanted::Deleted, &mut found)?;
        }
    }
    Ok(found.told())
}

/// The whole root of a build as a tar, made as it is read. What it is made from stays until it is read, or dropped.
pub(crate) fn export(
    house: &Arc<House>,
    pool: &Arc<Pool>,
    turn: OwnedSemaphorePermit,
    build: BuildId,
) -> Result<ByteStream, RuntimeError> {
    let laid = Laid {
        _turn: Some(turn),
        ..Laid::open(house, pool, build)?
    };
    Ok(export::stream(house, pool, laid))
}

/// A build whose overlays can be looked at.
struct Laid {
    places: Vec<Place>,
    /// Made for this alone.
    sealed: Option<BuildId>,
    /// Given back when nobody looks any more.
    _turn: Option<OwnedSemaphorePermit>,
}

/// One overlay.
struct Place {
    /// Where machines have it.
    target: String,
    view: View,
    /// What lies on the build's own disk of it, where it has one and there is something.
    upper: Option<View>,
}

impl Laid {
    fn open(house: &House, pool: &Pool, id: BuildId) -> Result<Self, RuntimeError> {
        let build = house.builds.get(id)?.ok_or(RuntimeError::NoBuild(id))?;
        if build.disk.is_none() {
            return Ok(Self {
                places: places(house, &build, None)?,
                sealed: None,
                _turn: None,
            });
        }
        let sealed = BuildId::random();
        let opened = {
            let _under_way = house.builds.begin(&[id, sealed]);
            house.seal(id, sealed).and_then(|()| {
                let build = house.builds.get(sealed)?.ok_or(RuntimeError::NoBuild(sealed))?;
                Ok(places(house, &build, Some(sealed))?)
            })
        };
        match opened {
            Ok(places) => Ok(Self {
                places,
                sealed: Some(sealed),
                _turn: None,
            }),
            Err(error) => {
                forget(house, pool, sealed);
                Err(error)
            }
        }
    }

    /// Gives back what was made to look at it.
    fn close(self, house: &House, pool: &Pool) {
        drop(self.places);
        if let Some(sealed) = self.sealed {
            forget(house, pool, sealed);
        }
    }
}

/// What cannot be removed here is a build that nothing names: it is collected.
fn forget(house: &House, pool: &Pool, sealed: BuildId) {
    if let Err(error) = house.remove_builds(pool, &[sealed]) {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, build = %sealed, "what was made to look at a root stays until it is collected");
    }
}

fn places(house: &House, build: &Build, own: Option<BuildId>) -> Result<Vec<Place>, Step> {
    let laid = house.lay(build)?;
    let place = |(overlay, laid): (&crate::build::Overlay, crate::root::Laid)| {
        let is_own = |layer: &Layer| matches!(layer, Layer::Sealed { sealed, .. } if Some(*sealed) == own);
        let upper = match (overlay.layers.first(), laid.layers.first()) {
            // By a mount of its own, as the rest of it: what is open on the place where a sealed disk is mounted, also in a
            // program that was just about to be run meanwhile, keeps it from being unmounted.
            (Some(layer), Some(path)) if is_own(layer) => {
                Some(View(view(&house.laying, vec![path.clone()])?))
            }
            _ => None,
        };
        Ok(Place {
            target: overlay.target.clone(),
            view: View(view(&house.laying, laid.layers)?),
            upper,
        })
    };
    build.overlays.iter().zip(laid).map(place).collect()
}

/// A directory below which nothing but its own is seen.
struct View(OwnedFd);

/// What there is at a path.
enum Seen {
    Nothing,
    Something(Stat),
    /// The path is longer than paths are.
    TooLong,
}

impl View {
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(
            &self.0,
            path,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            within,
        )
    }

    fn look(&self, path: &Path) -> Result<Seen, Step> {
        match self.open(path, OFlags::PATH) {
            Ok(there) => rustix::fs::fstat(&there)
                .map(Seen::Something)
                .at(format!("looking at /{}", path.display())),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Seen::Nothing),
            Err(Errno::NAMETOOLONG) => Ok(Seen::TooLong),
            Err(error) => Err(error).at(format!("looking at /{}", path.display())),
        }
    }

    /// What lies in a directory; nothing where there is none.
    fn list(&self, path: &Path) -> Result<Option<Dir>, Step> {
        let step = || format!("reading the directory /{}", path.display());
        match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => Dir::new(dir).map(Some).at(step()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(error).at(step()),
        }
    }

    fn file(&self, path: &Path) -> Result<File, Step> {
        self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
            .map(File::from)
            .at(format!("opening /{}", path.display()))
    }

    fn link(&self, path: &Path) -> Result<Vec<u8>, Step> {
        let step = || format!("reading the link /{}", path.display());
        let link = self.open(path, OFlags::PATH).at(step())?;
        let target = rustix::fs::readlinkat(&link, c"", Vec::new()).at(step())?;
        Ok(target.into_bytes())
    }

    /// Whether a directory of an upper does not show what lies below it: it is opaque, or was another before.
    fn hides(&self, path: &Path) -> bool {
        let Ok(dir) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) else {
            return false;
        };
        let mut value = [0_u8; 1];
        ["trusted.overlay.opaque", "trusted.overlay.redirect"]
            .iter()
            .any(|name| {
                !matches!(
                    rustix::fs::fgetxattr(&dir, *name, &mut value[..]),
                    Err(Errno::NODATA | Errno::NOTSUP)
                )
            })
    }
}

/// Names of a directory, without those of itself and its parent.
fn next_name(dir: &mut Dir) -> Option<Result<PathBuf, Step>> {
    loop {
        let name = match dir.next()? {
            Ok(entry) => entry.file_name().to_bytes().to_vec(),
            Err(error) => return Some(Err(error).at("reading a directory")),
        };
        if name != b"." && name != b".." {
            return Some(Ok(PathBuf::from(std::ffi::OsString::from_vec(name))));
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    entries: BTreeMap<Vec<u8>, (ChangeKind, FileKind)>,
    looked_at: usize,
    compared_bytes: u64,
    is_cut: bool,
}

impl Found {
    fn add(&mut self, target: &Path, path: &Path, kind: ChangeKind, file: FileKind) {
        let whole = target.join(path).into_os_string().into_vec();
        if self.entries.len() >= CHANGES_MAX && !self.entries.contains_key(&whole) {
            self.is_cut = true;
            return;
        }
        self.entries.insert(whole, (kind, file));
    }

    fn told(self) -> Changes {
        let told = |(path, (kind, file)): (Vec<u8>, _)| Change {
            path: String::from_utf8_lossy(&path).into_owned(),
            kind,
            file,
        };
        Changes {
            entries: self.entries.into_iter().map(told).collect(),
            is_cut: self.is_cut,
        }
    }
}

/// Two forms of what lies at one place.
struct Comparison<'a> {
    target: &'a Path,
    new: &'a View,
    old: &'a View,
}

/// Which changes are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Deleted,
}

/// A directory that is to be compared.
struct Waiting {
    path: PathBuf,
    /// All names in both views count, not only those that the upper has.
    whole: bool,
}

impl Comparison<'_> {
    fn walk(&self, upper: &View, wanted: Wanted, found: &mut Found) -> Result<(), Step> {
        let mut waiting = vec![Waiting {
            path: PathBuf::new(),
            whole: false,
        }];
        while let Some(Waiting { path, whole }) = waiting.pop() {
            // Of what was there, only that is not found among what is there that is gone.
            let sources = if whole {
                [Some((self.new, wanted)), Some((self.old, Wanted::Deleted))]
            } else {
                [Some((upper, wanted)), None]
            };
            for (source, wanted) in sources.into_iter().flatten() {
                let Some(mut dir) = source.list(&path)? else {
                    continue;
                };
                while let Some(name) = next_name(&mut dir) {
                    found.looked_at += 1;
                    if found.looked_at > LOOKED_AT_MAX || found.is_cut {
                        found.is_cut = true;
                        return Ok(());
                    }
                    let path = path.join(name?);
                    let Some(below) = self.compare(upper, &path, whole, wanted, found)? else {
                        continue;
                    };
                    // What is in both lists of a whole directory waits already.
                    if whole && wanted == Wanted::Deleted {
                        continue;
                    }
                    if waiting.len() >= WAITING_MAX {
                        found.is_cut = true;
                        return Ok(());
                    }
                    waiting.push(Waiting { path, whole: below });
                }
            }
        }
        Ok(())
    }

    /// Compares what lies at a path. Answers whether what lies below is to be compared too, and whether all of it.
    fn compare(
        &self,
        upper: &View,
        path: &Path,
        whole: bool,
        wanted: Wanted,
        found: &mut Found,
    ) -> Result<Option<bool>, Step> {
        let (new, old) = match (self.new.look(path)?, self.old.look(path)?) {
            (Seen::TooLong, _) | (_, Seen::TooLong) => {
                found.is_cut = true;
                return Ok(None);
            }
            (new, old) => (new.there(), old.there()),
        };
        Ok(match (new, old) {
            (None, None) => None,
            (None, Some(old)) => {
                found.add(self.target, path, ChangeKind::Deleted, kind_of(&old));
                None
            }
            (Some(new), None) => {
                found.add(self.target, path, ChangeKind::Added, kind_of(&new));
                is_dir(&new).then_some(true)
            }
            (Some(new), Some(old)) if wanted == Wanted::Deleted => {
                (is_dir(&new) && is_dir(&old)).then_some(false)
            }
            (Some(new), Some(old)) => {
                if self.differs(path, &new, &old, found)? {
                    found.add(self.target, path, ChangeKind::Modified, kind_of(&new));
                }
                is_dir(&new).then(|| whole || !is_dir(&old) || upper.hides(path))
            }
        })
    }

    fn differs(&self, path: &Path, new: &Stat, old: &Stat, found: &mut Found) -> Result<bool, Step> {
        if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid) {
            return Ok(true);
        }
        let is_same = |one: &Stat, other: &Stat| (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
        match FileType::from_raw_mode(new.st_mode) {
            FileType::Directory => Ok(false),
            FileType::Symlink => Ok(self.new.link(path)? != self.old.link(path)?),
            FileType::RegularFile => {
                let seen = |about: &Stat| (about.st_size, about.st_mtime, about.st_mtime_nsec);
                if seen(new) != seen(old) {
                    return Ok(true);
                }
                // Times are whatever a machine says they are.
                let bytes = u64::try_from(new.st_size).unwrap_or(u64::MAX);
                found.compared_bytes = found.compared_bytes.saturating_add(bytes);
                if found.compared_bytes > COMPARED_BYTES_MAX {
                    return Ok(true);
                }
                Ok(!same_bytes(self.new.file(path)?, self.old.file(path)?)
                    .at(format!("comparing /{}", path.display()))?)
            }
            _ => Ok(!is_same(new, old) && new.st_rdev != old.st_rdev),
        }
    }
}

impl Seen {
    fn there(self) -> Option<Stat> {
        match self {
            Seen::Something(about) => Some(about),
            Seen::Nothing | Seen::TooLong => None,
        }
    }
}

fn same_bytes(mut one: File, mut other: File) -> io::Result<bool> {
    let (mut first, mut second) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    loop {
        let read = one.read(&mut first)?;
        if read == 0 {
            return Ok(other.read(&mut second[..1])? == 0);
        }
        match other.read_exact(&mut second[..read]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            done => done?,
        }
        if first[..read] != second[..read] {
            return Ok(false);
        }
    }
}

fn is_dir(about: &Stat) -> bool {
    FileType::from_raw_mode(about.st_mode) == FileType::Directory
}

fn kind_of(about: &Stat) -> FileKind {
    match FileType::from_raw_mode(about.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

#[cfg(test)]
mod tests;
