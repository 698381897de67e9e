//! Disks: raw images, each machine's its own copy of what it starts from.
//!
//! A copy shares its blocks with the original where the file system can (`FICLONE`: XFS, btrfs), and is a copy of what is written in
//! it where not. An image that a build names is never written to again; whatever no record names is removed.
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ports::step::{At, Step};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// It shares its blocks with the original until one of them is written to.
    Shared,
    /// What is written in the original was copied.
    Apart,
}

/// Makes the new file `into`, for nobody but us, with the content of `from`, and at least `size_bytes` long. Blocks.
pub(crate) fn copy(from: &Path, into: &Path, size_bytes: u64) -> Result<Copied, Step> {
    let step = || format!("copying {} to {}", from.display(), into.display());
    let source = fs::File::open(from).at(step())?;
    let made = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(into)
        .at(step())?;
    let copied = match rustix::fs::ioctl_ficlone(&made, &source) {
        Ok(()) => Copied::Shared,
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
            copy_data(&source, &made).at(step())?;
            Copied::Apart
        }
        Err(error) => return Err(error).at(step()),
    };
    let length = source.metadata().at(step())?.len();
    made.set_len(length.max(size_bytes)).at(step())?;
    Ok(copied)
}

/// Brings what was written to a file to the disk.
pub(crate) fn through(path: &Path) -> Result<(), Step> {
    fs::File::open(path)
        .and_then(|file| file.sync_all())
        .at(format!("writing {} through", path.display()))
}

/// Calls `each` with where every stretch of a file begins and ends in which something is written; between them are holes.
pub(crate) fn stretches(file: &fs::File, mut each: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let begin = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing more.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(begin))?;
        if end <= begin {
            return Ok(());
        }
        each(begin, end)?;
        at = end;
    }
}

/// Copies what is written in `from` to the same places in `into`; what is there stays as it is elsewhere.
pub(crate) fn copy_data(from: &fs::File, into: &fs::File) -> io::Result<()> {
    stretches(from, |begin, end| copy_stretch(from, into, begin, end))
}

fn copy_stretch(from: &fs::File, into: &fs::File, begin: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let (mut reads, mut writes) = (begin, begin);
    while reads < end {
        let left = usize::try_from(end - reads).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut reads), into, Some(&mut writes), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; 1 << 20];
    while reads < end {
        let length = buffer
            .len()
            .min(usize::try_from(end - reads).unwrap_or(usize::MAX));
        let room = buffer.get_mut(..length).unwrap_or_default();
        from.read_exact_at(room, reads)?;
        into.write_all_at(room, reads)?;
        reads += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_is_as_sparse_as_the_original_and_goes_its_own_way() {
        let dir = tempfile::tempdir().unwrap();
        let [from, into] = ["from", "into"].map(|name| dir.path().join(name));
        let file = fs::File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0, 5 << 20, 40 << 20] {
            file.write_all_at(&[7; 8192], at).unwrap();
        }
        file.sync_all().unwrap();
        copy(&from, &into, 96 << 20).unwrap();
        let copied = fs::metadata(&into).unwrap();
        assert_eq!((copied.len(), copied.mode() & 0o777), (96 << 20, 0o600));
        assert!(copied.blocks() * 512 < 1 << 20, "{}", copied.blocks());
        let mut expected = fs::read(&from).unwrap();
        expected.resize(96 << 20, 0);
        assert!(fs::read(&into).unwrap() == expected);
        fs::File::options()
            .write(true)
            .open(&into)
            .unwrap()
            .write_all_at(b"own", 5 << 20)
            .unwrap();
        assert_eq!(fs::read(&from).unwrap()[5 << 20], 7);
        assert!(copy(&from, &into, 0).is_err(), "it is there already");
        // A disk never gets smaller.
        let again = dir.path().join("again");
        copy(&into, &again, 1).unwrap();
        assert_eq!(fs::metadata(&again).unwrap().len(), 96 << 20);
    }

    #[test]
    fn what_is_laid_over_a_file_changes_nothing_else_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("base"))
            .unwrap();
        base.write_all_at(&[1; 64 * 1024], 0).unwrap();
        let over = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("over"))
            .unwrap();
        over.set_len(64 * 1024).unwrap();
        over.write_all_at(&[0; 4096], 8192).unwrap();
        over.write_all_at(&[2; 4096], 32_768).unwrap();
        copy_data(&over, &base).unwrap();
        let mut expected = vec![1; 64 * 1024];
        expected[8192..12_288].fill(0);
        expected[32_768..36_864].fill(2);
        assert!(fs::read(dir.path().join("base")).unwrap() == expected);
    }
}
