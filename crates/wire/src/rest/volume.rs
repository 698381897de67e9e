use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A volume that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewVolume {
    /// Its name in the team: `[a-zA-Z0-9_-]+`.
    #[schema(pattern = "^[a-zA-Z0-9_-]+$", max_length = 128)]
    pub name: String,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its id.
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// Its name in the team.
    pub name: String,
}

/// A volume, to whoever may use its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeAndToken {
    /// Its id.
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// Its name in the team.
    pub name: String,
    /// The bearer token of its content.
    pub token: String,
    /// Where its content is reached, if not below the client's domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// What kind of thing lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeEntryKind {
    /// None of the others.
    Unknown,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// What lies at a path of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeEntry {
    /// The path's last part.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: VolumeEntryKind,
    /// From the volume's root, absolute.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// As in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last read, RFC 3339.
    pub atime: String,
    /// Last write, RFC 3339.
    pub mtime: String,
    /// Last change of these facts, RFC 3339.
    pub ctime: String,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Owner and permissions; what is left out stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChangeVolumeEntry {
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits, below 0o10000.
    #[schema(maximum = 4095)]
    pub mode: Option<u32>,
}

/// The body of every error of a volume's content: its code is a word, unlike that of [`super::Error`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeContentError {
    /// What kind of failure it is.
    pub code: String,
    /// What happened, to what, and what to do.
    pub message: String,
}

/// The bytes of a file, or of an upload.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Binary(pub Vec<u8>);
