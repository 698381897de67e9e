//! What lies in a directory of a volume.
use std::os::fd::{BorrowedFd, OwnedFd};

use ports::volumes::{FileError, FileKind, FileStat};
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::within::Within;

/// An answer of more entries is read by nobody.
pub(crate) const ENTRIES_MAX: usize = 10_000;
/// A descriptor is held for each level.
pub(crate) const DEPTH_MAX: u32 = 64;

/// Lists a directory, and directories in it down to a depth, each before what lies in it, in the order of names.
pub(crate) fn list(root: BorrowedFd<'_>, path: &Within, depth: u32) -> Result<Vec<FileStat>, FileError> {
    if depth == 0 || depth > DEPTH_MAX {
        return Err(FileError::Invalid(format!(
            "depth {depth}: from 1 to {DEPTH_MAX}"
        )));
    }
    let dir = path.open(root, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut found = Vec::new();
    below(&dir, path, depth, &mut found)?;
    Ok(found)
}

fn below(dir: &OwnedFd, path: &Within, depth: u32, found: &mut Vec<FileStat>) -> Result<(), FileError> {
    for name in names(dir, path, ENTRIES_MAX - found.len())? {
        let at = path.below(&name);
        let itself = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let thing = match rustix::fs::openat(dir, &*name, itself, Mode::empty()) {
            // It went meanwhile.
            Err(Errno::NOENT) => continue,
            opened => opened.map_err(|errno| at.refused(errno))?,
        };
        if found.len() >= ENTRIES_MAX {
            return Err(too_many(path));
        }
        let stat = at.stat(&thing)?;
        let is_dir = stat.kind == FileKind::Directory;
        found.push(stat);
        if is_dir && depth > 1 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir =
                rustix::fs::openat(&thing, ".", flags, Mode::empty()).map_err(|errno| at.refused(errno))?;
            below(&dir, &at, depth - 1, found)?;
        }
    }
    Ok(())
}

fn too_many(path: &Within) -> FileError {
    FileError::Invalid(format!(
        "more than {ENTRIES_MAX} entries below '{}': list with a smaller depth, or part by part",
        path.absolute()
    ))
}

/// Names in a directory, at most so many, in order. Those that are no text cannot be told, and are left out.
fn names(dir: &OwnedFd, path: &Within, most: usize) -> Result<Vec<String>, FileError> {
    let entries = Dir::read_from(dir).map_err(|errno| path.refused(errno))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|errno| path.refused(errno))?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if matches!(name, "." | "..") {
            continue;
        }
        if names.len() >= most {
            return Err(too_many(path));
        }
        names.push(name.to_owned());
    }
    names.sort_unstable();
    Ok(names)
}
