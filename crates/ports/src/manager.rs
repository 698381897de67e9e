//! What clients may do with sandboxes: the seam between the public API and the orchestrator.
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{
    Kind, Lifecycle, NetworkPolicy, NodeId, PauseMode, Sandbox, SandboxId, Secret, State, TeamId, TemplateRef,
};

use crate::logs::{LogLine, LogQuery, MetricSample};
use crate::store::{Cursor, SandboxQuery, StoreError};

/// A sandbox to be created. Everything is parsed and within bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateSandbox {
    /// From what.
    pub template: TemplateRef,
    /// How long it lives.
    pub timeout: Duration,
    /// What it does without being asked.
    pub lifecycle: Lifecycle,
    /// Whether envd asks for the access token.
    pub secure: bool,
    /// What it may reach.
    pub network: NetworkPolicy,
    /// The user's labels.
    pub metadata: BTreeMap<String, String>,
    /// Environment of all of its processes.
    pub env: BTreeMap<String, String>,
    /// Volumes to be mounted into it: their names, and where.
    pub volumes: Vec<(String, String)>,
    /// The client's `Idempotency-Key`, and a digest of the request that it came with.
    pub idempotency: Option<(String, [u8; 32])>,
    /// Whether it is to be an allocation of its own of the scheduler's, and not one of many in a shared one: slow, for the scheduler
    /// takes seconds, and accounted for by the scheduler itself.
    pub own_allocation: bool,
    /// How many sandboxes the team may start in a second, as far as the caller knows.
    pub starts_per_second: u32,
}

/// A sandbox with the tokens that its owner uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Granted {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// envd's access token, for a secured one.
    pub envd_token: Option<Secret<String>>,
    /// The traffic token, for private ingress.
    pub traffic_token: Option<Secret<String>>,
}

/// How `connect` found the sandbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Connected {
    /// It was running: 200.
    Running(Granted),
    /// It was resumed: 201.
    Resumed(Granted),
}

/// A page of sandboxes.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// In the asked order.
    pub sandboxes: Vec<Sandbox>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
    /// How many of the team's sandboxes run, whatever the filter; asked for where running ones are listed.
    pub total_running: Option<u64>,
}

