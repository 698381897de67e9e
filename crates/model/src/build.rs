use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;
use crate::{BuildId, NodeId, ProcessId, Resources, TeamId, TemplateId};

/// One build of a template, from its registration on.
///
/// ```text
/// Waiting ──start──▶ Building ──▶ Ready
///    └──────────────────┴────────▶ Failed
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// Its name for ever: also what sandboxes start from, when it is ready.
    pub id: BuildId,
    /// Of which template.
    pub template: TemplateId,
    /// Who owns it.
    pub team: TeamId,
    /// How far it is.
    pub status: BuildStatus,
    /// What is to name it when it is ready.
    pub tags: Vec<String>,
    /// The size of its sandboxes.
    pub resources: Resources,
    /// What is built, from the start on. Credentials are taken out of it when the build has ended.
    pub recipe: Option<Recipe>,
    /// Who builds it, or has built it.
    pub node: Option<NodeId>,
    /// Which process of the control plane carries it through, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<Runner>,
    /// When it was registered.
    pub created_at: SystemTime,
    /// When it last changed.
    pub updated_at: SystemTime,
    /// When it ended.
    pub finished_at: Option<SystemTime>,
    /// Counts the writes; a write names the version that it read.
    pub version: u64,
}

/// A process that carries a build through, and that it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// Which.
    pub process: ProcessId,
    /// Counts on while it lives: one that stands still is dead, or cannot reach the store.
    pub beat: u64,
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// Registered: files may be uploaded, and it may be started.
    Waiting,
    /// A node is at it, or will be.
    Building,
    /// Sandboxes start from it.
    Ready,
    /// It has ended without a result.
    Failed(BuildFailure),
}

impl BuildStatus {
    /// Whether it changes no more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, BuildStatus::Ready | BuildStatus::Failed(_))
    }
}

/// Why a build failed: shown to its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// What happened, to what, and what to do.
    pub message: String,
    /// In which step.
    pub step: Option<BuildStep>,
}

/// A part of a build, as clients know it (contract 4.1): `base`, the number of a step from 1, `finalize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildStep {
    /// Getting what it starts from.
    Base,
    /// A step of the recipe, counted from 1.
    Step(u32),
    /// Start command, ready command, and keeping the result.
    Finalize,
}

impl std::fmt::Display for BuildStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BuildStep::Base => f.write_str("base"),
            BuildStep::Step(number) => write!(f, "{number}"),
            BuildStep::Finalize => f.write_str("finalize"),
        }
    }
}
