//! The node as the orchestrator sees it.
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use artifact::digest::Digest;
use async_trait::async_trait;
use model::{BuildId, ExecutionId, KillReason, Memory, MiB, NetworkPolicy, NodeId, PauseMode, SandboxId};
use ports::blobs::ByteStream;
use ports::builds::{BuildError, BuildOrder, BuildTalk, Built};
use ports::logs::{LogLine, LogQuery, MetricSample};
use ports::node::{
    Draining, HeldState, Node, NodeError, NodeEvent, Order, OrderOrigin, PauseOutcome, Report,
};
use ports::root::Changes;
use ports::runtime::{DiskSpace, PartImage};
use ports::{Blobs, Clock, Runtime};
use tokio::sync::broadcast;
use tracing::Instrument as _;

use crate::admission::Admission;
use crate::build::{ImageSource, InUse, fault};
use crate::envd;
use crate::history::EVERY;
use crate::journal::{Entry, Journal};
use crate::offer::{Offer, Offered};
use crate::sandbox::bring_up::failed;
use crate::sandbox::{Sandbox, name};

/// Events kept for a slow orchestrator; one that lags more reads the report.
const EVENTS_MAX: usize = 4096;
/// A sample that is younger answers a question about now.
const FRESH: Duration = Duration::from_secs(1);

/// What a node is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name for ever.
    pub id: NodeId,
    /// Its directory, absolute.
    pub data: PathBuf,
}

/// The node of this machine.
pub struct LocalNode {
    config: Config,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) journal: Journal,
    admission: Admission,
    offered: Offered,
    pub(crate) clock: Arc<dyn Clock>,
    sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    /// Sandboxes whose entries are not understood: what there is of them is kept for people to look at.
    unreadable: Mutex<HashSet<SandboxId>>,
    events: broadcast::Sender<NodeEvent>,
    started_at: SystemTime,
    starting: AtomicU32,
    /// What builds under way start from, and make.
    pub(crate) in_use: InUse,
    pub(crate) images: std::sync::OnceLock<Arc<dyn ImageSource>>,
    /// Held while an image is made a build, for two templates may begin with the same one at the same time.
    pub(crate) importing: tokio::sync::Mutex<()>,
    /// Where builds are brought.
    pub(crate) blobs: std::sync::OnceLock<Arc<dyn Blobs>>,
    /// Images with names of their own that were brought there by this process.
    pub(crate) stowed_images: tokio::sync::Mutex<HashMap<PartImage, Digest>>,
    /// Held while a build is brought from there.
    pub(crate) fetching: tokio::sync::Mutex<()>,
    this: Weak<LocalNode>,
}

