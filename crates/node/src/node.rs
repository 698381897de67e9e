//! The node as the orchestrator sees it.
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{BuildId, ExecutionId, KillReason, MiB, NetworkPolicy, NodeId, PauseMode, SandboxId};
use ports::Runtime;
use ports::logs::{LogLine, LogQuery, MetricSample};
use ports::node::{HeldState, Node, NodeError, NodeEvent, Order, PauseOutcome, Report};
use tokio::sync::broadcast;

use crate::envd;
use crate::history::EVERY;
use crate::journal::{Entry, Journal};
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
    sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    events: broadcast::Sender<NodeEvent>,
    started_at: SystemTime,
    starting: AtomicU32,
    this: Weak<LocalNode>,
}

impl LocalNode {
    /// Opens the node's directory. [`LocalNode::recover`] comes next.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(config: Config, runtime: Arc<dyn Runtime>) -> std::io::Result<Arc<Self>> {
        let journal = Journal::open(&config.data)?;
        Ok(Arc::new_cyclic(|this| Self {
            config,
            runtime,
            journal,
            sandboxes: Mutex::default(),
            events: broadcast::channel(EVENTS_MAX).0,
            started_at: SystemTime::now(),
            starting: AtomicU32::new(0),
            this: Weak::clone(this),
        }))
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

    pub(crate) fn tell(&self, event: NodeEvent) {
        let _ = self.events.send(event);
    }

    /// Fetches what envd has logged; a guest that does not tell has nothing to say.
    pub(crate) async fn fetch_lines(&self, sandbox: &Sandbox) {
        let Some(machine) = sandbox.machine().filter(|machine| !machine.is_frozen()) else {
            return;
        };
        let seen = sandbox.lines().seen();
        if let Ok(heard) = envd::logs(&*machine, seen).await {
            sandbox.lines().take(heard);
        }
    }

    fn running(&self, id: SandboxId, execution: ExecutionId) -> Result<Arc<Sandbox>, NodeError> {
        let sandbox = self.find(id).ok_or(NodeError::Unknown)?;
        let held = sandbox.held();
        match held.state {
            _ if held.order.execution != execution => Err(NodeError::Unknown),
            HeldState::Running => Ok(sandbox),
            state => Err(NodeError::Busy(name(state))),
        }
    }

    fn shared(&self) -> Result<Arc<Self>, NodeError> {
        self.this.upgrade().ok_or(NodeError::Busy("ending"))
    }
}

#[async_trait]
impl Node for LocalNode {
    fn id(&self) -> NodeId {
        self.config.id
    }

    #[tracing::instrument(level = "debug", name = "node.start", skip_all, fields(node = %self.config.id, sandbox = %order.sandbox, execution = %order.execution))]
    async fn start(&self, order: Order) -> Result<(), NodeError> {
        self.starting.fetch_add(1, Ordering::Relaxed);
        let started = self.shared()?.bring_up(order).await;
        self.starting.fetch_sub(1, Ordering::Relaxed);
        started
    }

    #[tracing::instrument(level = "debug", name = "node.pause", skip_all, fields(node = %self.config.id, %sandbox, %execution))]
    async fn pause(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        self.shared()?.put_to_pause(sandbox, execution, into, mode).await
    }

    async fn is_healthy(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<bool, NodeError> {
        let machine = self
            .running(sandbox, execution)?
            .machine()
            .ok_or(NodeError::Unknown)?;
        Ok(envd::is_healthy(&*machine).await)
    }

    async fn kill(&self, sandbox: SandboxId, why: KillReason) -> Result<(), NodeError> {
        self.shared()?.end(sandbox, why).await
    }

    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError> {
        let sandbox = self.running(sandbox, execution)?;
        {
            let mut now = sandbox.now();
            now.entry.order.deadline = deadline;
            self.write(&now.entry)?;
        }
        sandbox.nudge.notify_waiters();
        Ok(())
    }

    async fn set_network(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        let sandbox = self.running(sandbox, execution)?;
        let _turn = sandbox.turn.lock().await;
        let machine = sandbox.machine().ok_or(NodeError::Unknown)?;
        machine
            .set_network(&policy)
            .await
            .map_err(failed("changing the network policy"))?;
        let mut now = sandbox.now();
        now.entry.order.network = policy;
        self.write(&now.entry)
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
        let disk = rustix::fs::statvfs(&self.config.data).ok();
        let disk_mib = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
            MiB(disk.as_ref().map_or(0, |disk| {
                u32::try_from(blocks(disk).saturating_mul(disk.f_frsize) >> 20).unwrap_or(u32::MAX)
            }))
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Report {
            node: self.config.id,
            runtime: self.runtime.name().to_owned(),
            started_at: self.started_at,
            held: self.all().iter().map(|sandbox| sandbox.held()).collect(),
            cpu_total: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_total: mib("MemTotal:"),
            memory_available: mib("MemAvailable:"),
            disk_total: disk_mib(|disk| disk.f_blocks),
            disk_available: disk_mib(|disk| disk.f_bavail),
            slots_ready: self.runtime.slots_ready(),
            starting: self.starting.load(Ordering::Relaxed),
            accepts: true,
        })
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }
}
