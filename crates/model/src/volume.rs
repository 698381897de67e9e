use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{MiB, TeamId, VolumeId};

/// A file system that outlives sandboxes and may be mounted into several at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name for ever.
    pub id: VolumeId,
    /// Who owns it.
    pub team: TeamId,
    /// Its name in the team: `[a-zA-Z0-9_-]+` (contract, section 6).
    pub name: String,
    /// The most that it holds.
    pub size: MiB,
    /// When it was made.
    pub created_at: SystemTime,
}

/// A volume at a place in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Which.
    pub volume: VolumeId,
    /// Its name when the sandbox was created.
    pub name: String,
    /// Where: absolute and clean.
    pub path: String,
}