/// The life of sandboxes, as their owners may steer it. Another team's sandbox is an unknown sandbox.
#[async_trait]
pub trait SandboxManager: Send + Sync {
    /// Creates one; when this returns it is usable.
    async fn create(&self, team: TeamId, request: CreateSandbox) -> Result<Granted, ManagerError>;
    /// Resumes it if it is paused; extends its time to at least `timeout` from now if it is running. Waits for a
    /// transition under way. `mode`: [`PauseMode::Filesystem`] boots a paused one from disk.
    async fn connect(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
    ) -> Result<Connected, ManagerError>;
    /// Resumes a paused one; [`ManagerError::AlreadyRunning`] for a running one. `auto_pause`: whether it is paused at
    /// its end from now on (see [`model::Lifecycle::with_auto_pause`]); as before, where it is not given. `mode`:
    /// [`PauseMode::Filesystem`] boots it from disk.
    async fn resume(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
        auto_pause: Option<bool>,
    ) -> Result<Granted, ManagerError>;
    /// Pauses it; when this returns it can be resumed.
    async fn pause(
        &self,
        team: TeamId,
        id: SandboxId,
        mode: PauseMode,
        require_healthy: bool,
    ) -> Result<(), ManagerError>;
    /// Reboots a running one from its disk: same id, same tokens.
    async fn restart(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError>;
    /// Copies a running one at this instant into a template that sandboxes start from; it goes on. `name`: of a new
    /// template, or of one of which this becomes a new build; `memory`: whether its processes are copied too, where the
    /// runtime can do that: what was copied is in the answer's settings.
    async fn snapshot(
        &self,
        team: TeamId,
        id: SandboxId,
        name: Option<TemplateRef>,
        memory: bool,
    ) -> Result<crate::templates::SnapshotInfo, ManagerError>;
    /// Starts copies of a running one, which goes on. Each comes up, or fails, by itself.
    async fn fork(
        &self,
        team: TeamId,
        id: SandboxId,
        count: u32,
        timeout: Duration,
    ) -> Result<Vec<Result<Granted, ManagerError>>, ManagerError>;
    /// What a running one has changed in its root against its template, at this instant; it goes on.
    async fn changes(&self, team: TeamId, id: SandboxId) -> Result<crate::root::Changes, ManagerError> {
        let _ = (team, id);
        Err(ManagerError::Invalid(
            "this server does not tell what sandboxes changed".to_owned(),
        ))
    }
    /// The whole root of a running one at this instant; it goes on.
    async fn export(&self, team: TeamId, id: SandboxId) -> Result<crate::root::ExportedRoot, ManagerError> {
        let _ = (team, id);
        Err(ManagerError::Invalid(
            "this server does not export sandboxes".to_owned(),
        ))
    }
    /// Ends it, running or paused. When this returns nothing of it is reachable.
    async fn kill(&self, team: TeamId, id: SandboxId) -> Result<(), ManagerError>;
    /// A sandbox that clients see.
    async fn get(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError>;
    /// One page. The template filter is in the query by id; `query.team` is the asking team.
    async fn list(&self, query: SandboxQuery) -> Result<Page, ManagerError>;
    /// Sets the end of a running one's time to `timeout` from now; may shorten.
    async fn set_timeout(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), ManagerError>;
    /// Moves the end of a running one's time to at least `timeout` from now.
    async fn refresh(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), ManagerError>;
    /// Replaces the rules of a running one; `internet` and the ingress settings stay where they are not given.
    async fn set_network(
        &self,
        team: TeamId,
        id: SandboxId,
        policy: NetworkPolicy,
    ) -> Result<(), ManagerError>;
    /// Samples of its use of resources, oldest first.
    async fn metrics(
        &self,
        team: TeamId,
        id: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, ManagerError>;
    /// Lines of its log.
    async fn logs(&self, team: TeamId, id: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, ManagerError>;
    /// The nodes and what they hold, for operators.
    async fn nodes(&self) -> Result<Vec<crate::node::Report>, ManagerError>;
    /// Tells a node whether it gets new sandboxes, and whether it is to be emptied. It remembers.
    async fn set_node(&self, node: NodeId, wish: NodeWish) -> Result<(), ManagerError> {
        let _ = (node, wish);
        Err(ManagerError::Invalid(
            "this server has no nodes that could be told".to_owned(),
        ))
    }
    /// How far the emptying of a node is; `None` where it is not to be emptied.
    async fn drained(&self, node: NodeId) -> Result<Option<Drained>, ManagerError> {
        let _ = node;
        Ok(None)
    }
}

/// What an operator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeWish {
    /// It takes new sandboxes.
    Ready,
    /// It takes none, and keeps what it has.
    Cordoned,
    /// It takes none, and is emptied: until this time from now on what cannot be moved is waited for.
    Draining {
        /// How long.
        within: Duration,
        /// Whether what is there then, and cannot be moved, is killed.
        kills: bool,
    },
}

/// How far the emptying of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// What could not be moved by then is not waited for any longer.
    pub deadline: SystemTime,
    /// Whether it is killed then.
    pub kills: bool,
    /// Sandboxes that something is under way with, or that are next.
    pub moving: usize,
    /// Sandboxes that are waited for.
    pub waiting: usize,
    /// Sandboxes that it keeps, past the deadline.
    pub left: usize,
    /// Paused ones that can be resumed without it.
    pub carried: usize,
    /// Whether nothing more is done: it may be taken away, with the loss of what is left.
    pub is_over: bool,
}

/// Why a client's wish was not fulfilled. `Display` is what the client is told; it holds no inner cause.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// No such sandbox for this team.
    #[error("Sandbox \"{0}\" doesn't exist or you don't have access to it")]
    NotFound(SandboxId),
    /// No such node in the fleet.
    #[error("node {0} does not exist")]
    NoNode(NodeId),
    /// No such template for this team; another team's private one is none, for nobody else sees it.
    #[error("template '{0}' not found")]
    NoTemplate(String),
    /// The template is there, the tag is not.
    #[error("tag '{tag}' does not exist for template '{template}'")]
    NoTag {
        /// The template, as asked for.
        template: String,
        /// The tag.
        tag: String,
    },
    /// Pausing what is paused.
    #[error("Error pausing sandbox - sandbox '{0}' is already paused")]
    AlreadyPaused(SandboxId),
    /// Resuming what runs.
    #[error("Sandbox {0} is already running")]
    AlreadyRunning(SandboxId),
    /// Another operation is under way.
    #[error("Sandbox {id} is {state}; try again when that is over")]
    Busy {
        /// Which.
        id: SandboxId,
        /// What it is at: `starting`, `pausing`, …
        state: &'static str,
    },
    /// The memory of a pause is lost with the processes that held it; the disk is there.
    #[error(
        "The memory of sandbox {0} was lost: the processes that held it are gone, as after a restart of its machine; its disk is intact: connect with memory:false to boot from it"
    )]
    MemoryLost(SandboxId),
    /// The memory of a pause cannot be used any more; the disk is there.
    #[error(
        "The memory of sandbox {id} cannot be used any more: {why}; its disk is intact: connect with memory:false to boot from it"
    )]
    MemoryUnusable {
        /// Which.
        id: SandboxId,
        /// Why not, in words for its owner.
        why: &'static str,
    },
    /// Its envd did not answer when it was paused with memory, so a resume with memory would bring back a stuck one.
    #[error(
        "The guest agent of sandbox {0} did not answer when it was paused; connect with memory:false to boot it from disk"
    )]
    GuestUnresponsive(SandboxId),
    /// It is paused, and only what runs can be copied.
    #[error("Sandbox '{0}' is paused and cannot be forked; resume it first")]
    ForkPaused(SandboxId),
    /// Its processes cannot be written down; it runs on.
    #[error("The memory of sandbox {id} cannot be saved: {why}; it runs on")]
    CannotCheckpoint {
        /// Which.
        id: SandboxId,
        /// What stands in the way, and what to do.
        why: String,
    },
    /// A healthy guest was asked for.
    #[error("The guest agent of sandbox {0} does not answer")]
    GuestUnhealthy(SandboxId),
    /// The request is wrong in itself.
    #[error("{0}")]
    Invalid(String),
    /// A limit of the team.
    #[error("{message}")]
    Exhausted {
        /// Which limit, and how it stands.
        message: String,
        /// When it may be worth another try; `None` when waiting does not help.
        retry_after: Option<Duration>,
    },
    /// No node can take it.
    #[error("No node can take the sandbox: {0}")]
    NoCapacity(String),
    /// A volume that it has, or is to have, is not where it lies: told with which, and where.
    #[error("{0}")]
    VolumeLost(String),
    /// The idempotency key came before with another request.
    #[error("The Idempotency-Key was used with a different request")]
    IdempotencyMismatch,
    /// The first request with this idempotency key is under way.
    #[error("A request with this Idempotency-Key is in progress")]
    IdempotencyInProgress,
    /// The first request with this idempotency key made a sandbox that is forgotten by now.
    #[error(
        "The sandbox that was created with this Idempotency-Key is over and forgotten; use a new key to create another"
    )]
    IdempotencyOutcomeUnknown,
    /// Nothing is started any more.
    #[error("The server is shutting down")]
    ShuttingDown,
    /// It took too long.
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// A fault of ours, or of what we stand on. The manager has logged it.
    #[error("{step} failed; the error is in the server's log")]
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

