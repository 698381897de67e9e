use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::network::NetworkConfig;
use super::object::{object, objects};

/// A sandbox that is to be created: bodies of version 1 and 2.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// `[namespace/]name[:tag]`, or an id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Seconds; by default 15 in version 1 and 300 in version 2.
    #[serde(default)]
    pub timeout: Option<i64>,
    /// Pause it when its time is over, instead of killing it.
    #[serde(default)]
    pub auto_pause: Option<bool>,
    /// Whether that pause keeps memory; `true` by default.
    #[serde(default)]
    pub auto_pause_memory: Option<bool>,
    /// Whether traffic wakes it.
    #[serde(default, deserialize_with = "object")]
    pub auto_resume: Option<AutoResume>,
    /// Version 1: whether envd asks for an access token. In version 2 it always does.
    #[serde(default)]
    pub secure: Option<bool>,
    /// `false` denies everything that `network.allowOut` does not name.
    #[serde(default, rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    /// What it may reach, and who may reach it.
    #[serde(default, deserialize_with = "object")]
    pub network: Option<NetworkConfig>,
    /// Labels.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Environment of all its processes.
    #[serde(default)]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// Accepted: the client starts the gateway by itself.
    #[serde(default)]
    pub mcp: Option<serde_json::Value>,
    /// Not supported yet: refused where it names tokens.
    #[serde(default)]
    pub iam: Option<serde_json::Value>,
    /// Volumes of the team that are mounted into it.
    #[serde(default, deserialize_with = "objects")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

/// Whether traffic wakes a paused sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AutoResume {
    /// It does.
    pub enabled: bool,
}

/// How much of the memory of processes a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// It is on disk: it outlives the machine that it was taken on.
    Durable,
    /// It stays in the machine's memory: it is lost when the machine goes down.
    Volatile,
    /// None: what starts from it boots.
    None,
}

/// A volume in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMount {
    /// Which, by its name.
    pub name: String,
    /// Where: absolute and clean.
    pub path: String,
}

/// A sandbox, to whoever may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The base template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// A constant that older clients ask for.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// What its envd can do.
    pub envd_version: String,
    /// The template's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// What `X-Access-Token` must be, for a secured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// What `e2b-traffic-access-token` must be, for private ingress.
    pub traffic_access_token: Option<String>,
    /// Where it is reached, if not below the client's domain.
    pub domain: Option<String>,
}

/// What it is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
}

/// What becomes of it when its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is killed.
    Kill,
    /// It is paused.
    Pause,
}

/// What a pause kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    /// Memory and disk.
    Full,
    /// The disk.
    Filesystem,
}

/// What it does without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// Whether traffic wakes it.
    pub auto_resume: bool,
    /// At the end of its time.
    pub on_timeout: OnTimeout,
}

/// A sandbox in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// The base template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// A constant that older clients ask for.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// When the present run began, RFC 3339.
    pub started_at: String,
    /// When its time is over, RFC 3339.
    pub end_at: String,
    /// vCPUs.
    pub cpu_count: u32,
    /// MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// What it is at.
    pub state: SandboxState,
    /// What its envd can do.
    pub envd_version: String,
    /// The template's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// What is mounted into it.
    pub volume_mounts: Vec<VolumeMount>,
    /// How safe the memory is that the pause kept, for a paused one: Atoll's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Whether its envd did not answer when it was paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_unresponsive_at_pause: Option<bool>,
}

/// All about a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// As in a list.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// What `X-Access-Token` must be, for a secured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// As the user gave it.
    pub allow_internet_access: Option<bool>,
    /// Where it is reached, if not below the client's domain.
    pub domain: Option<String>,
    /// What it may reach, and who may reach it.
    pub network: NetworkConfig,
    /// What it does without being asked.
    pub lifecycle: Lifecycle,
    /// What the pause kept, for a paused one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<PauseMode>,
}

/// Use a sandbox, waking it if need be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ConnectSandbox {
    /// Seconds; needed in version 1, 300 by default in version 2.
    pub timeout: Option<i64>,
    /// `false`: boot a paused one from its disk.
    pub memory: Option<bool>,
}

/// Wake a paused sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResumeSandbox {
    /// Seconds; 15 by default.
    pub timeout: Option<i64>,
    /// Whether it is paused when its time is over from now on; as before, where it is not given.
    pub auto_pause: Option<bool>,
    /// `false` boots it from disk.
    pub memory: Option<bool>,
}

/// Pause a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PauseSandbox {
    /// `false` keeps the disk only.
    pub memory: Option<bool>,
    /// Refuse, if the guest does not answer.
    pub require_healthy_guest: Option<bool>,
}

/// Set the end of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetTimeout {
    /// Seconds from now; negative counts as 0.
    pub timeout: i64,
}

/// Move the end of its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RefreshSandbox {
    /// Seconds from now; 15..=3600.
    pub duration: Option<i64>,
}