impl LocalNode {
    /// Opens the node's directory. [`LocalNode::recover`] comes next.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(config: Config, runtime: Arc<dyn Runtime>) -> std::io::Result<Arc<Self>> {
        Self::open_by(config, runtime, Arc::new(ports::clock::System))
    }

    /// Opens the node's directory, with a clock that says when deadlines are over.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open_by(
        config: Config,
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Arc<Self>> {
        let journal = Journal::open(&config.data)?;
        let admission = Admission::open(&config.data)?;
        Ok(Arc::new_cyclic(|this| Self {
            config,
            runtime,
            journal,
            admission,
            offered: Offered::default(),
            clock,
            sandboxes: Mutex::default(),
            unreadable: Mutex::default(),
            events: broadcast::channel(EVENTS_MAX).0,
            started_at: SystemTime::now(),
            starting: AtomicU32::new(0),
            in_use: InUse::default(),
            images: std::sync::OnceLock::new(),
            importing: tokio::sync::Mutex::default(),
            blobs: std::sync::OnceLock::new(),
            stowed_images: tokio::sync::Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            this: Weak::clone(this),
        }))
    }

    /// Says where images come from that templates are built from; without it, they are built from templates only. The
    /// first call counts.
    pub fn build_from(&self, images: Arc<dyn ImageSource>) {
        let _ = self.images.set(images);
    }

    /// Says what of the machine is to be used from now on; all of it, until this is called.
    pub fn offer(&self, offer: Offer) {
        self.offered.set(offer);
    }

    /// Takes samples of every running sandbox, for ever.
    pub async fn watch_use(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let running: Vec<_> = self
                .all()
                .into_iter()
                .filter(|sandbox| sandbox.state() == HeldState::Running)
                .collect();
            metrics::gauge!("atoll_node_sandboxes_running")
                .set(f64::from(u32::try_from(running.len()).unwrap_or(u32::MAX)));
            metrics::gauge!("atoll_node_slots_ready").set(f64::from(self.runtime.slots_ready()));
            for sandbox in running {
                self.sample(&sandbox).await;
            }
        }
    }

    async fn sample(&self, sandbox: &Sandbox) {
        let Some(machine) = sandbox.machine() else { return };
        let cpu = sandbox.now().entry.order.resources.cpu;
        if let Ok(usage) = machine.usage().await {
            sandbox.history().add(SystemTime::now(), cpu, &usage);
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Arc<Sandbox>>> {
        self.sandboxes
            .lock()
            .expect("nothing panics while it holds the sandboxes")
    }

    pub(crate) fn unreadable(&self) -> std::sync::MutexGuard<'_, HashSet<SandboxId>> {
        self.unreadable
            .lock()
            .expect("nothing panics while it holds the unreadable")
    }

    pub(crate) fn find(&self, id: SandboxId) -> Option<Arc<Sandbox>> {
        self.table().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Sandbox>> {
        self.table().values().cloned().collect()
    }

    /// The sandbox of this id, and whether it was made for this call.
    pub(crate) fn find_or_insert(
        &self,
        id: SandboxId,
        make: impl FnOnce() -> Arc<Sandbox>,
    ) -> (Arc<Sandbox>, bool) {
        let mut table = self.table();
        if let Some(found) = table.get(&id) {
            return (Arc::clone(found), false);
        }
        let made = make();
        table.insert(id, Arc::clone(&made));
        (made, true)
    }

    pub(crate) fn insert(&self, id: SandboxId, sandbox: Arc<Sandbox>) {
        self.table().insert(id, sandbox);
    }

    /// Takes a sandbox out of the table, unless another has its place.
    pub(crate) fn forget(&self, id: SandboxId, sandbox: &Arc<Sandbox>) {
        let mut table = self.table();
        if table.get(&id).is_some_and(|found| Arc::ptr_eq(found, sandbox)) {
            table.remove(&id);
        }
    }

    pub(crate) fn write(&self, entry: &Entry) -> Result<(), NodeError> {
        self.journal.write(entry).map_err(|source| NodeError::Failed {
            step: "writing the node's journal",
            kind: model::Kind::Unavailable,
            source: Box::new(source),
        })
    }

    /// Changes what is in force of a running execution: in the journal first, and not at all where that fails.
    fn amend(
        &self,
        sandbox: &Sandbox,
        execution: ExecutionId,
        edit: impl FnOnce(&mut Order),
    ) -> Result<(), NodeError> {
        // Held over the write, so that the entry of one that is being ended is not written again.
        let mut now = sandbox.now();
        runs(&now.entry, execution)?;
        let mut entry = now.entry.clone();
        edit(&mut entry.order);
        self.write(&entry)?;
        now.entry = entry;
        Ok(())
    }

    pub(crate) fn tell(&self, event: NodeEvent) {
        let _ = self.events.send(event);
    }

    /// Fetches what envd has logged; a guest that does not tell has nothing to say.
    pub(crate) async fn fetch_lines(&self, sandbox: &Sandbox) {
        let Some(machine) = sandbox.machine().filter(|machine| !machine.is_frozen()) else {
            return;
        };
        let _open = sandbox.enter().await;
        let seen = sandbox.lines().seen();
        if let Ok(heard) = envd::logs(&*machine, seen).await {
            sandbox.lines().take(heard);
        }
    }

    fn running(&self, id: SandboxId, execution: ExecutionId) -> Result<Arc<Sandbox>, NodeError> {
        let sandbox = self.find(id).ok_or(NodeError::Unknown)?;
        runs(&sandbox.now().entry, execution)?;
        Ok(sandbox)
    }

    /// Room where the disks of sandboxes lie.
    fn disk_space(&self) -> DiskSpace {
        self.runtime.disk_space().unwrap_or_else(|| {
            let disk = rustix::fs::statvfs(&self.config.data).ok();
            let bytes = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
                disk.as_ref()
                    .map_or(0, |disk| blocks(disk).saturating_mul(disk.f_frsize))
            };
            DiskSpace {
                total_bytes: bytes(|disk| disk.f_blocks),
                free_bytes: bytes(|disk| disk.f_bavail),
            }
        })
    }

    /// Refuses an order that is not carried out, as the operator wants it, or whoever gives out the machine. What is here goes on,
    /// and so does what was begun.
    fn check_taken(&self, order: &Order) -> Result<(), NodeError> {
        let is_begun = |sandbox: Arc<Sandbox>| sandbox.now().entry.order.execution == order.execution;
        if order.origin != OrderOrigin::Fresh || self.find(order.sandbox).is_some_and(is_begun) {
            return Ok(());
        }
        if !self.admission.accepts() {
            return Err(self.admission.refusal());
        }
        self.offered.takes().then_some(()).ok_or_else(Offered::refusal)
    }

    fn shared(&self) -> Result<Arc<Self>, NodeError> {
        self.this.upgrade().ok_or(NodeError::Busy("ending"))
    }
}