impl ManagerError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        use ManagerError as E;
        match self {
            E::NotFound(_) | E::NoNode(_) | E::NoTemplate(_) | E::NoTag { .. } => Kind::NotFound,
            E::AlreadyPaused(_)
            | E::AlreadyRunning(_)
            | E::Busy { .. }
            | E::MemoryLost(_)
            | E::MemoryUnusable { .. }
            | E::ForkPaused(_)
            | E::CannotCheckpoint { .. }
            | E::VolumeLost(_)
            | E::GuestUnresponsive(_) => Kind::Conflict,
            E::IdempotencyInProgress | E::IdempotencyOutcomeUnknown => Kind::Conflict,
            E::Invalid(_) | E::IdempotencyMismatch => Kind::Invalid,
            E::Exhausted { .. } => Kind::Exhausted,
            E::NoCapacity(_) | E::GuestUnhealthy(_) | E::ShuttingDown => Kind::Unavailable,
            E::Timeout(_) => Kind::Timeout,
            E::Failed { kind, .. } => *kind,
        }
    }

    /// The slug in an error body, where the contract has one (3.1, 3.4).
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        match self {
            ManagerError::GuestUnresponsive(_) => Some("sandbox_snapshot_guest_agent_unresponsive"),
            ManagerError::MemoryLost(_) | ManagerError::MemoryUnusable { .. } => Some("sandbox_memory_lost"),
            ManagerError::CannotCheckpoint { .. } => Some("sandbox_memory_not_saved"),
            ManagerError::IdempotencyMismatch => Some("idempotency_request_mismatch"),
            ManagerError::IdempotencyInProgress => Some("idempotency_in_progress"),
            ManagerError::IdempotencyOutcomeUnknown => Some("idempotency_outcome_unknown"),
            ManagerError::NoCapacity(_) => Some("sandbox_capacity_unavailable"),
            _ => None,
        }
    }

    /// When another try may help; `None`: not before something else changes.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ManagerError::Exhausted { retry_after, .. } => *retry_after,
            ManagerError::NoCapacity(_) => Some(Duration::from_secs(1)),
            ManagerError::Failed { source, .. } => source.downcast_ref().and_then(StoreError::retry_after),
            _ => None,
        }
    }

    /// Whether it is a fault of the server, which is in its log.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        matches!(self, ManagerError::Failed { .. } | ManagerError::Timeout(_))
    }
}

/// What a filter by state means: both when it is empty.
#[must_use]
pub fn wants(states: &[State], state: State) -> bool {
    states.is_empty() || states.contains(&state)
}
