//! Directories that a layer only implies would hide what lower layers say of them: their owners, modes and times. So an image
//! whose layers do that has one layer more on top, with those directories and nothing in them.
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{Images, PullError, blocking};
use crate::digest::Digest;
use crate::layers::{Facts, Hold, Layers};

/// So many directories are mended; an image that implies more is made by a program that means it.
const DIRS_MAX: usize = 100_000;

/// Directories by name, with the layers that only imply them.
type Implied = BTreeMap<Vec<u8>, BTreeSet<usize>>;

/// What the layer is called that mends these, the lowest first, if they are to be mended: it is made of them, and so the same
/// wherever they are.
pub(super) fn name(diffs: &[Digest]) -> Digest {
    let mut name = Sha256::new();
    name.update(b"directories mended above\n");
    for diff in diffs {
        name.update(diff.to_string());
    }
    Digest::seen(name)
}

/// The layer that mends these, the lowest first; `None` where nothing is to be mended.
pub(super) async fn mend(
    images: &Images,
    diffs: &[Digest],
    facts: &[Facts],
) -> Result<Option<(PathBuf, Hold)>, PullError> {
    // By name, with the layers that imply it.
    let mut implied = Implied::new();
    for (at, facts) in facts.iter().enumerate() {
        for name in facts.implied() {
            implied.entry(name).or_default().insert(at);
        }
    }
    // What the lowest layer implies is said by nobody.
    if implied.values().all(|layers| layers.iter().all(|at| *at == 0)) {
        return Ok(None);
    }
    if implied.len() > DIRS_MAX {
        return Err(PullError::TooLarge {
            what: "the number of directories without an entry of their own".to_owned(),
            limit: DIRS_MAX as u64,
        });
    }
    let name = name(diffs);
    let layers = Arc::clone(&images.layers);
    let gate = layers.gate(name);
    let _turn = gate.lock().await;
    let paths: Vec<PathBuf> = diffs.iter().map(|diff| layers.path(*diff)).collect();
    let made = blocking(move || -> Result<_, PullError> {
        if let Some((hold, _)) = layers.find(name) {
            return Ok(Some((layers.path(name), hold)));
        }
        make(&layers, name, &paths, &implied)
    });
    made.await?
}

/// What is seen of a directory, and where.
type Seen = BTreeMap<Vec<u8>, (Stat, PathBuf)>;

fn make(
    layers: &Layers,
    name: Digest,
    paths: &[PathBuf],
    implied: &Implied,
) -> Result<Option<(PathBuf, Hold)>, PullError> {
    let reading = || PullError::disk("reading layers");
    let mut seen = Seen::new();
    for dir in implied.keys() {
        if let Some((stat, from, true)) = said(paths, implied, dir).map_err(reading())? {
            seen.insert(dir.clone(), (stat, from));
        }
    }
    if seen.is_empty() {
        return Ok(None);
    }
    // What lies above them is in the way too: it is as it is seen without this layer.
    let above: BTreeSet<Vec<u8>> = seen
        .keys()
        .flat_map(|dir| parents(dir))
        .map(<[u8]>::to_vec)
        .collect();
    for dir in above {
        if !seen.contains_key(&dir)
            && let Some((stat, from, _)) = said(paths, implied, &dir).map_err(reading())?
        {
            seen.insert(dir, (stat, from));
        }
    }
    layers
        .make_by(name, |partial| fill(partial, &seen))
        .map_err(|error| PullError::layer(name, error))?;
    Ok(layers.find(name).map(|(hold, _)| (layers.path(name), hold)))
}

fn parents(dir: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = dir.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(at, _)| &dir[..at])
}

/// What the topmost layer says of a directory that has an entry for it and is not hidden, and whether one above it only implies
/// the directory.
fn said(paths: &[PathBuf], implied: &Implied, dir: &[u8]) -> io::Result<Option<(Stat, PathBuf, bool)>> {
    let mut is_covered = false;
    for (at, path) in paths.iter().enumerate().rev() {
        match look(path, dir)? {
            Look::Nothing => {}
            Look::Hidden => return Ok(None),
            Look::Dir(stat, is_opaque) => {
                if !implied.get(dir).is_some_and(|layers| layers.contains(&at)) {
                    return Ok(Some((stat, path.join(OsStr::from_bytes(dir)), is_covered)));
                }
                is_covered = true;
                if is_opaque {
                    return Ok(None);
                }
            }
        }
    }
    Ok(None)
}

enum Look {
    /// The layer has nothing there.
    Nothing,
    /// The layer hides what lower ones have there.
    Hidden,
    /// A directory, and whether it hides what lower ones have in it.
    Dir(Stat, bool),
}

/// Looks at a directory of a layer, without following links.
fn look(layer: &Path, dir: &[u8]) -> io::Result<Look> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = rustix::fs::open(layer, flags, Mode::empty())?;
    let mut hides = false;
    let parts: Vec<&[u8]> = dir.split(|byte| *byte == b'/').collect();
    for part in parts {
        let stat = match rustix::fs::statat(here.as_fd(), part, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(if hides { Look::Hidden } else { Look::Nothing }),
            stat => stat?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Look::Hidden);
        }
        here = rustix::fs::openat(here.as_fd(), part, flags, Mode::empty())?;
        hides |= is_opaque(&here);
    }
    let stat = rustix::fs::fstat(&here)?;
    Ok(Look::Dir(stat, hides))
}

fn is_opaque(dir: &rustix::fd::OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(dir));
    let mut value = [0; 4];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..])
        .is_ok_and(|bytes| value[..bytes] == *b"y")
}

fn fill(partial: &Path, seen: &Seen) -> io::Result<u64> {
    // Parents come before children, and times after them.
    for (dir, (stat, from)) in seen {
        let path = partial.join(OsStr::from_bytes(dir));
        fs::create_dir_all(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty())?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        copy_attributes(from, &file)?;
    }
    for (dir, (stat, _)) in seen.iter().rev() {
        let time = rustix::fs::Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let path = partial.join(OsStr::from_bytes(dir));
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(seen.len() as u64 * 4096)
}

fn copy_attributes(from: &Path, to: &rustix::fd::OwnedFd) -> io::Result<()> {
    let mut names = [0_u8; 4096];
    let Ok(bytes) = rustix::fs::llistxattr(from, &mut names[..]) else {
        return Ok(());
    };
    for name in names[..bytes]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
    {
        let mut value = vec![0; 64 << 10];
        let read = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..read], XattrFlags::empty())?;
    }
    Ok(())
}