fn runs(entry: &Entry, execution: ExecutionId) -> Result<(), NodeError> {
    match entry.state {
        _ if entry.order.execution != execution => Err(NodeError::Unknown),
        HeldState::Running => Ok(()),
        state => Err(NodeError::Busy(name(state))),
    }
}

/// Carries something out to its end, whatever becomes of its caller, who may give up waiting at any time: a sandbox that
/// is half started or half paused is nobody's.
async fn see_through<T: Send + 'static>(
    work: impl Future<Output = Result<T, NodeError>> + Send + 'static,
) -> Result<T, NodeError> {
    let done = tokio::spawn(work.in_current_span()).await;
    done.unwrap_or_else(|source| {
        Err(NodeError::Failed {
            step: "carrying out what was asked of the node",
            kind: model::Kind::Internal,
            source: Box::new(source),
        })
    })
}

/// One of the sandboxes that are being started, for as long as it is.
struct Counted(Arc<LocalNode>);

impl Counted {
    fn new(node: &Arc<LocalNode>) -> Self {
        node.starting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(node))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.starting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Node for LocalNode {
    fn id(&self) -> NodeId {
        self.config.id
    }

    #[tracing::instrument(level = "debug", name = "node.start", skip_all, fields(node = %self.config.id, sandbox = %order.sandbox, execution = %order.execution))]
    async fn start(&self, order: Order) -> Result<(), NodeError> {
        let node = self.shared()?;
        self.check_taken(&order)?;
        see_through(async move {
            let _counted = Counted::new(&node);
            node.bring_up(order).await
        })
        .await
    }

    #[tracing::instrument(level = "debug", name = "node.pause", skip_all, fields(node = %self.config.id, %sandbox, %execution))]
    async fn pause(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        let node = self.shared()?;
        see_through(async move { node.put_to_pause(sandbox, execution, into, mode).await }).await
    }

    #[tracing::instrument(level = "debug", name = "node.checkpoint", skip_all, fields(node = %self.config.id, %sandbox, %execution, %into, memory))]
    async fn checkpoint(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        memory: bool,
    ) -> Result<Memory, NodeError> {
        let node = self.shared()?;
        see_through(async move { node.copy(sandbox, execution, into, memory).await }).await
    }

    #[tracing::instrument(level = "debug", name = "node.build", skip_all, fields(node = %self.config.id, build = %order.build, template = %order.template))]
    async fn build(&self, order: BuildOrder, talk: BuildTalk) -> Result<Built, BuildError> {
        let node = self.shared().map_err(fault("ordering a build"))?;
        node.order_build(order, talk).await
    }

    async fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
        Ok(self.runtime.builds().await)
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        let node = self.shared()?;
        let builds = builds.to_owned();
        see_through(async move { node.remove_unused(&builds).await }).await
    }

    async fn kin_of(&self, build: BuildId) -> Result<Vec<BuildId>, NodeError> {
        Ok(self.runtime.kin_of(build).await)
    }

    #[tracing::instrument(level = "debug", name = "node.stow", skip_all, fields(node = %self.config.id, %build))]
    async fn stow_build(&self, build: BuildId, kin: &[String]) -> Result<String, NodeError> {
        let node = self.shared()?;
        let kin = kin.to_vec();
        see_through(async move { node.stow(build, &kin).await }).await
    }

    #[tracing::instrument(level = "debug", name = "node.fetch", skip_all, fields(node = %self.config.id, %build))]
    async fn fetch_build(&self, build: BuildId, digest: &str) -> Result<(), NodeError> {
        let node = self.shared()?;
        let digest = digest.to_owned();
        see_through(async move { node.fetch(build, &digest).await }).await
    }

    #[tracing::instrument(level = "debug", name = "node.copy_paused", skip_all, fields(node = %self.config.id, %sandbox, %snapshot))]
    async fn copy_paused(&self, sandbox: SandboxId, snapshot: BuildId) -> Result<(), NodeError> {
        let node = self.shared()?;
        see_through(async move { node.copy_pause(sandbox, snapshot).await }).await
    }

