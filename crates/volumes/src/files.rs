//! The files in volumes, for the content API.
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use model::{MiB, VolumeId};
use ports::VolumeFiles;
use ports::blobs::ByteStream;
use ports::volumes::{FileError, FileKind, FileStat, Ownership};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use crate::store::{Visit, Volumes};
use crate::within::{Within, checked, give, or_usual};
use crate::{list, remove};

/// Bytes of a file that are in memory at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// What files and directories are made with, where nobody said it.
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// Runs `work` in a volume, off the runtime.
async fn within<T: Send + 'static>(
    volumes: &Arc<Volumes>,
    id: VolumeId,
    work: impl FnOnce(BorrowedFd<'_>) -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    visiting(volumes, id, move |visit| work(visit.root())).await
}

/// The same for whoever stays longer.
async fn visiting<T: Send + 'static>(
    volumes: &Arc<Volumes>,
    id: VolumeId,
    work: impl FnOnce(Visit) -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    let volumes = Arc::clone(volumes);
    let turn = volumes.turns.wait(id).await;
    // Whoever gives up waiting for it does not end it: the turn is over with the work.
    blocking(move || {
        let _turn = turn;
        work(volumes.visit(id)?)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|panic| FileError::Failed {
            step: "a blocking step",
            source: io::Error::other(panic),
        })?
}

/// The files in the volumes of a node.
pub struct Files {
    volumes: Arc<Volumes>,
    /// Whether there is room for more on the disk that images lie on.
    has_room: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files")
            .field("volumes", &self.volumes)
            .finish_non_exhaustive()
    }
}

impl Files {
    /// Of these volumes. `has_room`: whether there is room for more on the disk that their images lie on; it may block.
    pub fn new(volumes: Arc<Volumes>, has_room: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            volumes,
            has_room: Arc::new(has_room),
        }
    }
}

#[async_trait]
impl VolumeFiles for Files {
    async fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError> {
        let (volumes, has_room) = (Arc::clone(&self.volumes), Arc::clone(&self.has_room));
        blocking(move || {
            has_room().then_some(()).ok_or(FileError::Full)?;
            volumes.make(id, size)
        })
        .await
    }

    async fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        let volumes = Arc::clone(&self.volumes);
        blocking(move || volumes.discard(id)).await
    }

    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        let volumes = Arc::clone(&self.volumes);
        blocking(move || volumes.held()).await
    }

    async fn stat(&self, id: VolumeId, path: &str) -> Result<FileStat, FileError> {
        let path = Within::parse(path)?;
        within(&self.volumes, id, move |root| path.stat(path.open_itself(root)?)).await
    }

    async fn change(&self, id: VolumeId, path: &str, ownership: Ownership) -> Result<FileStat, FileError> {
        let (path, ownership) = (Within::parse(path)?, checked(ownership)?);
        within(&self.volumes, id, move |root| {
            let thing = path.open_itself(root)?;
            give(&thing, ownership).map_err(|errno| match errno {
                Errno::OPNOTSUPP => FileError::WrongKind {
                    path: path.absolute(),
                    wanted: "something with permissions of its own",
                },
                errno => path.refused(errno),
            })?;
            path.stat(&thing)
        })
        .await
    }

    async fn list(&self, id: VolumeId, path: &str, depth: u32) -> Result<Vec<FileStat>, FileError> {
        let path = Within::parse(path)?;
        within(&self.volumes, id, move |root| list::list(root, &path, depth)).await
    }

    async fn make_dir(
        &self,
        id: VolumeId,
        path: &str,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        let (path, ownership) = (Within::parse(path)?, checked(ownership)?);
        within(&self.volumes, id, move |root| {
            // Where those above it are not to be made they must be there; the root always is.
            let made = if force {
                make_dirs(root, &path, ownership)?
            } else {
                make_one_dir(root, &path, ownership)?
            };
            if !made && !force {
                return Err(FileError::Exists(path.absolute()));
            }
            path.stat(path.open_dir(root)?)
        })
        .await
    }

    async fn remove(&self, id: VolumeId, path: &str) -> Result<(), FileError> {
        let path = Within::parse(path)?;
        if path.is_root() {
            return Err(FileError::Invalid(
                "the root of a volume goes with the volume only".to_owned(),
            ));
        }
        within(&self.volumes, id, move |root| {
            let above = path.above().open_dir(root).map_err(|refused| match refused {
                // What lies in nothing is not there.
                FileError::NotFound(_) => FileError::NotFound(path.absolute()),
                refused => refused,
            })?;
            remove::remove(above.as_fd(), path.name()).map_err(|errno| path.refused(errno))
        })
        .await
    }

    async fn read(&self, id: VolumeId, path: &str) -> Result<(u64, ByteStream), FileError> {
        let path = Within::parse(path)?;
        let (visit, file, size) = visiting(&self.volumes, id, move |visit| {
            // Not one that must be waited for, whatever it turns out to be.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = path.open(visit.root(), flags)?;
            let stat = path.stat(&file)?;
            if stat.kind != FileKind::File {
                return Err(path.refused(Errno::ISDIR));
            }
            Ok((visit, file, stat.size))
        })
        .await?;
        let file = tokio::fs::File::from_std(File::from(file)).take(size);
        let bytes = ReaderStream::with_capacity(file, PIECE_BYTES);
        // The volume stays mounted as long as it is read.
        let bytes = bytes.map(move |piece| {
            let _visit = &visit;
            piece
        });
        Ok((size, bytes.boxed()))
    }

    async fn write(
        &self,
        id: VolumeId,
        path: &str,
        bytes: ByteStream,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        let (path, ownership) = (Within::parse(path)?, checked(ownership)?);
        if path.is_root() {
            return Err(path.refused(Errno::ISDIR));
        }
        let has_room = Arc::clone(&self.has_room);
        let (visit, above, file, path) = visiting(&self.volumes, id, move |visit| {
            has_room().then_some(()).ok_or(FileError::Full)?;
            let parent = path.above();
            if force {
                make_dirs(
                    visit.root(),
                    &parent,
                    Ownership {
                        mode: None,
                        ..ownership
                    },
                )?;
            }
            let above = parent.open_dir(visit.root())?;
            is_free(&above, &path, force)?;
            // It has no name until it is whole: what breaks off leaves nothing.
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&above, ".", flags, Mode::from_raw_mode(0o600))
                .map_err(|errno| path.refused(errno))?;
            Ok((visit, above, file, path))
        })
        .await?;
        let file = fill(file, bytes).await?;
        let finish = move || {
            let done = finish(&above, &file, &path, ownership, force);
            drop(above);
            drop(visit);
            done
        };
        blocking(finish).await
    }
}

