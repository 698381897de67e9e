//! A machine that runs sandboxes, as the orchestrator sees it.
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{
    BuildId, ExecutionId, KillReason, Kind, Lifecycle, Memory, MiB, NetworkPolicy, NodeId, PauseMode,
    Resources, SandboxId, Secret, StartCommand, TeamId, TemplateId, VolumeId, VolumeMount,
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::builds::{BuildError, BuildOrder, BuildTalk, Built};
use crate::logs::{LogLine, LogQuery, MetricSample};
use crate::scheduler::Size;

/// Everything that a node must know of a sandbox to run it with nobody's help: also its deadline and what then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The incarnation to be.
    pub execution: ExecutionId,
    /// Its owner, for logs and metrics.
    pub team: TeamId,
    /// Its template, as told to the processes inside.
    pub template: TemplateId,
    /// The build it starts from.
    pub build: BuildId,
    /// Its size.
    pub resources: Resources,
    /// What it may reach.
    pub network: NetworkPolicy,
    /// Environment of all its processes: template's, then user's.
    pub env: BTreeMap<String, String>,
    /// Default user of commands.
    pub user: String,
    /// Default directory of commands.
    pub workdir: Option<String>,
    /// What runs from each boot on.
    pub start: Option<StartCommand>,
    /// envd's access token, for a secured sandbox.
    pub envd_token: Option<Secret<String>>,
    /// When its time is over.
    pub deadline: SystemTime,
    /// What then.
    pub lifecycle: Lifecycle,
    /// From what.
    pub origin: OrderOrigin,
    /// What is mounted into it.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
}

/// What an incarnation starts from, on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderOrigin {
    /// The build: its processes go on where it holds their memory, else it boots.
    Fresh,
    /// What the pause of this name left. [`PauseMode::Full`]: memory too, or [`NodeError::MemoryLost`] or
    /// [`NodeError::MemoryUnusable`];
    /// [`PauseMode::Filesystem`]: boots from the disk, whatever else was kept.
    Paused(BuildId, PauseMode),
    /// The disk of the running execution of this sandbox, which is ended first.
    Reboot(ExecutionId),
}

/// What a pause kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PauseOutcome {
    /// What can be resumed.
    pub mode: PauseMode,
    /// How safe the memory is that it kept: [`Memory::None`] for [`PauseMode::Filesystem`].
    pub memory: Memory,
    /// envd did not answer a health probe before the pause.
    pub envd_unresponsive: bool,
}

/// What a node tells without being asked. A lost event costs one heartbeat: [`Node::report`] says the same.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEvent {
    /// The deadline came, or its first process ended, and the node begins to end it: it must not be routed to from now
    /// on. [`NodeEvent::Ended`] follows when nothing of it is left.
    Ending(SandboxId, ExecutionId, KillReason),
    /// The deadline came and the sandbox was killed, or its first process ended. Nothing of it is left.
    Ended(SandboxId, ExecutionId, KillReason),
    /// The deadline came and the node begins to pause it: it must not be routed to from now on.
    Pausing(SandboxId, ExecutionId, BuildId, PauseMode),
    /// The node finished what [`NodeEvent::Pausing`] began.
    Paused(SandboxId, ExecutionId, BuildId, PauseOutcome),
    /// The pause failed: the sandbox is running. The node has extended its deadline by one minute and will try again.
    PauseFailed(SandboxId, ExecutionId, BuildId),
}

/// An execution that a node holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The order it was started by, with the deadline and network policy that are in force.
    pub order: Order,
    /// What is true of it.
    pub state: HeldState,
    /// What its pause kept, as [`Node::pause`] answered: of one that is paused.
    pub pause: Option<PauseOutcome>,
}

/// What is true of an execution on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldState {
    /// Being started.
    Starting,
    /// Usable.
    Running,
    /// Being paused.
    Pausing(BuildId, PauseMode),
    /// Paused.
    Paused(BuildId, PauseMode),
    /// Being ended.
    Stopping,
}

/// How a node is to be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// What could not be moved by then is not waited for any longer.
    pub deadline: SystemTime,
    /// Whether what is there then, and cannot be moved, is killed; else the node keeps it.
    pub kills: bool,
}