    async fn say(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        level: ports::Level,
        line: &str,
    ) -> Result<(), NodeError> {
        let sandbox = self.find(sandbox).ok_or(NodeError::Unknown)?;
        if sandbox.now().entry.order.execution != execution {
            return Err(NodeError::Unknown);
        }
        sandbox.lines().say(SystemTime::now(), level, line.to_owned());
        Ok(())
    }

    async fn set_accepts(&self, accepts: bool) -> Result<(), NodeError> {
        tracing::info!(accepts, "whether new sandboxes are taken is set");
        self.admission.set_accepts(accepts)
    }

    async fn drain(&self, how: Draining) -> Result<(), NodeError> {
        tracing::info!(?how, "it is to be emptied");
        self.admission.drain(how)
    }

    async fn sweep_stowed(&self, living: &[String]) -> Result<u64, NodeError> {
        let node = self.shared()?;
        let living = living.to_vec();
        see_through(async move { node.sweep(&living).await }).await
    }

    #[tracing::instrument(level = "debug", name = "node.changes", skip_all, fields(node = %self.config.id, %sandbox, %execution))]
    async fn changes(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<Changes, NodeError> {
        let node = self.shared()?;
        see_through(async move { node.look_for_changes(sandbox, execution).await }).await
    }

    #[tracing::instrument(level = "debug", name = "node.export", skip_all, fields(node = %self.config.id, %sandbox, %execution))]
    async fn export(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<ByteStream, NodeError> {
        let node = self.shared()?;
        see_through(async move { node.export_root(sandbox, execution).await }).await
    }

    async fn is_healthy(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<bool, NodeError> {
        let sandbox = self.running(sandbox, execution)?;
        let _open = sandbox.enter().await;
        let machine = sandbox.machine().ok_or(NodeError::Unknown)?;
        Ok(envd::is_healthy(&*machine).await)
    }

    async fn kill(&self, sandbox: SandboxId, why: KillReason) -> Result<(), NodeError> {
        let node = self.shared()?;
        see_through(async move { node.end(sandbox, why).await }).await
    }

    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError> {
        let sandbox = self.find(sandbox).ok_or(NodeError::Unknown)?;
        self.amend(&sandbox, execution, |order| order.deadline = deadline)?;
        sandbox.nudge.notify_waiters();
        Ok(())
    }

    async fn set_network(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        let node = self.shared()?;
        see_through(async move {
            let sandbox = node.find(sandbox).ok_or(NodeError::Unknown)?;
            let _turn = sandbox.turn.lock().await;
            let machine = node
                .running(sandbox.id(), execution)?
                .machine()
                .ok_or(NodeError::Unknown)?;
            machine
                .set_network(&policy)
                .await
                .map_err(failed("changing the network policy"))?;
            // Where this is not written, the report tells the policy of before, and whoever asked for this asks again.
            node.amend(&sandbox, execution, |order| order.network = policy)
        })
        .await
    }

    async fn metrics(
        &self,
        sandbox: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, NodeError> {
        let sandbox = self.find(sandbox).ok_or(NodeError::Unknown)?;
        if sandbox.state() == HeldState::Running && !sandbox.history().is_fresh(SystemTime::now(), FRESH) {
            self.sample(&sandbox).await;
        }
        Ok(sandbox.history().between(from, to))
    }

    async fn logs(&self, sandbox: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, NodeError> {
        let sandbox = self.find(sandbox).ok_or(NodeError::Unknown)?;
        self.fetch_lines(&sandbox).await;
        Ok(sandbox.lines().find(&query))
    }

    async fn report(&self) -> Result<Report, NodeError> {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let mib = |name: &str| {
            let kib = memory.lines().find_map(|line| {
                line.strip_prefix(name)?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            });
            MiB(u32::try_from(kib.unwrap_or(0) / 1024).unwrap_or(u32::MAX))
        };
        let disk = self.disk_space();
        let disk_mib = |bytes: u64| MiB(u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let (cpu_total, memory_total) = self.offered.of(cpus, mib("MemTotal:"));
        Ok(Report {
            node: self.config.id,
            runtime: self.runtime.name().to_owned(),
            capabilities: self.runtime.capabilities(),
            started_at: self.started_at,
            held: self.all().iter().map(|sandbox| sandbox.held()).collect(),
            cpu_total,
            memory_total,
            memory_available: mib("MemAvailable:"),
            disk_total: disk_mib(disk.total_bytes),
            disk_available: disk_mib(disk.free_bytes),
            slots_ready: self.runtime.slots_ready(),
            starting: self.starting.load(Ordering::Relaxed),
            accepts: self.admission.accepts() && self.offered.takes(),
            draining: self.admission.draining().or_else(|| self.offered.draining()),
            own: self.offered.own(),
        })
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }
}
