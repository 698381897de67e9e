//! One layer of an image, unpacked: a tar becomes a directory as overlayfs wants its layers.
//!
//! ```text
//! bytes ──sha256──▶ blob     gzip, zstd or plain     ──sha256──▶ diff     tar ──▶ directory
//! ```
//!
//! What an archive cannot say here: names with `..`, owners beyond 65535, sockets and kinds that nobody has described, hard links
//! to what the same layer does not have, and the device 0:0, which means "deleted" to overlayfs. The first `/` of an absolute
//! name is passed over, a link within a name is walked with the layer as its root. Devices are passed over: sandboxes have
//! their own `/dev`. Of extended attributes `user.*` and `security.capability` are kept, the others passed over.
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::tar::{Archive, Entry, TarError, What};

pub(crate) mod source;
mod tree;

use source::{Beyond, Foreign, Hashed, Plain};
use tree::{Meta, Tree, TreeError, parts};

/// As Linux has it.
const PATH_BYTES_MAX: usize = 4096;
/// As Linux has it.
const NAME_BYTES_MAX: usize = 255;
/// Users and groups of a sandbox: so many ids are mapped.
const IDS: u64 = 1 << 16;
/// Pieces in which files are written.
const PIECE_BYTES: usize = 128 << 10;
/// What a file or directory takes on a disk beside its bytes.
const ENTRY_BYTES: u64 = 4096;
/// So often is looked whether others still have room on the file system, …
const LOOK_EVERY_BYTES: u64 = 64 << 20;
/// … which is a tenth of a small one, and at most this: the daemon's own records are written there too, and an image must not
/// be able to stop everything.
const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// What is shown of a name.
const SHOWN_CHARS_MAX: usize = 200;
/// A file with holes looks no longer than this, whatever it holds: 16 TiB, the longest that ext4 has.
const HOLEY_BYTES_MAX: u64 = 16 << 40;
/// Times that file systems can keep: 1901 to 2446.
const TIMES: (i64, i64) = (-(1 << 31), (1 << 34) - (1 << 31) - 1);

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What a file system of old kept for itself in its layers.
const PRIVATE: &[u8] = b".wh..wh.";

/// How much a layer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of its tar, uncompressed.
    pub bytes: u64,
    /// Entries of its tar.
    pub entries: u64,
}

