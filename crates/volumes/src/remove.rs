//! Removing a directory of a volume with everything in it, however deep it is.
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// A descriptor is held for each level. What lies deeper is brought up.
const DEPTH_MAX: usize = 64;
/// A million files are gone in this time. Whoever makes things faster than they are removed is not waited for; what is
/// gone by then stays gone, and another call goes on.
const REMOVED_WITHIN: Duration = Duration::from_secs(60);

/// Removes what has this name in a directory. Links are removed, not followed.
pub(crate) fn remove(above: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    remove_until(above, name, Instant::now() + REMOVED_WITHIN)
}

fn remove_until(above: BorrowedFd<'_>, name: &str, deadline: Instant) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        removed => return removed,
    }
    let top = open(above, name)?;
    // Somebody may make things in it while it is emptied.
    loop {
        while !empty(&top, top.as_fd(), 0, deadline)? {}
        match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            removed => return removed,
        }
    }
}

/// Empties a directory. What is too deep is brought up into `top`: says whether there was nothing like that.
/// After the deadline it is given up.
fn empty(dir: &OwnedFd, top: BorrowedFd<'_>, depth: usize, deadline: Instant) -> rustix::io::Result<bool> {
    let mut whole = true;
    for entry in Dir::read_from(dir)? {
        if Instant::now() >= deadline {
            return Err(Errno::TIMEDOUT);
        }
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
        whole &= empty(&below, top, depth + 1, deadline)?;
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
    use std::sync::atomic::{AtomicBool, Ordering};

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

    #[test]
    fn whoever_makes_things_without_end_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let above = fs::File::open(dir.path()).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for maker in 0..2 {
                let (tree, is_over) = (&tree, &is_over);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let _ = fs::create_dir_all(tree.join(format!("{maker}/x/y")));
                        let _ = fs::write(tree.join(format!("{maker}/x/y/z")), "");
                    }
                });
            }
            let begun = Instant::now();
            let patience = Duration::from_millis(200);
            // It is made anew also when it is gone: then it was removed, which is as good.
            let _ = remove_until(above.as_fd(), "tree", begun + patience);
            let took = begun.elapsed();
            is_over.store(true, Ordering::Relaxed);
            assert!(took < patience + Duration::from_secs(5), "{took:?}");
        });
    }

    #[test]
    fn what_takes_too_long_is_said_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/a")).unwrap();
        let above = fs::File::open(dir.path()).unwrap();
        assert_eq!(
            remove_until(above.as_fd(), "tree", Instant::now()),
            Err(Errno::TIMEDOUT)
        );
        remove(above.as_fd(), "tree").unwrap();
    }
}
