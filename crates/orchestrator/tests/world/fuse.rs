//! A process that dies in the middle: after so many effects, none of its words reaches anybody any more.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use model::{
    BuildId, ExecutionId, KillReason, Kind, NetworkPolicy, NodeId, PauseMode, Sandbox, SandboxId, State,
    TeamId,
};
use ports::node::{Order, PauseOutcome, Report};
use ports::store::SandboxQuery;
use ports::{LogLine, LogQuery, MetricSample, Node, NodeError, NodeEvent, SandboxStore, StoreError};
use tokio::sync::broadcast;

/// Counts the effects that are left.
pub(crate) struct Fuse {
    left: AtomicUsize,
    /// Whether the last effect happens, and only its answer is lost.
    last_happens: bool,
    burnt: AtomicUsize,
}

/// What becomes of one effect.
enum Fate {
    Alive,
    /// It happens, and nobody learns of it.
    Last,
    Dead,
}

impl Fuse {
    pub(crate) fn new(effects: usize, last_happens: bool) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(effects),
            last_happens,
            burnt: AtomicUsize::new(0),
        })
    }

    /// Whether the process died.
    pub(crate) fn is_burnt(&self) -> bool {
        self.burnt.load(Ordering::SeqCst) > 0
    }

    fn burn(&self) -> Fate {
        let left = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_ok() {
            return Fate::Alive;
        }
        match self.burnt.fetch_add(1, Ordering::SeqCst) {
            0 if self.last_happens => Fate::Last,
            _ => Fate::Dead,
        }
    }

    async fn store<T>(&self, effect: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let fate = self.burn();
        let outcome = if matches!(fate, Fate::Dead) {
            None
        } else {
            Some(effect.await)
        };
        match (fate, outcome) {
            (Fate::Alive, Some(outcome)) => outcome,
            _ => Err(StoreError::Away("the process is dead".into())),
        }
    }

    async fn node<T>(&self, effect: impl Future<Output = Result<T, NodeError>>) -> Result<T, NodeError> {
        let fate = self.burn();
        let outcome = if matches!(fate, Fate::Dead) {
            None
        } else {
            Some(effect.await)
        };
        match (fate, outcome) {
            (Fate::Alive, Some(outcome)) => outcome,
            _ => Err(NodeError::Failed {
                step: "dying",
                kind: Kind::Internal,
                source: "the process is dead".into(),
            }),
        }
    }
}

/// A part as a dying process sees it.
pub(crate) struct Fused<T: ?Sized> {
    part: Arc<T>,
    fuse: Arc<Fuse>,
}

impl<T: ?Sized> Fused<T> {
    pub(crate) fn new(part: Arc<T>, fuse: Arc<Fuse>) -> Self {
        Self { part, fuse }
    }
}

#[async_trait]
impl SandboxStore for Fused<dyn SandboxStore> {
    async fn insert(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        self.fuse.store(self.part.insert(sandbox)).await
    }
    async fn get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        self.fuse.store(self.part.get(id)).await
    }
    async fn update(&self, sandbox: &Sandbox) -> Result<u64, StoreError> {
        self.fuse.store(self.part.update(sandbox)).await
    }
    async fn list(&self, query: &SandboxQuery) -> Result<Vec<Sandbox>, StoreError> {
        self.part.list(query).await
    }
    async fn count(&self, team: TeamId, state: State) -> Result<u64, StoreError> {
        self.part.count(team, state).await
    }
    async fn live(&self) -> Result<Vec<Sandbox>, StoreError> {
        self.fuse.store(self.part.live()).await
    }
    async fn forget_gone(&self, before: SystemTime) -> Result<u64, StoreError> {
        self.fuse.store(self.part.forget_gone(before)).await
    }
}

#[async_trait]
impl Node for Fused<dyn Node> {
    fn id(&self) -> NodeId {
        self.part.id()
    }
    async fn start(&self, order: Order) -> Result<(), NodeError> {
        self.fuse.node(self.part.start(order)).await
    }
    async fn pause(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        self.fuse
            .node(self.part.pause(sandbox, execution, into, mode))
            .await
    }
    async fn kill(&self, sandbox: SandboxId, why: KillReason) -> Result<(), NodeError> {
        self.fuse.node(self.part.kill(sandbox, why)).await
    }
    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError> {
        self.fuse
            .node(self.part.set_deadline(sandbox, execution, deadline))
            .await
    }
    async fn set_network(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        self.fuse
            .node(self.part.set_network(sandbox, execution, policy))
            .await
    }
    async fn metrics(
        &self,
        sandbox: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, NodeError> {
        self.part.metrics(sandbox, from, to).await
    }
    async fn logs(&self, sandbox: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, NodeError> {
        self.part.logs(sandbox, query).await
    }
    async fn report(&self) -> Result<Report, NodeError> {
        self.fuse.node(self.part.report()).await
    }
    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.part.events()
    }
}