/// A node's heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which node.
    pub node: NodeId,
    /// `container`, `qemu` or `firecracker`.
    pub runtime: String,
    /// What its runtime can do.
    pub capabilities: crate::runtime::Capabilities,
    /// When the node's daemon started.
    pub started_at: SystemTime,
    /// Everything it holds.
    pub held: Vec<Held>,
    /// CPUs of the machine; where a scheduler gives out blocks of it, those of its blocks.
    pub cpu_total: u32,
    /// Memory of the machine, or of its blocks.
    pub memory_total: MiB,
    /// Memory that is free for use.
    pub memory_available: MiB,
    /// Disk of the data directory.
    pub disk_total: MiB,
    /// Free space of it.
    pub disk_available: MiB,
    /// Slots that are prepared.
    pub slots_ready: u32,
    /// Sandboxes being started now.
    pub starting: u32,
    /// Whether it takes new sandboxes.
    pub accepts: bool,
    /// How it is to be emptied, where it is: it takes no new ones then.
    pub draining: Option<Draining>,
    /// Of what it has, that which a scheduler gave for one sandbox alone, whether or not that is there yet.
    pub own: Vec<Own>,
}

/// Capacity that is for one sandbox alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// For which.
    pub sandbox: SandboxId,
    /// How much.
    pub size: Size,
}