/// Writes all bytes to a file, and to its disk.
async fn fill(file: OwnedFd, mut bytes: ByteStream) -> Result<File, FileError> {
    let refused = |source: io::Error| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => FileError::Full,
        Some(Errno::FBIG) => FileError::Full,
        _ => FileError::Failed {
            step: "writing a file of a volume",
            source,
        },
    };
    let mut file = tokio::fs::File::from_std(File::from(file));
    file.set_max_buf_size(PIECE_BYTES);
    while let Some(piece) = bytes.next().await {
        file.write_all(&piece.map_err(FileError::Source)?)
            .await
            .map_err(refused)?;
    }
    file.flush().await.map_err(refused)?;
    file.sync_all().await.map_err(refused)?;
    Ok(file.into_std().await)
}

/// Refuses early what could not be written in the end.
fn is_free(above: &OwnedFd, path: &Within, force: bool) -> Result<(), FileError> {
    let there = rustix::fs::openat(
        above,
        path.name(),
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    match there {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(path.refused(errno)),
        Ok(thing) if path.stat(&thing)?.kind == FileKind::Directory => Err(path.refused(Errno::ISDIR)),
        Ok(_) if force => Ok(()),
        Ok(_) => Err(FileError::Exists(path.absolute())),
    }
}

/// Gives a file its owner and its name.
fn finish(
    above: &OwnedFd,
    file: &File,
    path: &Within,
    ownership: Ownership,
    force: bool,
) -> Result<FileStat, FileError> {
    let named = || -> rustix::io::Result<()> {
        give(file, or_usual(ownership, FILE_MODE))?;
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = |name: &str| rustix::fs::linkat(CWD, &*itself, above, name, AtFlags::SYMLINK_FOLLOW);
        if !force {
            return link(path.name());
        }
        let interim = format!(".~{:032x}", rand::random::<u128>());
        link(&interim)?;
        let renamed = rustix::fs::renameat_with(above, &*interim, above, path.name(), RenameFlags::empty());
        if renamed.is_err() {
            let _ = rustix::fs::unlinkat(above, &*interim, AtFlags::empty());
        }
        renamed
    };
    named().map_err(|errno| path.refused(errno))?;
    path.stat(file)
}

/// Makes a directory and those above it. Says whether it was not there.
fn make_dirs(root: BorrowedFd<'_>, path: &Within, ownership: Ownership) -> Result<bool, FileError> {
    let mut is_new = false;
    for step in path.steps() {
        // What was asked for is the last of them.
        let mode = ownership.mode.filter(|_| step == *path);
        is_new = make_one_dir(root, &step, Ownership { mode, ..ownership })?;
    }
    Ok(is_new)
}

/// Makes a directory in one that is there. Says whether it was not there.
fn make_one_dir(root: BorrowedFd<'_>, path: &Within, ownership: Ownership) -> Result<bool, FileError> {
    match path.try_open(root, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(_) => return Ok(false),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(path.refused(errno)),
    }
    let above = path.above().open_dir(root)?;
    let is_new = match rustix::fs::mkdirat(&above, path.name(), Mode::from_raw_mode(0o700)) {
        Ok(()) => true,
        // Somebody else was faster, or a link leads nowhere.
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(path.refused(errno)),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made =
        rustix::fs::openat(&above, path.name(), flags, Mode::empty()).map_err(|errno| path.refused(errno))?;
    if is_new {
        let given = or_usual(ownership, DIR_MODE);
        give(&made, given).map_err(|errno| path.refused(errno))?;
    }
    Ok(is_new)
}
