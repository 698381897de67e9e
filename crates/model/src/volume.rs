use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{MiB, NodeId, TeamId, VolumeId};

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
    /// The node on whose disk its files lie, for ever. `None`: on the one node of a server that is one machine, as everything
    /// was before there were fleets.
    #[serde(default)]
    pub home: Option<NodeId>,
    /// What may be done with it.
    #[serde(default)]
    pub state: VolumeState,
    /// Counts the writes of it, for compare-and-set.
    #[serde(default)]
    pub version: u64,
}

/// What may be done with a volume.
///
/// ```text
/// Making ──▶ Ready ──▶ Doomed ──▶ given up: its name is free, its files are removed as soon as its home is there
///    │         ▲──────────┘  a sandbox has it                      ▲
///    └─────────────────────────────────────────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// It is stored, and its files are being made: no sandbox takes it.
    Making,
    /// It is there.
    #[default]
    Ready,
    /// It is to be deleted unless a sandbox has it: no other takes it.
    Doomed,
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