/// A machine that runs sandboxes. All calls are idempotent for the same execution: repeating one that was carried out
/// answers as it did.
#[async_trait]
pub trait Node: Send + Sync {
    /// Which node.
    fn id(&self) -> NodeId;
    /// Starts an execution; returns when it is usable: envd has its settings and answers. On failure nothing of it is
    /// left, and what it was to start from is as it was.
    async fn start(&self, order: Order) -> Result<(), NodeError>;
    /// Pauses an execution under a name. On failure it is running.
    async fn pause(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError>;
    /// Copies a running execution into a build that others start from; it goes on. Returns how much memory was copied.
    async fn checkpoint(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        memory: bool,
    ) -> Result<Memory, NodeError>;
    /// Builds a template; returns when its result can be started from. On failure nothing of it is left but results of
    /// steps that the shelf was told of.
    async fn build(&self, order: BuildOrder, talk: BuildTalk) -> Result<Built, BuildError>;
    /// Every build that is on the node.
    async fn builds(&self) -> Result<Vec<BuildId>, NodeError>;
    /// Removes builds that nobody starts from any more.
    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError>;
    /// Builds whose disks a build's own are likely to share most of their blocks with, the likeliest first. They may be
    /// gone by now.
    async fn kin_of(&self, build: BuildId) -> Result<Vec<BuildId>, NodeError> {
        let _ = build;
        Ok(Vec::new())
    }
    /// Brings a build that is on the node to the blobs, with the layers of images that it stands on, so that it can be had again
    /// where it is not; returns the digest by which it is found there. Its memory stays behind: whoever starts from what is
    /// brought back boots. `kin` are digests of builds that the blobs hold, the likeliest first: blocks and layers that are
    /// theirs are not brought again. One that is not there, or broken, is none. None of theirs is swept meanwhile.
    async fn stow_build(&self, build: BuildId, kin: &[String]) -> Result<String, NodeError> {
        let _ = (build, kin);
        Err(NodeError::unsupported("bringing builds to the blobs"))
    }
    /// Has a build on the node that the blobs hold by this digest, with the layers that it stands on. One that is there already is
    /// no error. [`NodeError::NoBuild`]: a layer is neither on the node nor in the blobs.
    async fn fetch_build(&self, build: BuildId, digest: &str) -> Result<(), NodeError> {
        let _ = (build, digest);
        Err(NodeError::unsupported("bringing builds from the blobs"))
    }
    /// Copies the disk of a sandbox that is paused under the name `snapshot` into a build of that name, which can be brought
    /// elsewhere and started from: its machines boot. It stays paused, with all that its pause kept. [`NodeError::Unknown`] and
    /// [`NodeError::Busy`]: it is not paused under this name any more. [`NodeError::Refused`]: its runtime cannot.
    async fn copy_paused(&self, sandbox: SandboxId, snapshot: BuildId) -> Result<(), NodeError> {
        let _ = (sandbox, snapshot);
        Err(NodeError::unsupported("copying the disk of a paused sandbox"))
    }
    /// Tells the owner of an execution something, in its log. A node that cannot says nothing.
    async fn say(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        level: crate::logs::Level,
        line: &str,
    ) -> Result<(), NodeError> {
        let _ = (sandbox, execution, level, line);
        Ok(())
    }
    /// Whether it takes new sandboxes from now on, also after a restart of its daemon: see [`Report::accepts`]. What it holds
    /// goes on, and it is not to be emptied, or not any more.
    async fn set_accepts(&self, accepts: bool) -> Result<(), NodeError> {
        let _ = accepts;
        Err(NodeError::unsupported("being closed for new sandboxes"))
    }
    /// Takes no new sandboxes from now on, and says in its reports that it is to be emptied, also after a restart of its daemon.
    /// Others do that: see [`Report::draining`].
    async fn drain(&self, how: Draining) -> Result<(), NodeError> {
        let _ = how;
        Err(NodeError::unsupported("being emptied"))
    }
    /// Removes from the blobs what builds needed that none of these digests is of; returns how many blobs that were.
    async fn sweep_stowed(&self, living: &[String]) -> Result<u64, NodeError> {
        let _ = living;
        Err(NodeError::unsupported("sweeping the blobs"))
    }
    /// What a running execution has changed in its root against what it started from, at this instant.
    async fn changes(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
    ) -> Result<crate::root::Changes, NodeError> {
        let _ = (sandbox, execution);
        Err(NodeError::unsupported("telling what was changed in a root"))
    }
    /// The whole root of a running execution at this instant, as [`crate::root::ExportedRoot::tar`] says.
    async fn export(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
    ) -> Result<crate::blobs::ByteStream, NodeError> {
        let _ = (sandbox, execution);
        Err(NodeError::unsupported("exporting a root"))
    }
    /// Whether envd in an execution answers a probe, within a second or two. A node that cannot probe says `true`.
    async fn is_healthy(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<bool, NodeError> {
        let _ = (sandbox, execution);
        Ok(true)
    }
    /// Ends whatever the node holds of a sandbox, running or paused. When it returns nothing of it is left, or what is
    /// left is listed for reclaim and unreachable. An unknown sandbox is no error.
    async fn kill(&self, sandbox: SandboxId, why: KillReason) -> Result<(), NodeError>;
    /// Sets the end of its time.
    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError>;
    /// Puts a policy in force and cuts what it forbids.
    async fn set_network(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError>;
    /// Samples between two times, oldest first; the newest was taken for this call if the last is older than a second.
    async fn metrics(
        &self,
        sandbox: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, NodeError>;
    /// Lines of its log.
    async fn logs(&self, sandbox: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, NodeError>;
    /// Everything it holds and has free.
    async fn report(&self) -> Result<Report, NodeError>;
    /// What happens from now on.
    fn events(&self) -> broadcast::Receiver<NodeEvent>;
}

/// Why a node did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The node does not hold the sandbox, or not this execution of it.
    #[error("the node does not hold this execution")]
    Unknown,
    /// The pause kept memory in processes, and they are gone; its disk is there.
    #[error(
        "the memory that was kept is lost: the processes that held it are gone, as after a restart of the machine; resume it from disk with memory:false"
    )]
    MemoryLost,
    /// The pause kept memory, and it cannot be used any more; its disk is there.
    #[error("the memory that was kept cannot be used any more: {0}; resume it from disk with memory:false")]
    MemoryUnusable(&'static str),
    /// What it starts from is not on the node.
    #[error("build {0} is not on the node")]
    NoBuild(BuildId),
    /// A volume that is to be mounted is not on the node.
    #[error("volume {0} is not on the node")]
    NoVolume(VolumeId),
    /// The state of the execution does not allow it now.
    #[error("the sandbox is {0}")]
    Busy(&'static str),
    /// The node takes no more now.
    #[error("the node is out of {what}")]
    Full {
        /// Of what.
        what: &'static str,
        /// When it may be worth another try.
        retry_after: Option<Duration>,
    },
    /// What runs inside cannot be written down; it runs on.
    #[error("its memory cannot be saved: {0}")]
    CannotCheckpoint(String),
    /// The runtime does not offer what is asked for: whoever asked is told.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// The runtime refused or failed.
    #[error("{step} failed")]
    Failed {
        /// At what.
        step: &'static str,
        /// The way it failed.
        kind: Kind,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl NodeError {
    fn unsupported(step: &'static str) -> Self {
        NodeError::Failed {
            step,
            kind: Kind::Unsupported,
            source: "this node does not offer it".into(),
        }
    }

    /// Whether it leaves open what is true now: the node is to be asked.
    #[must_use]
    pub fn is_unclear(&self) -> bool {
        matches!(
            self,
            NodeError::Unknown | NodeError::Busy(_) | NodeError::Timeout(_)
        )
    }

    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            NodeError::Unknown | NodeError::NoBuild(_) | NodeError::NoVolume(_) => Kind::NotFound,
            NodeError::MemoryLost
            | NodeError::MemoryUnusable(_)
            | NodeError::Busy(_)
            | NodeError::CannotCheckpoint(_) => Kind::Conflict,
            NodeError::Refused(_) => Kind::Invalid,
            NodeError::Full { .. } => Kind::Unavailable,
            NodeError::Timeout(_) => Kind::Timeout,
            NodeError::Failed { kind, .. } => *kind,
        }
    }
}
