//! What is in the root of a sandbox, for those who look at it from outside.
use std::collections::BTreeMap;

use crate::blobs::ByteStream;
use crate::volumes::FileKind;

/// The most changes that are told of.
pub const CHANGES_MAX: usize = 100_000;
/// The most bytes of files that an export holds: what an image may hold by default, twice.
pub const EXPORT_BYTES_MAX: u64 = 64 << 30;

/// What a sandbox changed against what it started from, by path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// At most [`CHANGES_MAX`], in the order of their paths. What lies in a directory that is gone is not listed.
    pub entries: Vec<Change>,
    /// There is more, which is not told.
    pub is_cut: bool,
}

/// One path that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute; what is not UTF-8 in it is replaced.
    pub path: String,
    /// What became of it.
    pub kind: ChangeKind,
    /// What lies there; of what was deleted, what lay there.
    pub file: FileKind,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// There was nothing.
    Added,
    /// Its content, owner, permissions, time or kind is another. Of a directory, its owner or permissions.
    Modified,
    /// There is nothing any more.
    Deleted,
}

/// The root of a sandbox with what its processes run with, to be made an image of.
pub struct ExportedRoot {
    /// Environment of its processes.
    pub env: BTreeMap<String, String>,
    /// Default user of its commands.
    pub user: String,
    /// Default directory of its commands.
    pub workdir: Option<String>,
    /// A tar of all that lies in it, owners as the sandbox sees them: directories, files, links, hard links, named pipes, and
    /// extended attributes `user.*`. Devices and sockets are left out. It fails in the end where it would hold more than
    /// [`EXPORT_BYTES_MAX`].
    pub tar: ByteStream,
}
