//! A node over a scripted runtime, whose time is tokio's.
mod bench;
mod envd;
mod fake;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{
    BuildId, ExecutionId, KillReason, Lifecycle, NetworkPolicy, NodeId, OnTimeout, PauseMode, Resources,
    SandboxId, TeamId,
};
use node::{Config, Found, LocalNode};
use ports::node::{HeldState, Order, OrderOrigin, PauseOutcome};
use ports::{Clock, Node, NodeError, NodeEvent};
use tokio::sync::broadcast;
use tokio::time::Instant;

pub(crate) use bench::{Bench, Outcome, run, step};
pub(crate) use envd::{Act, Ran};
pub(crate) use fake::{Content, Fault, Runtime};

pub(crate) const FULL: PauseMode = PauseMode::Full;
pub(crate) const DISK: PauseMode = PauseMode::Filesystem;
/// How long sandboxes live here.
pub(crate) const LIFE: Duration = Duration::from_secs(600);
/// Longer than a node waits before it tries something again.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Time that goes when tokio's does.
struct Tokio(SystemTime, Instant);

impl Clock for Tokio {
    fn now(&self) -> SystemTime {
        self.0 + self.1.elapsed()
    }
}

pub(crate) struct World {
    pub(crate) node: Arc<LocalNode>,
    pub(crate) runtime: Arc<Runtime>,
    clock: Arc<Tokio>,
    config: Config,
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            id: NodeId::random(),
            data: dir.path().to_owned(),
        };
        let runtime = Runtime::new(dir.path().join("sandboxes"));
        let clock = Arc::new(Tokio(SystemTime::now(), Instant::now()));
        let node = LocalNode::open_by(config.clone(), runtime.clone(), clock.clone()).unwrap();
        Self {
            node,
            runtime,
            clock,
            config,
            dir,
        }
    }

    /// The daemon is no more: nobody drives anything.
    pub(crate) fn stop(&mut self) {
        self.node =
            LocalNode::open_by(self.config.clone(), self.runtime.clone(), self.clock.clone()).unwrap();
    }

    /// Another daemon over the same machine.
    pub(crate) async fn restart(&mut self) -> Result<Found, NodeError> {
        self.stop();
        self.node.recover().await
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// An order for a new sandbox.
    pub(crate) fn order(&self) -> Order {
        Order {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            team: TeamId::random(),
            template: "aaaaaaaaaaaaaaaaaaaa".parse().unwrap(),
            build: BuildId::random(),
            resources: Resources::default(),
            network: NetworkPolicy::default(),
            env: BTreeMap::new(),
            user: "user".to_owned(),
            workdir: None,
            start: None,
            envd_token: None,
            deadline: self.now() + LIFE,
            lifecycle: Lifecycle::default(),
            origin: OrderOrigin::Fresh,
            volumes: Vec::new(),
        }
    }

    /// The order for its next execution.
    pub(crate) fn next(&self, order: &Order, origin: OrderOrigin) -> Order {
        Order {
            execution: ExecutionId::random(),
            deadline: self.now() + LIFE,
            origin,
            ..order.clone()
        }
    }

    /// A sandbox that runs.
    pub(crate) async fn running(&self) -> Order {
        self.running_until(OnTimeout::Kill).await
    }

    pub(crate) async fn running_until(&self, on_timeout: OnTimeout) -> Order {
        let order = Order {
            lifecycle: Lifecycle {
                on_timeout,
                auto_resume: false,
            },
            ..self.order()
        };
        self.node.start(order.clone()).await.unwrap();
        order
    }

    /// A sandbox that is paused, and the name of its pause.
    pub(crate) async fn paused(&self, mode: PauseMode) -> (Order, BuildId) {
        let (order, into) = (self.running().await, BuildId::random());
        self.pause(&order, into, mode).await.unwrap();
        (order, into)
    }

    pub(crate) async fn pause(
        &self,
        order: &Order,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        self.node.pause(order.sandbox, order.execution, into, mode).await
    }

    pub(crate) async fn kill(&self, order: &Order, why: KillReason) -> Result<(), NodeError> {
        self.node.kill(order.sandbox, why).await
    }

    /// What the node says of a sandbox.
    pub(crate) async fn held(&self, order: &Order) -> Option<(ExecutionId, HeldState)> {
        let report = self.node.report().await.unwrap();
        let held = report
            .held
            .into_iter()
            .find(|held| held.order.sandbox == order.sandbox);
        held.map(|held| (held.order.execution, held.state))
    }

    /// It runs as ordered, has its one machine, and ends when its time is over.
    pub(crate) async fn assert_runs(&self, order: &Order) {
        assert_eq!(
            self.held(order).await,
            Some((order.execution, HeldState::Running))
        );
        assert_eq!(self.runtime.machines(order.sandbox), ["running"]);
        tokio::time::sleep(LIFE + SOON).await;
        self.assert_nothing_of(order).await;
    }

    /// It is paused, with what the mode says, and nothing else of it is there.
    pub(crate) async fn assert_paused(&self, order: &Order, into: BuildId, mode: PauseMode) {
        let state = self.held(order).await.map(|held| held.1);
        assert_eq!(state, Some(HeldState::Paused(into, mode)));
        let machines: &[&str] = if mode == FULL { &["frozen"] } else { &[] };
        assert_eq!(self.runtime.machines(order.sandbox), machines);
        assert_eq!(self.runtime.has_disk(order.sandbox), mode == DISK);
    }

    /// No machine, no disk, no entry, no word.
    pub(crate) async fn assert_nothing_of(&self, order: &Order) {
        assert_eq!(self.held(order).await, None);
        let machines = self.runtime.machines(order.sandbox);
        assert!(machines.is_empty(), "{machines:?}");
        assert!(!self.runtime.has_disk(order.sandbox));
        assert!(!self.entry(order).exists());
    }

    /// The file of its entry in the journal.
    pub(crate) fn entry(&self, order: &Order) -> PathBuf {
        self.dir.path().join(format!("sandboxes/{}.json", order.sandbox))
    }
}

/// What was told until now.
pub(crate) fn told(events: &mut broadcast::Receiver<NodeEvent>) -> Vec<NodeEvent> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}
