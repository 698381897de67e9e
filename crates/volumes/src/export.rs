//! A volume as the kernel of a machine sees it: requests are answered by the host's mount.
//!
//! Nothing is remembered between two of them. A file's number is its handle on the file system, so that whoever asks after
//! the daemon was killed, or in a machine that was brought back from memory, asks of the same file. Files that are open are held
//! open as well, which keeps those that have no name any more for as long as this lives.
//!
//! The machine's kernel has looked whether its user may do what is asked; what is made belongs to that user. Here everything is
//! done as root, within the volume.
mod act;
mod opened;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use linux::handle::{self, Handle};
use model::VolumeId;
use ports::RuntimeError;
use ports::step::{At, Step};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use self::opened::Opened;
use crate::fuse::{Asked, Attributes, Head, Malformed, Reply, Request};
use crate::store::Volumes;

/// The number of the root, as every FUSE file system has it.
const ROOT: u64 = 1;
/// Users of a sandbox, as in containers.
const USER_MAX: u32 = 65_535;

/// What failed, as the machine is told it.
type Done<T> = Result<T, Errno>;

/// A volume that answers the kernel of one machine.
#[derive(Debug)]
pub struct Export {
    volumes: Arc<Volumes>,
    id: VolumeId,
    root: OwnedFd,
    /// The root's handle, which has another number in requests.
    root_handle: Handle,
    /// The file system that everything is on.
    device: u64,
    opened: Opened,
}

impl Volumes {
    /// Has a volume mounted for a machine whose kernel is its own. It is in use from then on, until [`Volumes::take_back`].
    /// Blocks.
    ///
    /// # Errors
    /// [`RuntimeError::NoVolume`], or it cannot be mounted.
    pub fn export(self: &Arc<Self>, id: VolumeId, holder: &str) -> Result<Arc<Export>, RuntimeError> {
        let place = self.lend(id, holder)?;
        Ok(Arc::new(Export::of(Arc::clone(self), id, &place)?))
    }
}

impl Export {
    /// Of a volume that is mounted at `place`.
    pub(crate) fn of(volumes: Arc<Volumes>, id: VolumeId, place: &Path) -> Result<Self, Step> {
        let step = || format!("opening volume {id}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(place, flags, Mode::empty()).at(step())?;
        let device = rustix::fs::fstat(&root).at(step())?.st_dev;
        let root_handle = handle::of(root.as_fd(), c"").at(step())?;
        Ok(Self {
            volumes,
            id,
            root,
            root_handle,
            device,
            opened: Opened::default(),
        })
    }

    /// Answers a request, when it is its turn; `None` to what has no answer. `again`: it may have been carried out before, by whoever
    /// did not come to answer it.
    ///
    /// # Errors
    /// It is none: whoever asks is not to be asked again.
    pub async fn answer(
        self: &Arc<Self>,
        request: Vec<u8>,
        again: bool,
    ) -> Result<Option<Vec<u8>>, Malformed> {
        let turn = self.volumes.machines.wait(self.id).await;
        let export = Arc::clone(self);
        // Whoever gives up waiting for it does not end it: the turn is over with the work.
        let answered = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            export.answer_now(&request, again)
        });
        answered.await.unwrap_or_else(|panicked| {
            tracing::error!(
                error = &panicked as &dyn std::error::Error,
                "a request to a volume was not answered"
            );
            Ok(None)
        })
    }

    /// The same at once. Blocks.
    pub(crate) fn answer_now(&self, request: &[u8], again: bool) -> Result<Option<Vec<u8>>, Malformed> {
        let Asked { head, request } = Asked::parse(request)?;
        if request == Request::Word {
            return Ok(None);
        }
        let reply = self
            .act(head, &request, again)
            .unwrap_or_else(|errno| Reply::refused(head.unique, errno));
        Ok(Some(reply.into_bytes()))
    }

    fn handle_of(&self, node: u64) -> Handle {
        if node == ROOT {
            return self.root_handle;
        }
        let [a, b, c, d, e, f, g, h] = node.to_le_bytes();
        Handle {
            inode: u32::from_le_bytes([a, b, c, d]),
            generation: u32::from_le_bytes([e, f, g, h]),
        }
    }

    fn number_of(&self, handle: Handle) -> u64 {
        if handle == self.root_handle {
            return ROOT;
        }
        u64::from(handle.inode) | u64::from(handle.generation) << 32
    }

    /// Opens what has a number.
    fn open(&self, node: u64, flags: OFlags) -> Done<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = handle::open(
            self.root.as_fd(),
            self.handle_of(node),
            flags.bits().cast_signed(),
        );
        let opened = opened.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if rustix::fs::fstat(&opened)?.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        Ok(opened)
    }

    /// The thing itself, whatever it is.
    fn thing(&self, node: u64) -> Done<OwnedFd> {
        self.open(node, OFlags::PATH)
    }

    /// A directory, for names in it to be found.
    fn dir(&self, node: u64) -> Done<OwnedFd> {
        self.open(node, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// A regular file, to be read and written; the one that was opened, where it is still held.
    fn file(&self, node: u64, file: u64) -> Done<Arc<OwnedFd>> {
        if let Some(held) = self.opened.get(file, node) {
            return Ok(held);
        }
        let opened = self.open(node, OFlags::RDWR)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        Ok(Arc::new(opened))
    }

    fn attributes(&self, thing: impl AsFd) -> Done<Attributes> {
        let stat = rustix::fs::fstat(&thing)?;
        let handle = handle::of(thing.as_fd(), c"");
        let handle = handle.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(Attributes {
            handle,
            number: self.number_of(handle),
            stat,
        })
    }

    /// What has a name in a directory. No link is followed, and nothing that is mounted there is entered.
    fn child(&self, dir: &OwnedFd, name: &std::ffi::CStr) -> Done<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        if rustix::fs::fstat(&child)?.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        Ok(child)
    }

    /// Gives what was just made to whoever made it.
    fn give(&self, dir: &OwnedFd, child: &OwnedFd, head: Head, mode: u32) -> Done<()> {
        let above = rustix::fs::fstat(dir)?;
        // A directory with this bit hands its group down, and the bit to directories.
        let inherits = above.st_mode & SET_GID != 0;
        let group = if inherits { above.st_gid } else { head.gid };
        let (user, group) = (
            rustix::fs::Uid::from_raw(head.uid),
            rustix::fs::Gid::from_raw(group),
        );
        rustix::fs::chownat(child, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
        match FileType::from_raw_mode(rustix::fs::fstat(child)?.st_mode) {
            FileType::Symlink => Ok(()),
            FileType::Directory if inherits => set_mode(child, mode | SET_GID),
            _ => set_mode(child, mode),
        }
    }
}

const SET_GID: u32 = 0o2000;

/// By its name among our descriptors: one of a place alone has no other way.
fn set_mode(thing: impl AsFd, mode: u32) -> Done<()> {
    let itself = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&thing.as_fd())
    );
    rustix::fs::chmod(itself, Mode::from_raw_mode(mode & 0o7777))
}

#[cfg(test)]
mod tests;
