//! Volumes: what must not be lost of them, the files in them, and the nodes that have those.
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use model::{Kind, MiB, NodeId, TeamId, Volume, VolumeId};

use crate::blobs::ByteStream;
use crate::store::StoreError;

/// Volumes of teams. Losing them loses the names of what lies on the nodes.
#[async_trait]
pub trait VolumeStore: Send + Sync {
    /// Stores a new one. [`StoreError::Conflict`] if its id, or its name in its team, is taken.
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError>;
    /// By id.
    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, StoreError>;
    /// By its name in a team.
    async fn volume_named(&self, team: TeamId, name: &str) -> Result<Option<Volume>, StoreError>;
    /// Those of a team, by creation.
    async fn volumes(&self, team: TeamId) -> Result<Vec<Volume>, StoreError>;
    /// All of them.
    async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError>;
    /// Replaces one whose stored version is `volume.version`, and returns the new version. [`StoreError::Conflict`] if it was
    /// written since, [`StoreError::Missing`] if it is not there. Its id, team, name and time stay.
    async fn update_volume(&self, volume: &Volume) -> Result<u64, StoreError>;
    /// Takes one away whose stored version is `volume.version`, so that nobody finds it and its name is free, and notes it among
    /// the remains: both, or neither. Errors as of [`VolumeStore::update_volume`].
    async fn give_up_volume(&self, volume: &Volume) -> Result<(), StoreError>;
    /// Those that were given up, and whose files may be on their nodes still, by id.
    async fn volume_remains(&self) -> Result<Vec<Volume>, StoreError>;
    /// Forgets one of the remains. None is no error.
    async fn forget_remains(&self, id: VolumeId) -> Result<(), StoreError>;
}

/// What kind of thing lies at a path of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// What lies at a path of a volume, as sandboxes see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    /// Its last part; `/` for the root.
    pub name: String,
    /// From the volume's root, absolute.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permissions and kind, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last read.
    pub atime: SystemTime,
    /// Last write.
    pub mtime: SystemTime,
    /// Last change of these facts.
    pub ctime: SystemTime,
    /// Where a link leads.
    pub target: Option<String>,
}

/// Owner and permissions, where they are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits, below 0o10000.
    pub mode: Option<u32>,
}

/// The files of volumes. Paths are absolute within the volume, or taken as if they were; no link is followed out of it.
#[async_trait]
pub trait VolumeFiles: Send + Sync {
    /// Makes an empty volume. One that is there already is no error, and stays as it is.
    async fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError>;
    /// Removes a volume with everything in it. None is no error. [`FileError::InUse`] while a sandbox has it.
    async fn discard(&self, id: VolumeId) -> Result<(), FileError>;
    /// The volumes that are here, finished or not.
    async fn held(&self) -> Result<Vec<VolumeId>, FileError>;
    /// What lies at a path; a link at its end is not followed.
    async fn stat(&self, id: VolumeId, path: &str) -> Result<FileStat, FileError>;
    /// Changes owner and permissions.
    async fn change(&self, id: VolumeId, path: &str, ownership: Ownership) -> Result<FileStat, FileError>;
    /// What lies in a directory and, with a depth above 1, below it; in the order of names.
    async fn list(&self, id: VolumeId, path: &str, depth: u32) -> Result<Vec<FileStat>, FileError>;
    /// Makes a directory. `force`: those above it are made too, with the same owner, and one that is there already is no error.
    /// Without: [`FileError::NotFound`] of what it was to lie in, [`FileError::Exists`].
    async fn make_dir(
        &self,
        id: VolumeId,
        path: &str,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError>;
    /// Removes a file, or a directory with everything in it.
    async fn remove(&self, id: VolumeId, path: &str) -> Result<(), FileError>;
    /// The bytes of a file, and how many they are.
    async fn read(&self, id: VolumeId, path: &str) -> Result<(u64, ByteStream), FileError>;
    /// Writes a file, whole or not at all. `force`: one that is there already is replaced, directories above it are made.
    async fn write(
        &self,
        id: VolumeId,
        path: &str,
        bytes: ByteStream,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError>;
}

/// The nodes on which volumes lie.
pub trait VolumeNodes: Send + Sync {
    /// The files of the volumes on a node; `None` while it is not in the fleet.
    fn files_on(&self, node: NodeId) -> Option<Arc<dyn VolumeFiles>>;
    /// The one node that there is, where there is never another: all volumes lie there.
    fn only(&self) -> Option<NodeId> {
        None
    }
}

/// A server that is one machine.
pub struct OneNode {
    node: NodeId,
    files: Arc<dyn VolumeFiles>,
}

impl OneNode {
    /// The files that are on it.
    #[must_use]
    pub fn new(node: NodeId, files: Arc<dyn VolumeFiles>) -> Self {
        Self { node, files }
    }
}

impl VolumeNodes for OneNode {
    fn files_on(&self, node: NodeId) -> Option<Arc<dyn VolumeFiles>> {
        (node == self.node).then(|| Arc::clone(&self.files))
    }
    fn only(&self) -> Option<NodeId> {
        Some(self.node)
    }
}

/// Why nothing was done with a file of a volume.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The volume is not here.
    #[error("Volume not found")]
    NoVolume,
    /// A sandbox has it mounted.
    #[error("Volume '{0}' is in use by a sandbox")]
    InUse(VolumeId),
    /// Its node is not reached, or its answer was lost: then it may have been done all the same.
    #[error("volume {volume} lies on node {node}, which is away; try again when that node is back")]
    Away {
        /// Which.
        volume: VolumeId,
        /// Where it lies.
        node: NodeId,
    },
    /// Its node is there, and does not have its files.
    #[error(
        "volume {volume} lies on node {node}, which does not have its files any more: they were moved or lost"
    )]
    Lost {
        /// Which.
        volume: VolumeId,
        /// Where it should lie.
        node: NodeId,
    },
    /// Its node has as much under way as it takes at a time.
    #[error("the volume's node is busy; try again")]
    Crowded,
    /// Nothing lies at the path.
    #[error("path '{0}' does not exist")]
    NotFound(String),
    /// Something lies there already.
    #[error("path '{0}' already exists")]
    Exists(String),
    /// It is not of the kind that is needed.
    #[error("path '{path}' is not {wanted}")]
    WrongKind {
        /// Where.
        path: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The path, or what is asked, makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The volume, or the node, has no room left.
    #[error("no space left on the volume")]
    Full,
    /// The bytes that were to be written ended with an error.
    #[error("the upload broke off")]
    Source(#[source] std::io::Error),
    /// A fault of ours.
    #[error("{step} failed")]
    Failed {
        /// At what.
        step: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl FileError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            FileError::NoVolume | FileError::NotFound(_) => Kind::NotFound,
            FileError::InUse(_) | FileError::Exists(_) | FileError::Lost { .. } => Kind::Conflict,
            FileError::WrongKind { .. } | FileError::Invalid(_) | FileError::Source(_) => Kind::Invalid,
            FileError::Away { .. } | FileError::Crowded => Kind::Unavailable,
            FileError::Full => Kind::Exhausted,
            FileError::Failed { .. } => Kind::Internal,
        }
    }
}
