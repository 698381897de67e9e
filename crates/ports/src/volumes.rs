//! Volumes: what must not be lost of them, and the files in them.
use std::time::SystemTime;

use async_trait::async_trait;
use model::{Kind, MiB, TeamId, Volume, VolumeId};

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
    /// Removes one. None is no error.
    async fn remove_volume(&self, id: VolumeId) -> Result<(), StoreError>;
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
    /// Makes an empty volume.
    async fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError>;
    /// Removes a volume with everything in it. None is no error. [`FileError::InUse`] while a sandbox has it.
    async fn discard(&self, id: VolumeId) -> Result<(), FileError>;
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

/// Why nothing was done with a file of a volume.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The volume is not here.
    #[error("Volume not found")]
    NoVolume,
    /// A sandbox has it mounted.
    #[error("Volume '{0}' is in use by a sandbox")]
    InUse(VolumeId),
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
            FileError::InUse(_) | FileError::Exists(_) => Kind::Conflict,
            FileError::WrongKind { .. } | FileError::Invalid(_) | FileError::Source(_) => Kind::Invalid,
            FileError::Full => Kind::Exhausted,
            FileError::Failed { .. } => Kind::Internal,
        }
    }
}
