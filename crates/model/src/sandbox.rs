use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{
    BuildId, Lifecycle, Memory, NetworkPolicy, Phase, Resources, SandboxId, Settings, TeamId, TemplateId,
    VolumeMount,
};

/// A sandbox as it is stored: desired state and the last settled fact about it.
///
/// Tokens are not stored: they are derived from the cluster's seed and the id, and so stay the same for its whole
/// life (contract 2.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its name for ever.
    pub id: SandboxId,
    /// Who owns it.
    pub team: TeamId,
    /// The base template, also after resumes.
    pub template: TemplateId,
    /// The build that it was created from.
    pub build: BuildId,
    /// The name by which the template was asked for, if it has one.
    pub alias: Option<String>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Counts the writes; a write names the version that it read.
    pub version: u64,
    /// When the present run began: creation, or the last resume.
    pub started_at: SystemTime,
    /// When its time is over; for a paused one, when it was.
    pub end_at: SystemTime,
    /// The timeout that it was created or last connected with, in seconds: an auto-resume takes it again.
    pub timeout_seconds: u32,
    /// The size of its machine.
    pub resources: Resources,
    /// The user's labels.
    pub metadata: BTreeMap<String, String>,
    /// Environment of all of its processes.
    pub env: BTreeMap<String, String>,
    /// What it does without being asked.
    pub lifecycle: Lifecycle,
    /// What it began as: the template may have other builds by now, or be gone.
    #[serde(default)]
    pub settings: Settings,
    /// What is mounted into it.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// How much of its memory the last pause kept; of use while it is paused.
    #[serde(default)]
    pub kept: Memory,
    /// The pause by which it leaves a node that is to be emptied: while it is paused under this name, it is on its way to another
    /// one, and is resumed there without being asked for. Of no use in any other phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<BuildId>,
    /// What it may reach.
    pub network: NetworkPolicy,
    /// Whether envd asks for the sandbox's access token.
    pub secure: bool,
    /// Whether its envd did not answer when it was paused (contract 3.5, connect).
    pub envd_unresponsive_at_pause: bool,
}

impl Sandbox {
    /// Whether it is paused, or is being paused, to go on on another node.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        match self.phase {
            Phase::Paused { snapshot, .. } => self.moving == Some(snapshot),
            Phase::Pausing { into, .. } => self.moving == Some(into),
            _ => false,
        }
    }
}
