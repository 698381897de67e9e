use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A machine that runs sandboxes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its id.
    #[serde(rename = "nodeID")]
    pub node_id: String,
    /// `ready`, `cordoned` (it takes nothing new), or `draining` (and is to be emptied).
    pub status: String,
    /// Which kind of machine sandboxes are: `container`, `qemu`, `firecracker`.
    pub runtime: String,
    /// What that kind can do.
    pub capabilities: Capabilities,
    /// Running sandboxes.
    pub sandbox_count: usize,
    /// Paused ones.
    pub paused_count: usize,
    /// Being started now.
    pub sandbox_starting_count: u32,
    /// Prepared ahead.
    pub slots_ready: u32,
    /// CPUs of the machine, or of the blocks of it that a scheduler gives out.
    pub cpu_count: u32,
    /// Memory of the machine, or of the blocks of it that a scheduler gives out, MiB.
    #[serde(rename = "memoryTotalMB")]
    pub memory_total_mb: u32,
    /// Free memory, MiB.
    #[serde(rename = "memoryAvailableMB")]
    pub memory_available_mb: u32,
    /// Disk of the machine, MiB.
    #[serde(rename = "diskTotalMB")]
    pub disk_total_mb: u32,
    /// Free disk, MiB.
    #[serde(rename = "diskAvailableMB")]
    pub disk_available_mb: u32,
    /// When its daemon started, RFC 3339.
    pub started_at: String,
}

/// What a kind of machine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Memory of what is paused or copied outlives a restart of the machine.
    pub durable_memory: bool,
    /// Memory of what is paused outlives everything but that.
    pub freeze: bool,
    /// Sandboxes have a kernel of their own.
    pub own_kernel: bool,
    /// Sandboxes reach what lies outside, as far as their network policy says.
    pub network: bool,
    /// Volumes can be mounted.
    pub volumes: bool,
    /// What a sandbox changed can be told, and its disk exported.
    pub roots: bool,
    /// Templates and snapshots can be kept in the blobs.
    pub portable_builds: bool,
}

/// A node with what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeDetail {
    /// The node.
    #[serde(flatten)]
    pub node: Node,
    /// Ids of the sandboxes that it holds: the team's, or all of them for an operator.
    pub sandboxes: Vec<String>,
    /// How far its emptying is, where it is to be emptied and an operator asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<NodeDrain>,
}

/// How far the emptying of a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeDrain {
    /// What could not be moved by then is not waited for any longer; RFC 3339.
    pub deadline: String,
    /// Whether it is killed then; else the node keeps it.
    pub kill: bool,
    /// Sandboxes that are being moved, or are next.
    pub moving: usize,
    /// Sandboxes that are waited for.
    pub waiting: usize,
    /// Sandboxes that it keeps, past the deadline.
    pub left: usize,
    /// Paused ones that can be resumed without it, by their disk.
    pub carried: usize,
    /// Whether nothing more is done: it may be taken away, with the loss of what is left.
    pub is_over: bool,
}

/// Open a node for new sandboxes, close it, or have it emptied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatusChange {
    /// `ready`, `cordoned` or `draining`.
    pub status: String,
    /// With `draining`: for so many seconds sandboxes that cannot be moved are waited for; 3600 where it is not given, at most
    /// 604800. Atoll's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_seconds: Option<u64>,
    /// With `draining`: whether what is there then, and cannot be moved, is killed; else the node keeps it. Atoll's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill: Option<bool>,
}
