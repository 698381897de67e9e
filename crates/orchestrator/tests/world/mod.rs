//! A small world around an orchestrator: stores, one scripted node, the adapters of one process.
#![allow(dead_code, reason = "every test file uses its own part of the world")]

mod fake_node;
mod fuse;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use model::{
    Lifecycle, NetworkPolicy, OnTimeout, PauseMode, Phase, Sandbox, SandboxId, Team, TeamId, Template,
};
use orchestrator::{Orchestrator, Parts};
use ports::manager::Granted;
use ports::node::HeldState;
use ports::store::contract;
use ports::{
    Catalog, Clock, CreateSandbox, ManagerError, Node, Route, SandboxManager, SandboxStore, TeamStore,
    TemplateStore, bus, catalog, fleet, limits,
};

pub(crate) use fake_node::FakeNode;
pub(crate) use fuse::{Fuse, Fused};

/// A clock that tests move.
pub(crate) struct Hands(Mutex<SystemTime>);

impl Hands {
    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for Hands {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// All stores in one.
pub(crate) trait Stores: SandboxStore + TemplateStore + TeamStore + 'static {}
impl<T: SandboxStore + TemplateStore + TeamStore + 'static> Stores for T {}

pub(crate) struct World {
    pub(crate) orchestrator: Arc<Orchestrator>,
    pub(crate) store: Arc<dyn SandboxStore>,
    pub(crate) templates: Arc<dyn TemplateStore>,
    pub(crate) teams: Arc<dyn TeamStore>,
    pub(crate) node: Arc<FakeNode>,
    pub(crate) catalog: Arc<catalog::Memory>,
    pub(crate) bus: Arc<bus::Memory>,
    pub(crate) clock: Arc<Hands>,
    pub(crate) team: Team,
    pub(crate) base: Template,
    directory: Option<tempfile::TempDir>,
}

impl World {
    /// A world over SQLite.
    pub(crate) async fn new() -> Self {
        Self::with_team(|_| {}).await
    }

    /// A world whose team is not like others.
    pub(crate) async fn with_team(edit: impl FnOnce(&mut Team)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = sql::Sqlite::open(&directory.path().join("atoll.db"))
            .await
            .unwrap();
        Self {
            directory: Some(directory),
            ..Self::over(store, edit).await
        }
    }

    /// A world that does nothing behind the runtime's back, for tests that stop the clock.
    pub(crate) async fn in_memory() -> Self {
        Self::over(Arc::new(ports::store::Memory::default()), |_| {}).await
    }

    async fn over(store: Arc<impl Stores>, edit: impl FnOnce(&mut Team)) -> Self {
        let mut team = contract::team("acme");
        edit(&mut team);
        let base = contract::template(team.id, "base");
        TeamStore::insert_team(&*store, &team).await.unwrap();
        TemplateStore::insert(&*store, &base).await.unwrap();
        let node = Arc::new(FakeNode::default());
        let catalog = Arc::new(catalog::Memory::default());
        let bus = Arc::new(bus::Memory::default());
        let clock = Arc::new(Hands(Mutex::new(SystemTime::now())));
        let parts = Parts {
            sandboxes: store.clone(),
            templates: store.clone(),
            teams: store.clone(),
            catalog: catalog.clone(),
            limits: Arc::new(limits::Memory::default()),
            bus: bus.clone(),
            fleet: Arc::new(fleet::Static::new(vec![node.clone() as Arc<dyn Node>])),
            clock: clock.clone(),
        };
        let orchestrator = Orchestrator::new(parts);
        Self {
            orchestrator,
            store: store.clone(),
            templates: store.clone(),
            teams: store,
            node,
            catalog,
            bus,
            clock,
            team,
            base,
            directory: None,
        }
    }

    /// The same stores under a new process that has another node.
    pub(crate) fn moved(&mut self) {
        self.node = Arc::new(FakeNode::default());
        self.reborn(None);
    }

    /// The same stores and node under a new process: nothing that was in memory is there. With a fuse, the process dies
    /// when it burns through.
    pub(crate) fn reborn(&mut self, fuse: Option<Arc<Fuse>>) {
        let (sandboxes, node): (Arc<dyn SandboxStore>, Arc<dyn Node>) = match fuse {
            None => (self.store.clone(), self.node.clone()),
            Some(fuse) => (
                Arc::new(Fused::new(self.store.clone(), fuse.clone())),
                Arc::new(Fused::new(self.node.clone() as Arc<dyn Node>, fuse)),
            ),
        };
        self.catalog = Arc::new(catalog::Memory::default());
        self.orchestrator = Orchestrator::new(Parts {
            sandboxes,
            templates: self.templates.clone(),
            teams: self.teams.clone(),
            catalog: self.catalog.clone(),
            limits: Arc::new(limits::Memory::default()),
            bus: self.bus.clone(),
            fleet: Arc::new(fleet::Static::new(vec![node])),
            clock: self.clock.clone(),
        });
    }

    pub(crate) async fn create(&self) -> Granted {
        self.try_create(request()).await.unwrap()
    }

    pub(crate) async fn try_create(&self, request: CreateSandbox) -> Result<Granted, ManagerError> {
        self.orchestrator.create(self.team.id, request).await
    }

    pub(crate) async fn created_with(&self, edit: impl FnOnce(&mut CreateSandbox)) -> SandboxId {
        let mut request = request();
        edit(&mut request);
        self.try_create(request).await.unwrap().sandbox.id
    }

    pub(crate) async fn pause(&self, id: SandboxId) -> Result<(), ManagerError> {
        self.orchestrator
            .pause(self.team.id, id, PauseMode::Full, false)
            .await
    }

    pub(crate) async fn kill(&self, id: SandboxId) -> Result<(), ManagerError> {
        self.orchestrator.kill(self.team.id, id).await
    }

    pub(crate) async fn stored(&self, id: SandboxId) -> Sandbox {
        self.store.get(id).await.unwrap().unwrap()
    }

    pub(crate) async fn phase(&self, id: SandboxId) -> &'static str {
        self.store
            .get(id)
            .await
            .unwrap()
            .map_or("forgotten", |sandbox| sandbox.phase.name())
    }

    pub(crate) async fn route(&self, id: SandboxId) -> Option<Arc<Route>> {
        self.catalog.find(id).await.unwrap()
    }

    /// The only sandbox in the store that is not gone.
    pub(crate) async fn only(&self) -> Sandbox {
        let mut live = self.store.live().await.unwrap();
        assert_eq!(live.len(), 1, "{live:?}");
        live.pop().unwrap()
    }

    /// Waits until a sandbox is in a phase.
    pub(crate) async fn until(&self, id: SandboxId, phase: &str) {
        eventually(async || self.phase(id).await == phase).await;
    }

    /// Starts the background of the orchestrator: it hears its nodes.
    pub(crate) fn run(&self) -> tokio_util::sync::DropGuard {
        let shutdown = tokio_util::sync::CancellationToken::new();
        tokio::spawn(Arc::clone(&self.orchestrator).run(shutdown.clone()));
        shutdown.drop_guard()
    }

    /// Settles as often as the most patient verdict needs, and says that everything agrees.
    pub(crate) async fn settle(&self) {
        for _ in 0..4 {
            self.orchestrator.settle_now().await.unwrap();
        }
        self.assert_agreed().await;
    }

    /// Whatever is stored is held and routed as it is stored, and nothing else is held or routed.
    pub(crate) async fn assert_agreed(&self) {
        let live = self.store.live().await.unwrap();
        let mut held = self.node.held();
        let mut routes: BTreeMap<_, _> = self
            .catalog
            .all()
            .await
            .unwrap()
            .into_iter()
            .map(|route| (route.sandbox, route))
            .collect();
        for sandbox in live {
            let held = held
                .remove(&sandbox.id)
                .unwrap_or_else(|| panic!("not held: {:?}", sandbox.phase));
            match sandbox.phase {
                Phase::Running { at } => {
                    assert_eq!(
                        (held.order.execution, held.state),
                        (at.execution, HeldState::Running)
                    );
                    assert_eq!(held.order.deadline, sandbox.end_at);
                    assert_eq!(held.order.network, sandbox.network);
                    assert_eq!(routes.remove(&sandbox.id).expect("a route").seat, at);
                }
                Phase::Paused { snapshot, mode, .. } => {
                    assert_eq!(held.state, HeldState::Paused(snapshot, mode));
                }
                phase => panic!("still under way: {phase:?}"),
            }
        }
        assert!(held.is_empty(), "held and not stored: {held:?}");
        assert!(routes.is_empty(), "routed and not running: {routes:?}");
    }
}

/// An ordinary create.
pub(crate) fn request() -> CreateSandbox {
    CreateSandbox {
        template: "base".parse().unwrap(),
        timeout: Duration::from_secs(300),
        lifecycle: Lifecycle::default(),
        secure: true,
        network: NetworkPolicy::default(),
        metadata: BTreeMap::new(),
        env: BTreeMap::new(),
        idempotency: None,
    }
}

/// Pauses with memory at its end, and wakes by traffic.
pub(crate) fn wakes() -> Lifecycle {
    Lifecycle {
        on_timeout: OnTimeout::Pause(PauseMode::Full),
        auto_resume: true,
    }
}

pub(crate) fn stranger() -> TeamId {
    TeamId::random()
}

/// How long a condition may take to come true, on the slowest machine that runs these tests.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the condition did not come true");
}
