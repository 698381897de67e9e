//! Removing a directory of a volume with everything in it, however deep it is.
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// A descriptor is held for each level. What lies deeper is brought up.
const DEPTH_MAX: usize = 64;

/// Removes what has this name in a directory. Links are removed, not followed.
pub(super) fn remove(above: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        removed => return removed,
    }
    let top = open(above, name)?;
    // Somebody may make things in it while it is emptied; whoever never stops is not waited for.
    for _ in 0..8 {
        while !empty(&top, top.as_fd(), 0)? {}
        match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => return removed,
        }
    }
    Err(Errno::NOTEMPTY)
}

/// Empties a directory. What is too deep is brought up into `top`: says whether there was nothing like that.
fn empty(dir: &OwnedFd, top: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<bool> {
    let mut whole = true;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name: CString = entry.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                // It became a directory meanwhile.
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(error),
            }
        }
        if depth >= DEPTH_MAX {
            let above = format!(".~{:032x}", rand::random::<u128>());
            match rustix::fs::renameat(dir, &name, top, above) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            whole = false;
            continue;
        }
        let below = match open(dir.as_fd(), &name) {
            Err(Errno::NOENT) => continue,
            opened => opened?,
        };
        whole &= empty(&below, top, depth + 1)?;
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Made anew meanwhile: it is come back to.
            Err(Errno::NOTEMPTY | Errno::EXIST) => whole = false,
            Err(error) => return Err(error),
        }
    }
    Ok(whole)
}

fn open(above: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tree_deeper_than_descriptors_reach_is_removed_whole_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let mut deep = dir.path().join("tree");
        for i in 0..300 {
            fs::create_dir(&deep).unwrap();
            fs::write(deep.join("file"), "x").unwrap();
            std::os::unix::fs::symlink(&outside, deep.join("link")).unwrap();
            deep = deep.join(format!("{i}"));
        }
        let above = fs::File::open(dir.path()).unwrap();
        remove(above.as_fd(), "tree").unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(outside.join("kept").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(remove(above.as_fd(), "tree"), Err(Errno::NOENT));
    }
}