/// What came of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// What the compressed bytes are known by.
    pub blob: Digest,
    /// How many they were.
    pub blob_bytes: u64,
    /// What the uncompressed bytes are known by.
    pub diff: Digest,
    /// How many they were.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// About what it takes on disk.
    pub disk_bytes: u64,
    /// Devices, and extended attributes, that were passed over.
    pub passed_over: u64,
    /// Directories that the archive has no entry for: the lower layers' metadata is theirs.
    pub implied: Vec<Vec<u8>>,
    /// Nothing of lower layers shows through it.
    pub hides_all: bool,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its bytes broke off, or could not be uncompressed.
    #[error("the layer cannot be read")]
    Input(#[source] io::Error),
    /// Its archive is broken.
    #[error(transparent)]
    Tar(TarError),
    /// It is compressed in a way that is not supported.
    #[error(
        "the layer is compressed by {0}: only gzip and zstd are supported; push the image with one of them"
    )]
    Compression(&'static str),
    /// An entry says what no layer may say.
    #[error("the layer's entry {path:?} is refused: {why}")]
    Refused {
        /// Its name, as far as it is shown.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is too large.
    #[error("the layer has more than {limit} {what}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many it may have.
        limit: u64,
    },
    /// The disk refused, or is full.
    #[error("{step} for the layer's entry {path:?} failed")]
    Disk {
        /// At what.
        step: &'static str,
        /// For which entry.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Unpacks a layer into an empty directory, as root. Nothing beside the directory is touched, whatever the bytes are.
/// What is there after a failure is for the caller to remove. Nothing is flushed to disk.
pub fn unpack(input: impl Read, into: &Path, limits: Limits) -> Result<Unpacked, LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(into, flags, Mode::empty()).map_err(|errno| LayerError::Disk {
        step: "opening the directory",
        path: String::new(),
        source: errno.into(),
    })?;
    let mut blob = Hashed::new(input, u64::MAX);
    let plain = match Plain::new(&mut blob).map_err(LayerError::Input)? {
        Ok(plain) => plain,
        Err(Foreign(name)) => return Err(LayerError::Compression(name)),
    };
    let mut diff = Hashed::new(plain, limits.bytes);
    let mut work = Work {
        archive: Archive::new(&mut diff),
        tree: Tree::new(root),
        buffer: vec![0; PIECE_BYTES],
        limits,
        entries: 0,
        disk_bytes: 0,
        unlooked_bytes: LOOK_EVERY_BYTES,
        passed_over: 0,
        hides_all: false,
    };
    work.all()?;
    let Work {
        tree,
        entries,
        disk_bytes,
        passed_over,
        hides_all,
        ..
    } = work;
    let implied = tree.finish().map_err(|error| of_tree(b"/", error))?;
    let (diff, bytes) = diff.seen();
    // Whatever a decoder did not care for belongs to the digest too.
    let mut waste = [0; 4096];
    while blob.read(&mut waste).map_err(LayerError::Input)? > 0 {}
    let (blob, blob_bytes) = blob.seen();
    Ok(Unpacked {
        blob,
        blob_bytes,
        diff,
        bytes,
        entries,
        disk_bytes,
        passed_over,
        implied: implied.into_iter().collect(),
        hides_all,
    })
}

/// A layer on its way to disk.
struct Work<R> {
    archive: Archive<R>,
    tree: Tree,
    buffer: Vec<u8>,
    limits: Limits,
    entries: u64,
    disk_bytes: u64,
    /// What was written since it was looked whether there is room.
    unlooked_bytes: u64,
    passed_over: u64,
    hides_all: bool,
}

impl<R: Read> Work<R> {
    fn all(&mut self) -> Result<(), LayerError> {
        while let Some(entry) = self.archive.next().map_err(of_tar)? {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(LayerError::TooLarge {
                    what: "entries",
                    limit: self.limits.entries,
                });
            }
            self.disk_bytes += ENTRY_BYTES;
            self.take_room(&entry, ENTRY_BYTES)?;
            self.entry(&entry)?;
        }
        self.archive.drain().map_err(of_tar)?;
        Ok(())
    }

    /// Refuses what would take the room of others.
    fn take_room(&mut self, entry: &Entry, bytes: u64) -> Result<(), LayerError> {
        const STEP: &str = "looking for room";
        self.unlooked_bytes += bytes;
        if self.unlooked_bytes < LOOK_EVERY_BYTES {
            return Ok(());
        }
        self.unlooked_bytes = 0;
        let about = rustix::fs::fstatvfs(self.tree.root()).map_err(|errno| disk(&entry.path, STEP, errno))?;
        let bytes = |blocks: u64| blocks.saturating_mul(about.f_frsize);
        if is_enough(bytes(about.f_bavail), bytes(about.f_blocks)) {
            return Ok(());
        }
        Err(disk(&entry.path, STEP, Errno::NOSPC))
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let refused = |why: String| refuse(&entry.path, why);
        let path = names(&entry.path).map_err(|why| refused(why.to_owned()))?;
        let (uid, gid) = match (id(entry.uid), id(entry.gid)) {
            (Some(uid), Some(gid)) => (uid, gid),
            _ => {
                let why = format!("its owner {}:{} is not below {IDS}", entry.uid, entry.gid);
                return Err(refused(why));
            }
        };
        let mut xattrs = Vec::new();
        for (name, value) in &entry.xattrs {
            match attribute(name, value, &entry.what) {
                Some(kept) => xattrs.push(kept),
                None => self.passed_over += 1,
            }
        }
        let meta = Meta {
            mode: entry.mode,
            uid,
            gid,
            mtime: (entry.mtime.0.clamp(TIMES.0, TIMES.1), entry.mtime.1),
            xattrs: &xattrs,
        };
        let Some((name, parents)) = path.split_last() else {
            return match entry.what {
                What::Dir => self
                    .tree
                    .set_root(meta)
                    .map_err(|error| of_tree(&entry.path, error)),
                _ => Err(refused("the root of a layer must be a directory".to_owned())),
            };
        };
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
            return Err(refused("it lies in a whiteout".to_owned()));
        }
        match &entry.what {
            What::Char { major: 0, minor: 0 } => {
                return Err(refused(
                    "the device 0:0 is how overlayfs marks what is deleted".to_owned(),
                ));
            }
            What::Char { .. } | What::Block => {
                self.passed_over += 1;
                return Ok(());
            }
            _ => {}
        }
        self.put(entry, name, parents, meta)
    }

    fn put(
        &mut self,
        entry: &Entry,
        name: &[u8],
        parents: &[&[u8]],
        meta: Meta<'_>,
    ) -> Result<(), LayerError> {
        let at = |error| of_tree(&entry.path, error);
        if name.starts_with(PRIVATE) && name != OPAQUE {
            return Ok(());
        }
        self.tree.go(parents).map_err(at)?;
        if name == OPAQUE {
            self.hides_all |= self.tree.is_at_root();
            return self.tree.hide_lower().map_err(at);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(refuse(&entry.path, "a whiteout of no name".to_owned()));
            }
            return self.tree.whiteout(hidden).map_err(at);
        }
        match &entry.what {
            What::File => self.file(entry, name, meta),
            What::Dir => self.tree.dir(name, meta).map_err(at),
            What::Symlink(to) if to.len() >= PATH_BYTES_MAX => {
                Err(refuse(&entry.path, "what the link says is too long".to_owned()))
            }
            What::Symlink(to) => self.tree.symlink(name, to, meta).map_err(at),
            What::Link(to) => {
                let to = names(to)
                    .map_err(|why| refuse(&entry.path, format!("of what it is a hard link to: {why}")))?;
                self.tree.link(name, &to).map_err(at)
            }
            What::Fifo => self.tree.fifo(name, meta).map_err(at),
            What::Char { .. } | What::Block => unreachable!("devices were passed over"),
        }
    }

    fn file(&mut self, entry: &Entry, name: &[u8], meta: Meta<'_>) -> Result<(), LayerError> {
        let at = |error| of_tree(&entry.path, error);
        let file = self.tree.file(name).map_err(at)?;
        self.disk_bytes += self.archive.left();
        match &entry.pieces {
            None => self.copy(entry, &file, 0, entry.size)?,
            Some(pieces) => {
                if entry.size > HOLEY_BYTES_MAX {
                    return Err(refuse(
                        &entry.path,
                        format!("it is longer than {HOLEY_BYTES_MAX} bytes"),
                    ));
                }
                for piece in pieces {
                    self.copy(entry, &file, piece.offset, piece.bytes)?;
                }
                let sized = rustix::fs::ftruncate(&file, entry.size);
                sized.map_err(|errno| disk(&entry.path, "setting a file's length", errno))?;
            }
        }
        tree::dress(file.as_fd(), meta).map_err(at)?;
        tree::set_mtime(file.as_fd(), meta.mtime).map_err(at)
    }

    fn copy(&mut self, entry: &Entry, file: &OwnedFd, mut offset: u64, bytes: u64) -> Result<(), LayerError> {
        let end = offset + bytes;
        while offset < end {
            let most = usize::try_from(end - offset)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            // Whole pieces, whatever the decoder hands out at a time.
            let mut have = 0;
            while have < most {
                match self.archive.read(&mut self.buffer[have..most]).map_err(of_tar)? {
                    0 => return Err(LayerError::Tar(TarError::Cut("a file"))),
                    read => have += read,
                }
            }
            self.take_room(entry, have as u64)?;
            let mut written = 0;
            while written < have {
                match rustix::io::pwrite(file, &self.buffer[written..have], offset + written as u64) {
                    Ok(more) => written += more,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(disk(&entry.path, "writing", errno)),
                }
            }
            offset += have as u64;
        }
        Ok(())
    }
}

