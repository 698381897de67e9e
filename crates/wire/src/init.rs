//! What the node tells envd before anybody may use a sandbox: `POST /init` on the host-only socket (contract 5.1,
//! with fields of our own that other envds ignore).
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The body of `POST /init`. Everything is optional. Unknown fields are ignored, so that an envd that has been running
/// for a while takes the settings of a newer node; what is known and cannot be done is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Init {
    /// Environment of all processes; replaces what an earlier call set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// What `X-Access-Token` must be; absent clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// When this was decided, RFC 3339: an older call than the last accepted one changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// User of commands that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Directory of commands that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// The execution.
    #[serde(skip_serializing_if = "Option::is_none", rename = "lifecycleID")]
    pub lifecycle_id: Option<String>,
    /// The sandbox, told to processes as `E2B_SANDBOX_ID`.
    #[serde(skip_serializing_if = "Option::is_none", rename = "sandboxID")]
    pub sandbox_id: Option<String>,
    /// The template, told to processes as `E2B_TEMPLATE_ID`.
    #[serde(skip_serializing_if = "Option::is_none", rename = "templateID")]
    pub template_id: Option<String>,
    /// The machine's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Processors that it may use, where its kernel tells of all that the host has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// Memory that it may use, in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What runs from the boot on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_command: Option<StartCommand>,
    /// What `/etc/machine-id` says from now on: 32 lower-case hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", rename = "machineID")]
    pub machine_id: Option<String>,
    /// The machine is a copy of another that was running: whatever it remembers as that other one is forgotten (the
    /// default user and directory, the time of the last call, the log, watchers), and programs inside are told by a new
    /// [`GENERATION`]. Its processes go on.
    #[serde(skip_serializing_if = "is_false")]
    pub renew: bool,
    /// The machine was restored from memory that was written down, as the sandbox that it was, or with `renew` as
    /// another.
    #[serde(skip_serializing_if = "is_false")]
    pub restored: bool,
}

/// The file inside that holds a random id, 32 hexadecimal digits: written anew at each boot and for each copy of a
/// running sandbox. Programs that must not share random numbers, identities or connections with their copies watch it,
/// and begin anew when it changes.
pub const GENERATION: &str = "/run/e2b/.E2B_GENERATION";

#[expect(clippy::trivially_copy_pass_by_ref, reason = "it is how serde asks")]
fn is_false(told: &bool) -> bool {
    !told
}

/// What runs in a sandbox from its boot on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartCommand {
    /// Run by `/bin/bash -l -c`.
    pub command: String,
    /// As whom.
    pub user: String,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

/// One line of envd's own log: `GET /host/logs?after=N`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Counts from 1.
    pub seq: u64,
    /// Milliseconds since the epoch.
    pub timestamp_ms: u64,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// `envd` or `process`.
    pub logger: String,
    /// What was said.
    pub message: String,
    /// Details.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

/// The answer to `GET /host/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogEntries {
    /// What to ask for next.
    pub next: u64,
    /// Oldest first.
    pub entries: Vec<LogEntry>,
}

/// The body of `POST /host/shutdown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shutdown {
    /// How long processes have between SIGTERM and SIGKILL, in milliseconds.
    pub grace_ms: u64,
}
