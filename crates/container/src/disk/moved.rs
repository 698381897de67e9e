//! Disks that come from another machine.
//!
//! An overlay whose files are found by handle notes, for all that it copied up, where that lay below it, and keeps an index of
//! such notes. On another machine the same layers lie elsewhere: there the kernel would refuse the whole (ESTALE), or leave out what
//! lies below a directory. So the notes are taken away; the overlay makes new ones as it goes.
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use super::{Disks, RELEASED_WITHIN, mount_image, wait_until_released};
use crate::step::{At, Step};

/// Where something was copied up from.
const ORIGIN: &str = "trusted.overlay.origin";

impl Disks {
    /// Takes the notes away from a disk that nobody uses: from its uppers of these names.
    pub(crate) fn forget_origins<'a>(
        &self,
        image: &Path,
        uppers: impl Iterator<Item = &'a str>,
    ) -> Result<(), Step> {
        let mount = mount_image(image)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        for name in uppers {
            let place = root.join(name);
            let (upper, work) = (place.join("upper"), place.join("work"));
            let index = work.join("index");
            if is_dir(&place) && is_dir(&upper) {
                forget_below(&upper).at(format!("looking through {}", image.display()))?;
            }
            if is_dir(&place) && is_dir(&work) && is_dir(&index) {
                fs::remove_dir_all(&index).at(format!("removing an index of {}", image.display()))?;
            }
        }
        drop(mount);
        wait_until_released(image, RELEASED_WITHIN)
    }
}

/// Whether it is a directory, and no link to one.
fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// No link is followed: what lies here may be anybody's.
fn forget_below(upper: &Path) -> io::Result<()> {
    let mut left = vec![upper.to_owned()];
    while let Some(dir) = left.pop() {
        forget(&dir)?;
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            // Deeper than any path leads there is nothing that was copied up.
            Err(error) if is_too_long(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else {
                forget(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn forget(path: &Path) -> io::Result<()> {
    match rustix::fs::lremovexattr(path, ORIGIN) {
        Ok(())
        | Err(
            rustix::io::Errno::NODATA
            | rustix::io::Errno::NOTSUP
            | rustix::io::Errno::NAMETOOLONG
            | rustix::io::Errno::NOENT,
        ) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_too_long(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidFilename
}
