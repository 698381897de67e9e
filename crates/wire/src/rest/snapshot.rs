use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Error;
use super::sandbox::{Memory, Sandbox};

/// A snapshot that is to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewSnapshot {
    /// `[namespace/]name[:tag]` of a new template, or of a snapshot of which this becomes a new build.
    pub name: Option<String>,
    /// `false` keeps the disk only.
    pub memory: Option<bool>,
}

/// A snapshot, which sandboxes start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// What `templateID` is when a sandbox is created from it: `namespace/name:tag`, or `id:default` of one without a name.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Its names, each as `namespace/name:tag`.
    pub names: Vec<String>,
    /// How much of the processes it holds: Atoll's own.
    pub memory: Memory,
}

/// Copies of a running sandbox that are to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ForkSandbox {
    /// Seconds that they live; 15 by default.
    pub timeout: Option<i64>,
    /// How many: 1..=100, and fewer than the team's sandboxes may be; 1 by default.
    #[schema(minimum = 1, maximum = 100)]
    pub count: Option<i64>,
}

/// What became of one copy: either is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forked {
    /// It runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// It did not come up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}