fn is_enough(free_bytes: u64, total_bytes: u64) -> bool {
    free_bytes >= (total_bytes / 10).min(RESERVE_BYTES_MAX)
}

/// The names of a path, of which none leads up.
pub(crate) fn names(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Err("the name is longer than 4096 bytes");
    }
    let names: Vec<&[u8]> = parts(path).collect();
    if names.contains(&b"..".as_slice()) {
        return Err("the name has '..' in it");
    }
    if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err("a part of the name is longer than 255 bytes");
    }
    Ok(names)
}

fn id(id: u64) -> Option<u32> {
    u32::try_from(id).ok().filter(|_| id < IDS)
}

/// An attribute that is kept. Attributes of overlayfs must be ours alone; those of other file systems mean nothing here.
fn attribute(name: &[u8], value: &[u8], what: &What) -> Option<(String, Vec<u8>)> {
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|name| name.len() <= NAME_BYTES_MAX && !name.contains('\0'))?;
    if name == "security.capability" {
        let kept = (*what == What::File).then(|| capability(value)).flatten()?;
        return Some((name.to_owned(), kept));
    }
    let is_users = name.strip_prefix("user.").is_some_and(|rest| !rest.is_empty());
    let fits = matches!(what, What::File | What::Dir) && value.len() <= 64 << 10;
    (is_users && fits && !name.starts_with("user.overlay.")).then(|| (name.to_owned(), value.to_vec()))
}

/// Capabilities of a program: of the second revision, which holds in whatever user namespace the layer is seen from. The third
/// names a user of one namespace; for that of the root it says the same.
fn capability(value: &[u8]) -> Option<Vec<u8>> {
    let revision = *value.get(3)?;
    match (revision, value.len()) {
        (2, 20) => Some(value.to_vec()),
        (3, 24) if value[20..] == [0; 4] => {
            let mut value = value[..20].to_vec();
            value[3] = 2;
            Some(value)
        }
        _ => None,
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .take(SHOWN_CHARS_MAX)
        .collect()
}

fn refuse(path: &[u8], why: String) -> LayerError {
    LayerError::Refused {
        path: shown(path),
        why,
    }
}

fn disk(path: &[u8], step: &'static str, errno: Errno) -> LayerError {
    LayerError::Disk {
        step,
        path: shown(path),
        source: errno.into(),
    }
}

fn of_tree(path: &[u8], error: TreeError) -> LayerError {
    match error {
        TreeError::Refused(why) => refuse(path, why.to_owned()),
        TreeError::Disk(step, errno) => disk(path, step, errno),
    }
}

fn of_tar(error: TarError) -> LayerError {
    match error {
        TarError::Input(source) => match source.get_ref().and_then(|inner| inner.downcast_ref::<Beyond>()) {
            Some(Beyond(limit)) => LayerError::TooLarge {
                what: "bytes",
                limit: *limit,
            },
            None => LayerError::Input(source),
        },
        error => LayerError::Tar(error),
    }
}

#[cfg(test)]
mod tests;
