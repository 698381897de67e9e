use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a sandbox changed against its template: Atoll's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct SandboxChanges {
    /// By path. What lies in a directory that is gone is not listed.
    pub changes: Vec<SandboxChange>,
    /// There are more changes than are told.
    pub truncated: bool,
}

/// One path that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxChange {
    /// Absolute.
    pub path: String,
    /// What became of it.
    pub kind: SandboxChangeKind,
    /// What lies there; of what was deleted, what lay there.
    #[serde(rename = "type")]
    pub file: super::VolumeEntryKind,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxChangeKind {
    /// There was nothing.
    Added,
    /// It is another.
    Modified,
    /// There is nothing any more.
    Deleted,
}

/// What the processes of an exported sandbox run with: JSON, in base64, in the header [`IMAGE_CONFIG`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedConfig {
    /// Environment.
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
    /// User.
    #[serde(default)]
    pub user: String,
    /// Directory.
    #[serde(default)]
    pub workdir: Option<String>,
}

/// The header of an export that tells [`ExportedConfig`].
pub const IMAGE_CONFIG: &str = "x-atoll-image-config";
