//! Bodies of the public API (contract, section 3), one file for each noun. Names on the wire are the contract's.
mod build;
mod error;
mod key;
mod logs;
mod metrics;
mod network;
mod node;
mod object;
mod root;
mod sandbox;
mod snapshot;
mod tag;
mod template;
mod volume;

pub use build::{
    BuildEntry, BuildInfo, BuildLogs, BuildReason, BuildStatus, FileUpload, NewBuild, RegisteredBuild,
    Registry, StartBuild, TemplateStep,
};
pub use error::Error;
pub use key::{CreatedKey, Key, KeyMask, NewKey, Team};
pub use logs::{LogDirection, LogEntry, LogLevel, LogLine, Logs, LogsV2};
pub use metrics::{SandboxMetric, SandboxesMetrics};
pub use network::{NetworkConfig, NetworkUpdate};
pub use node::{Capabilities, Node, NodeDetail, NodeDrain, NodeStatusChange};
pub use object::Object;
pub use root::{ExportedConfig, IMAGE_CONFIG, SandboxChange, SandboxChangeKind, SandboxChanges};
pub use sandbox::{
    AutoResume, ConnectSandbox, Lifecycle, ListedSandbox, Memory, NewSandbox, OnTimeout, PauseMode,
    PauseSandbox, RefreshSandbox, ResumeSandbox, Sandbox, SandboxDetail, SandboxState, SetTimeout,
    VolumeMount,
};
pub use snapshot::{ForkSandbox, Forked, NewSnapshot, Snapshot};
pub use tag::{
    AssignTags, AssignedTags, DeleteTags, TagAssignment, TagAssignments, TagExists, TagGroup, TagGroups,
    TagsCount,
};
pub use template::{
    Alias, ChangeTemplate, ChangedTemplate, Template, TemplateBuild, TemplateDetail, TemplateTag,
};
pub use volume::{
    Binary, ChangeVolumeEntry, NewVolume, Volume, VolumeAndToken, VolumeContentError, VolumeEntry,
    VolumeEntryKind,
};

/// What clients of old expect as the id of who runs a sandbox (contract 1.3).
pub const CLIENT_ID: &str = "6532622b";
