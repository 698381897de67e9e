//! A small world around an orchestrator: stores, one scripted node, the adapters of one process.
#![allow(dead_code, reason = "every test file uses its own part of the world")]

mod fake_files;
mod fake_homes;
mod fake_node;
mod fuse;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use model::{
    Lifecycle, NetworkPolicy, NodeId, OnTimeout, PauseMode, Phase, Sandbox, SandboxId, Team, TeamId, Template,
};
use orchestrator::{Config, Orchestrator, Parts};
use ports::manager::Granted;
use ports::node::HeldState;
use ports::store::contract;
use ports::{
    BuildStore, Catalog, Clock, CreateSandbox, Fleet, ManagerError, Node, Route, SandboxManager,
    SandboxStore, TeamStore, TemplateStore, VolumeStore, blobs, bus, catalog, limits,
};

pub(crate) use fake_files::FakeFiles;
pub(crate) use fake_homes::{Disks, FakeNodes};
pub(crate) use fake_node::FakeNode;
#[allow(unused_imports, reason = "every test file uses its own part of the world")]
pub(crate) use fuse::{Dice, Fuse, Fused};

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

/// The nodes that are there, as tests say.
#[derive(Default)]
pub(crate) struct Nodes(tokio::sync::watch::Sender<Vec<Arc<dyn Node>>>);

impl Nodes {
    pub(crate) fn are(&self, nodes: Vec<Arc<dyn Node>>) {
        self.0.send_replace(nodes);
    }

    fn leaves(&self, id: NodeId) {
        self.0.send_modify(|nodes| nodes.retain(|node| node.id() != id));
    }
}

impl Fleet for Nodes {
    fn nodes(&self) -> tokio::sync::watch::Receiver<Vec<Arc<dyn Node>>> {
        self.0.subscribe()
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
    pub(crate) builds: Arc<dyn BuildStore>,
    pub(crate) volumes: Arc<dyn VolumeStore>,
    pub(crate) files: Arc<FakeFiles>,
    pub(crate) blobs: Arc<blobs::Memory>,
    pub(crate) bus: Arc<bus::Memory>,
    pub(crate) clock: Arc<Hands>,
    pub(crate) fleet: Arc<Nodes>,
    bare: Bare,
    pub(crate) team: Team,
    pub(crate) base: Template,
    directory: Option<tempfile::TempDir>,
}

/// What outlives a process.
struct Bare {
    sandboxes: Arc<dyn SandboxStore>,
    templates: Arc<dyn TemplateStore>,
    teams: Arc<dyn TeamStore>,
    builds: Arc<dyn BuildStore>,
    volumes: Arc<dyn VolumeStore>,
    disks: Disks,
    blobs: Arc<blobs::Memory>,
    bus: Arc<bus::Memory>,
    clock: Arc<Hands>,
    config: Config,
    /// Who gives capacity out.
    pub(crate) scheduler: Option<Arc<ports::scheduler::Embedded>>,
    /// Nodes beside the one.
    others: Vec<Arc<FakeNode>>,
}

impl Bare {
    /// What a node has of volumes.
    fn files_of(&self, node: &FakeNode) -> Arc<FakeFiles> {
        Arc::clone(self.disks.lock().unwrap().entry(node.id()).or_default())
    }

