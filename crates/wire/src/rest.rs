//! Bodies of the public API (contract, section 3), one file for each noun. Names on the wire are the contract's.
mod error;
mod key;
mod logs;
mod metrics;
mod network;
mod node;
mod object;
mod sandbox;
mod template;

pub use error::Error;
pub use key::{CreatedKey, Key, KeyMask, NewKey, Team};
pub use logs::{LogDirection, LogEntry, LogLevel, LogLine, Logs, LogsV2};
pub use metrics::{SandboxMetric, SandboxesMetrics};
pub use network::{NetworkConfig, NetworkUpdate};
pub use node::{Node, NodeDetail};
pub use object::Object;
pub use sandbox::{
    AutoResume, ConnectSandbox, Lifecycle, ListedSandbox, NewSandbox, OnTimeout, PauseMode, PauseSandbox,
    RefreshSandbox, ResumeSandbox, Sandbox, SandboxDetail, SandboxState, SetTimeout, VolumeMount,
};
pub use template::{Alias, Template, TemplateBuild, TemplateDetail, TemplateTag};

/// What clients of old expect as the id of who runs a sandbox (contract 1.3).
pub const CLIENT_ID: &str = "6532622b";
