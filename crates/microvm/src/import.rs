//! Root disks out of directories.
use std::fs;
use std::io;
use std::path::Path;

use model::MiB;
use ports::step::{At, Step};
use uuid::Uuid;

use crate::files::remove_dir;

/// Room on a root disk beside its content: what a file system takes for itself, and some to begin with. A machine whose
/// disk is to be larger has its file system grown by its agent.
const SLACK: MiB = MiB(256);
/// So deep is no tree of an image; a walk ends by itself.
const DEPTH_MAX: usize = 1024;

/// Where what is made of layers lies meanwhile, below a runtime's directory.
const STAGING: &str = "staging";

/// Works in a directory of its own, of which nothing is left.
///
/// # Errors
/// The work's.
pub fn staged(data: &Path, work: impl FnOnce(&Path) -> Result<(), Step>) -> Result<(), Step> {
    let staging = data.join(STAGING).join(Uuid::new_v4().to_string());
    fs::create_dir_all(&staging).at(format!("making {}", staging.display()))?;
    let made = work(&staging);
    let removed = remove_dir(&staging);
    made.and(removed)
}

/// Removes what imports that were cut off left.
///
/// # Errors
/// Something of it stays.
pub fn clear(data: &Path) -> Result<(), Step> {
    remove_dir(&data.join(STAGING))
}

/// Makes a root disk of a directory; says how much can be written to it.
///
/// # Errors
/// There is no room, or something in the directory cannot be on a disk.
pub fn disk(image: &Path, root: &Path) -> Result<u64, Step> {
    let step = || format!("making a root disk of {}", root.display());
    let mut bytes = 0;
    measure(root, 0, &mut bytes).at(step())?;
    // Inodes and the journal take their share of it.
    let size_bytes = (bytes + bytes / 8 + SLACK.bytes()).next_multiple_of(1 << 20);
    guest::disk::make(image, guest::disk::Source::Directory(root), size_bytes)
        .map_err(io::Error::other)
        .at(step())?;
    Ok(size_bytes)
}

/// What files take on a disk, each rounded up to its blocks, and what each costs beside.
fn measure(path: &Path, depth: usize, bytes: &mut u64) -> io::Result<()> {
    let about = fs::symlink_metadata(path)?;
    *bytes += 1024;
    if about.is_file() {
        *bytes += about.len().next_multiple_of(4096);
    }
    if about.is_dir() {
        *bytes += 4096;
        may_be_deeper(depth)?;
        for entry in fs::read_dir(path)? {
            measure(&entry?.path(), depth + 1, bytes)?;
        }
    }
    Ok(())
}

/// Whether a walk goes on below a directory that lies so deep.
///
/// # Errors
/// It does not.
pub fn may_be_deeper(depth: usize) -> io::Result<()> {
    if depth < DEPTH_MAX {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "directories lie more than {DEPTH_MAX} deep in one another"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_a_directory_is_measured_and_nothing_is_left_of_the_place_where_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        staged(dir.path(), |staging| {
            for name in ["a", "b", "c"] {
                fs::create_dir(staging.join(name)).unwrap();
                fs::write(staging.join(name).join("file"), "x").unwrap();
            }
            let mut bytes = 0;
            measure(staging, 0, &mut bytes).unwrap();
            assert_eq!(bytes, 4 * (1024 + 4096) + 3 * (1024 + 4096));
            assert!(measure(staging, DEPTH_MAX, &mut bytes).is_err());
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read_dir(dir.path().join(STAGING)).unwrap().count(), 0);
        clear(dir.path()).unwrap();
        clear(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