    /// The parts of a process, which dies when the fuse burns through.
    fn parts(
        &self,
        catalog: &Arc<catalog::Memory>,
        node: &Arc<FakeNode>,
        fleet: &Arc<Nodes>,
        fuse: Option<Arc<Fuse>>,
    ) -> Parts {
        let nodes = [node].into_iter().chain(&self.others);
        let nodes = nodes.map(|node| -> Arc<dyn Node> {
            match &fuse {
                Some(fuse) => Arc::new(Fused::new(node.clone() as Arc<dyn Node>, fuse.clone())),
                None => node.clone(),
            }
        });
        fleet.are(nodes.collect());
        let mut parts = Parts {
            sandboxes: self.sandboxes.clone(),
            templates: self.templates.clone(),
            teams: self.teams.clone(),
            builds: self.builds.clone(),
            volumes: self.volumes.clone(),
            volume_nodes: Arc::new(FakeNodes {
                disks: self.disks.clone(),
                fleet: fleet.clone(),
                fuse: fuse.clone(),
                only: (!self.config.shared).then(|| node.id()),
            }),
            blobs: self.blobs.clone(),
            catalog: catalog.clone(),
            limits: Arc::new(limits::Memory::default()),
            shares: Arc::new(ports::shares::Memory::default()),
            idempotency: Arc::new(ports::idempotency::Memory::default()),
            bus: self.bus.clone(),
            fleet: fleet.clone(),
            scheduler: self.scheduler.clone().map(|scheduler| scheduler as _),
            clock: self.clock.clone(),
            config: self.config,
        };
        if let Some(fuse) = fuse {
            parts.sandboxes = Arc::new(Fused::new(parts.sandboxes, fuse.clone()));
            parts.templates = Arc::new(Fused::new(parts.templates, fuse.clone()));
            parts.builds = Arc::new(Fused::new(parts.builds, fuse.clone()));
            parts.volumes = Arc::new(Fused::new(parts.volumes, fuse));
        }
        parts
    }
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
        node.add_build(base.tags["default"]);
        let clock = Arc::new(Hands(Mutex::new(SystemTime::now())));
        let shelf = Arc::new(ports::store::Memory::default());
        let bare = Bare {
            sandboxes: store.clone(),
            templates: store.clone(),
            teams: store,
            builds: shelf.clone(),
            volumes: shelf,
            disks: Arc::default(),
            blobs: Arc::default(),
            bus: Arc::default(),
            clock,
            config: Config::default(),
            scheduler: None,
            others: Vec::new(),
        };
        let catalog = Arc::new(catalog::Memory::default());
        let fleet = Arc::new(Nodes::default());
        let orchestrator = Orchestrator::new(bare.parts(&catalog, &node, &fleet, None));
        Self {
            fleet,
            orchestrator,
            store: bare.sandboxes.clone(),
            templates: bare.templates.clone(),
            teams: bare.teams.clone(),
            builds: bare.builds.clone(),
            volumes: bare.volumes.clone(),
            files: bare.files_of(&node),
            blobs: bare.blobs.clone(),
            bus: bare.bus.clone(),
            clock: bare.clock.clone(),
            bare,
            node,
            catalog,
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
        self.catalog = Arc::new(catalog::Memory::default());
        // Of its own: the one before may be at something still.
        self.fleet = Arc::default();
        let parts = self.bare.parts(&self.catalog, &self.node, &self.fleet, fuse);
        self.orchestrator = Orchestrator::new(parts);
    }

    /// Another node beside the one, under a new process.
    pub(crate) fn add_node(&mut self) -> Arc<FakeNode> {
        let node = Arc::new(FakeNode::beside(&self.node));
        self.bare.others.push(node.clone());
        self.reborn(None);
        node
    }

    /// What a node has of volumes.
    pub(crate) fn files_of(&self, node: &FakeNode) -> Arc<FakeFiles> {
        self.bare.files_of(node)
    }

    /// A node is away.
    pub(crate) fn leaves(&self, node: &FakeNode) {
        self.fleet.leaves(node.id());
    }

    /// All nodes are there.
    pub(crate) fn all_are_there(&self) {
        let nodes = [&self.node].into_iter().chain(&self.bare.others);
        self.fleet
            .are(nodes.map(|node| node.clone() as Arc<dyn Node>).collect());
    }

    /// The same stores and node under a new process that is set otherwise.
    pub(crate) fn configured(&mut self, edit: impl FnOnce(&mut Config)) {
        edit(&mut self.bare.config);
        self.reborn(None);
    }

    /// Has somebody give capacity out.
    pub(crate) fn scheduled(&mut self, scheduler: Arc<ports::scheduler::Embedded>) {
        self.bare.scheduler = Some(scheduler);
        self.reborn(None);
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
        volumes: Vec::new(),
        idempotency: None,
        own_allocation: false,
        starts_per_second: model::Quota::default().creates_per_second,
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
