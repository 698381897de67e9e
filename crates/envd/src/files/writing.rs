//! One file being written: opened once, filled in large pieces, while the next piece is still on its way.
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::fd::OwnedFd;

use bytes::{Buf as _, Bytes};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::task::JoinHandle;

use super::metadata::Metadata;
use super::{PIECE_BYTES, Written, blocking, failed, regular};
use crate::access::Refusal;
use crate::paths::{make_parents, own, passable, passable_entry, real};
use crate::users::User;

/// A file on its way to the disk.
pub(super) struct Writing {
    path: String,
    /// It was not there before, and goes again if it is not finished.
    fresh: Option<Fresh>,
    /// Here, or with the job.
    file: Option<File>,
    job: Option<JoinHandle<(File, io::Result<()>)>>,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl Writing {
    /// Opens the file, empty, with the directories that it needs.
    pub(super) async fn open(path: String, user: User) -> Result<Self, Refusal> {
        let (path, file, fresh) = blocking(move || {
            let was_there = rustix::fs::stat(&*passable(&path)).is_ok();
            let file = open(&path, &user)?;
            let fresh = (!was_there)
                .then(|| Fresh::of(&passable_entry(&path), &file))
                .flatten();
            Ok::<_, Refusal>((path, file, fresh))
        })
        .await?;
        Ok(Self {
            path,
            fresh,
            file: Some(file),
            job: None,
            batch: Vec::new(),
            batch_bytes: 0,
        })
    }

    /// Takes a piece. Waits only where the disk is slower than whoever sends.
    pub(super) async fn write(&mut self, piece: Bytes) -> Result<(), Refusal> {
        self.batch_bytes += piece.len();
        self.batch.push(piece);
        if self.batch_bytes < PIECE_BYTES {
            return Ok(());
        }
        let mut file = self.settled().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        self.job = Some(tokio::task::spawn_blocking(move || {
            let written = write_all(&mut file, batch);
            (file, written)
        }));
        Ok(())
    }

    /// Writes what is left, and tells what there is now.
    pub(super) async fn finish(mut self, metadata: Metadata) -> Result<Written, Refusal> {
        let mut file = self.settled().await?;
        let Self {
            path,
            batch,
            mut fresh,
            ..
        } = self;
        blocking(move || {
            write_all(&mut file, batch).map_err(|error| failed("writing", &path, &error))?;
            metadata
                .keep(&file)
                .map_err(|error| failed("keeping the metadata of", &path, &error))?;
            if let Some(fresh) = &mut fresh {
                fresh.stays = true;
            }
            Ok(Written::new(path, metadata))
        })
        .await
    }

    /// The file, when nothing is being written to it.
    async fn settled(&mut self) -> Result<File, Refusal> {
        let Some(job) = self.job.take() else {
            return self
                .file
                .take()
                .ok_or_else(|| Refusal::bad(format!("path '{}' could not be written", self.path)));
        };
        let (file, written) = job
            .await
            .map_err(|error| failed("writing", &self.path, &io::Error::other(error)))?;
        written.map_err(|error| failed("writing", &self.path, &error))?;
        Ok(file)
    }
}

/// A file that an upload made. An upload that breaks off leaves none behind.
struct Fresh {
    path: String,
    /// Device and number: by then its name may be another's.
    identity: (u64, u64),
    stays: bool,
}

impl Fresh {
    fn of(path: &str, file: &File) -> Option<Self> {
        let found = rustix::fs::fstat(file).ok()?;
        Some(Self {
            path: path.to_owned(),
            identity: (found.st_dev, found.st_ino),
            stays: false,
        })
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let is_it = |found: rustix::fs::Stat| (found.st_dev, found.st_ino) == self.identity;
        if !self.stays && rustix::fs::lstat(&self.path).is_ok_and(is_it) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

/// Opens a file to be written anew, if it is one, or may become one.
pub(super) fn open(path: &str, user: &User) -> Result<File, Refusal> {
    let place = passable(path);
    let told = |error: rustix::io::Errno| failed("opening", path, &error.into());
    match rustix::fs::stat(&*place) {
        Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => {
            return Err(Refusal::bad(format!("path is a directory: {path}")));
        }
        Ok(found) => regular(path, FileType::from_raw_mode(found.st_mode))?,
        Err(rustix::io::Errno::NOENT) if path.ends_with('/') => {
            return Err(Refusal::bad(format!("path is a directory: {path}")));
        }
        Err(rustix::io::Errno::NOENT) => {
            make_parents(&place, user).map_err(|error| failed("making the directories of", path, &error))?;
        }
        Err(error) => return Err(told(error)),
    }
    let file = open_or_make(&place).map_err(|error| failed("opening", path, &error))?;
    // Another file may have taken its place between the look and the opening.
    let found = rustix::fs::fstat(&file).map_err(told)?;
    regular(path, FileType::from_raw_mode(found.st_mode))?;
    own(&file, user).map_err(|error| failed("changing the owner of", path, &error))?;
    // Truncating tells those who watch of a change, so what is empty is left alone.
    if found.st_size > 0 {
        rustix::fs::ftruncate(&file, 0).map_err(told)?;
    }
    Ok(file.into())
}

/// Opens what is there, or makes what is not, and never both by one call: in a directory of everybody's the kernel
/// refuses root another's file if it could have been made as well (`fs.protected_regular`).
fn open_or_make(place: &str) -> io::Result<OwnedFd> {
    /// Somebody makes and removes it all the time.
    const ATTEMPTS_MAX: usize = 8;
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut place = Cow::Borrowed(place);
    for _ in 0..ATTEMPTS_MAX {
        match rustix::fs::open(&*place, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {}
            opened => return Ok(opened?),
        }
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        match rustix::fs::open(&*place, new, Mode::from_raw_mode(0o666)) {
            // A link that leads nowhere: what it leads to is made.
            Err(rustix::io::Errno::EXIST) => place = Cow::Owned(real(&place)?),
            made => return Ok(made?),
        }
    }
    Err(rustix::io::Errno::BUSY.into())
}

fn write_all(file: &mut File, batch: Vec<Bytes>) -> io::Result<()> {
    let mut left: &mut [Bytes] = &mut { batch };
    while let Some(first) = left.first() {
        if first.is_empty() {
            left = &mut left[1..];
            continue;
        }
        // As many as writev(2) takes at once, and more than a batch ever has.
        let slices: Vec<IoSlice<'_>> = left.iter().take(1024).map(|piece| IoSlice::new(piece)).collect();
        let mut written = match file.write_vectored(&slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        while written > 0 {
            let taken = written.min(left[0].len());
            left[0].advance(taken);
            written -= taken;
            if left[0].is_empty() {
                left = &mut left[1..];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_written_in_order_whatever_their_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let batch: Vec<Bytes> = (0..3000_u32)
            .map(|n| Bytes::from(format!("{n},")))
            .chain([Bytes::new()])
            .collect();
        let expected: Vec<u8> = batch.concat();
        write_all(&mut File::create(&path).unwrap(), batch).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    /// Has the kernel protect files in directories of everybody's while it lives.
    struct Protected(String);

    const PROTECTED_REGULAR: &str = "/proc/sys/fs/protected_regular";

    impl Protected {
        fn set() -> Self {
            let before = std::fs::read_to_string(PROTECTED_REGULAR).unwrap();
            // Where that is not ours to say, what is written here holds all the same.
            let _ = std::fs::write(PROTECTED_REGULAR, "2");
            Self(before)
        }
    }

    impl Drop for Protected {
        fn drop(&mut self) {
            let _ = std::fs::write(PROTECTED_REGULAR, &self.0);
        }
    }

    #[test]
    fn anothers_file_in_a_directory_of_everybodys_is_written() {
        use std::os::unix::fs::{PermissionsExt as _, chown, lchown};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(at("tmp")).unwrap();
        chown(at("tmp"), Some(1000), Some(1000)).unwrap();
        std::fs::set_permissions(at("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::write(at("tmp/file"), "old").unwrap();
        chown(at("tmp/file"), Some(1001), Some(1001)).unwrap();
        for (target, link) in [("tmp/file", "tmp/link"), ("later", "tmp/nowhere")] {
            std::os::unix::fs::symlink(at(target), at(link)).unwrap();
            lchown(at(link), Some(1001), Some(1001)).unwrap();
        }
        let root = User::of_uid(0).unwrap();
        let _protected = Protected::set();
        for name in ["tmp/file", "tmp/link", "tmp/new", "tmp/nowhere"] {
            chown(at("tmp/file"), Some(1001), Some(1001)).unwrap();
            open(&at(name), &root).unwrap().write_all(b"new").unwrap();
            assert_eq!(std::fs::read(at(name)).unwrap_or_default(), b"new", "{name}");
        }
        assert!(
            std::fs::exists(at("later")).unwrap(),
            "what the link leads to is made"
        );
    }

    #[test]
    fn what_is_no_file_is_refused_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = User::of_uid(0).unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(
            open(pipe.to_str().unwrap(), &root)
                .unwrap_err()
                .message()
                .contains("not a regular file")
        );
        let message = open(dir.path().to_str().unwrap(), &root)
            .unwrap_err()
            .message()
            .to_owned();
        assert_eq!(message, format!("path is a directory: {}", dir.path().display()));
    }
}
