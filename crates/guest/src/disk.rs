//! Root disks: ext4 images, made of a directory or an archive by `mkfs.ext4 -d`, without a mount and without a loop device.
//!
//! An image is as large as its content needs. Whoever starts a machine of it may give it a larger disk that begins with the
//! image: the machine's agent has the file system grow to the disk's end before anything runs on it.
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{self, ProgramError};

/// Of Debian, as of almost everybody.
const PACKAGE: &str = "e2fsprogs";
/// Journal, tables and room to grow take most of the smallest.
const BYTES_MIN: u64 = 64 << 20;
/// Of a file system.
const BLOCK_BYTES: u64 = 4096;
/// The size up to which the table of block groups has its place kept free. A file system that outgrows it would be converted
/// to `meta_bg` by the kernel, which kernels before 6.8 did not always do right.
const GROWN_BYTES_MAX: u64 = 2 << 40;
/// There is a journal, as machines are killed and disks are copied while they run, and nobody is inside who could check a
/// file system. It is as large as mkfs makes it for a disk below a gigabyte: every machine's own copy of the disk comes to hold all of
/// it. Much smaller it cannot be: growing takes a quarter of it for the place that [`GROWN_BYTES_MAX`] keeps.
const JOURNAL_MIB: u32 = 16;
/// One file for so many bytes of the disk, and of what it grows by, as mkfs has it for all but small ones: their four times as many
/// would take a twentieth of a disk that was grown.
const BYTES_PER_INODE: u64 = 16 * 1024;
/// What a machine may at least add to the files of its image, as long as its disk is no larger than that.
const INODES_SPARE: u64 = 4096;

/// What a disk is made of.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The content of a directory, with the owners and modes that are there.
    Directory(&'a Path),
    /// An archive of tar, uncompressed, with the owners and modes in it. It is unpacked beside the image first: only as root
    /// are the owners what it says.
    Tar(&'a Path),
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It would be smaller than a file system.
    #[error("a root disk has at least {} MiB, not {size_bytes} bytes", BYTES_MIN >> 20)]
    Small {
        /// What was asked for.
        size_bytes: u64,
    },
    /// The content does not fit, or the program failed otherwise.
    #[error("making a root disk of {size_bytes} bytes failed: its content may not fit")]
    Program {
        /// How large it was to be.
        size_bytes: u64,
        /// What the program said.
        #[source]
        source: ProgramError,
    },
    /// A file could not be read or written.
    #[error("{what} {path} failed")]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Makes the image `image` of `size_bytes`, rounded down to whole blocks: a hard limit for what the machine can write. It is
/// sparse, durable, and there only as a whole. Blocks.
///
/// # Errors
/// See [`DiskError`]; nothing is left then.
pub fn make(image: &Path, source: Source<'_>, size_bytes: u64) -> Result<(), DiskError> {
    if size_bytes < BYTES_MIN {
        return Err(DiskError::Small { size_bytes });
    }
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| DiskError::File { what, path, source }
    };
    let beside = image.parent().unwrap_or(Path::new("."));
    let fresh = tempfile::Builder::new()
        .prefix(".disk-")
        .tempdir_in(beside)
        .map_err(failed("making a directory in", beside))?;
    let unpacked = fresh.path().join("root");
    let content = match source {
        Source::Directory(dir) => dir,
        Source::Tar(archive) => {
            unpack(archive, &unpacked).map_err(failed("unpacking", archive))?;
            &unpacked
        }
    };
    let partial = fresh.path().join("image");
    let file = fs::File::create_new(&partial).map_err(failed("making", &partial))?;
    let size_bytes = size_bytes / BLOCK_BYTES * BLOCK_BYTES;
    file.set_len(size_bytes).map_err(failed("sizing", &partial))?;
    let files = count(content).map_err(failed("looking through", content))?;
    let inodes = (files + INODES_SPARE).max(size_bytes / BYTES_PER_INODE);
    let owner = fs::metadata(content).map_err(failed("looking at", content))?;
    let mut extended = format!(
        // The directory itself is the one thing whose owner mkfs does not copy. Nothing is zeroed: a new file is.
        "root_owner={}:{},nodiscard,lazy_itable_init=1,lazy_journal_init=1",
        owner.uid(),
        owner.gid()
    );
    if size_bytes < GROWN_BYTES_MAX {
        extended += &format!(",resize={}", GROWN_BYTES_MAX / BLOCK_BYTES);
    }
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-m", "0", "-L", "atoll-root"])
        // Checksums are what lets a table of inodes be taken for empty that nobody ever wrote.
        .args([
            "-O",
            "has_journal,resize_inode,^meta_bg,flex_bg,64bit,metadata_csum",
        ])
        .args(["-J", &format!("size={JOURNAL_MIB}")])
        .args(["-N", &inodes.to_string(), "-E", &extended])
        .arg("-d")
        .arg(content)
        .arg(&partial);
    program::run(mkfs, PACKAGE).map_err(|source| DiskError::Program { size_bytes, source })?;
    file.sync_all().map_err(failed("syncing", &partial))?;
    fs::rename(&partial, image).map_err(failed("naming", image))?;
    fs::File::open(beside)
        .and_then(|beside| beside.sync_all())
        .map_err(failed("syncing", beside))
}

/// Counts what is in a directory, at any depth.
fn count(dir: &Path) -> io::Result<u64> {
    let (mut count, mut open) = (0, vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            count += 1;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(count)
}

/// Unpacks an archive into a directory that is made for it; nothing lands outside.
fn unpack(archive: &Path, dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mut archive = tar::Archive::new(io::BufReader::new(fs::File::open(archive)?));
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.unpack(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/etc")).unwrap();
        fs::write(dir.path().join("root/etc/motd"), "hello").unwrap();
        dir
    }

    fn content(image: &Path, path: &str) -> String {
        let mut debugfs = Command::new("debugfs");
        debugfs.args(["-R", &format!("cat {path}")]).arg(image);
        String::from_utf8(program::run(debugfs, PACKAGE).unwrap()).unwrap()
    }

    #[test]
    fn a_disk_holds_the_directory_and_has_the_size_that_was_asked_for() {
        let dir = scene();
        let image = dir.path().join("disk");
        make(
            &image,
            Source::Directory(&dir.path().join("root")),
            (64 << 20) + 5,
        )
        .unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), 64 << 20);
        assert_eq!(content(&image, "/etc/motd"), "hello");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing else is left"
        );
    }

    #[test]
    fn a_disk_holds_the_archive() {
        let dir = scene();
        let path = dir.path().join("root.tar");
        let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
        archive.append_dir_all(".", dir.path().join("root")).unwrap();
        archive.finish().unwrap();
        let image = dir.path().join("disk");
        make(&image, Source::Tar(&path), 64 << 20).unwrap();
        assert_eq!(content(&image, "/etc/motd"), "hello");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_left() {
        let dir = scene();
        let big = fs::File::create(dir.path().join("root/big")).unwrap();
        io::copy(&mut io::Read::take(io::repeat(7), 80 << 20), &mut &big).unwrap();
        let image = dir.path().join("disk");
        let refused = make(&image, Source::Directory(&dir.path().join("root")), 64 << 20);
        assert!(matches!(refused, Err(DiskError::Program { .. })), "{refused:?}");
        let small = make(&image, Source::Directory(&dir.path().join("root")), 1 << 20);
        assert!(matches!(small, Err(DiskError::Small { .. })), "{small:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
