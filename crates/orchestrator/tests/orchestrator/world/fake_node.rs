//! A node that runs sandboxes in a map, and fails or waits where a test says so.
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use model::recipe::{Context, Key};
use model::{
    BuildId, BuildStep, ExecutionId, KillReason, Kind, Memory, MiB, NetworkPolicy, NodeId, PauseMode,
    SandboxId,
};
use ports::builds::{BuildError, BuildLine, BuildOrder, BuildTalk, Built, CachedStep};
use ports::logs::Level;
use ports::node::{Draining, Held, HeldState, Order, OrderOrigin, Own, PauseOutcome, Report};
use ports::runtime::Capabilities;
use ports::{LogLine, LogQuery, MetricSample, Node, NodeError, NodeEvent};
use tokio::sync::{Semaphore, broadcast};

pub(crate) struct FakeNode {
    id: NodeId,
    inner: Mutex<Inner>,
    events: broadcast::Sender<NodeEvent>,
}

#[derive(Default)]
struct Inner {
    held: BTreeMap<SandboxId, Held>,
    failures: HashMap<&'static str, VecDeque<NodeError>>,
    gates: HashMap<&'static str, Arc<Semaphore>>,
    calls: Vec<&'static str>,
    envd_unresponsive: bool,
    /// What sandboxes can be started from.
    builds: BTreeSet<BuildId>,
    /// What was, and is not any more.
    removed: BTreeSet<BuildId>,
    /// What was there, and is to be had again from the blobs.
    lost: BTreeSet<BuildId>,
    /// What the blobs hold, by its digest: the same for all nodes that are made beside one another.
    stowed: Blobs,
    /// Whether it starts from nothing but what it has.
    is_strict: bool,
    /// What owners were told.
    said: Vec<(SandboxId, ExecutionId, String)>,
    /// What builds are akin to.
    kin: BTreeMap<BuildId, Vec<BuildId>>,
    /// Beside what builds were brought to the blobs.
    told_kin: BTreeMap<BuildId, Vec<String>>,
    /// What a scheduler gave for one sandbox alone.
    own: Vec<Own>,
    /// How much memory copies hold.
    copies: Memory,
    /// How builds fail, in this order.
    build_failures: VecDeque<BuildError>,
    /// The upload that the next build reads, and does not understand.
    broken_upload: Option<String>,
    /// What it was told to build.
    build_orders: Vec<BuildOrder>,
    /// Whether it takes nothing new.
    is_closed: bool,
    /// How it is to be emptied.
    draining: Option<Draining>,
    /// What was used after it was removed, or removed while it was used.
    wrongs: Vec<String>,
}

type Blobs = Arc<Mutex<BTreeMap<String, BuildId>>>;

impl Default for FakeNode {
    fn default() -> Self {
        Self {
            id: NodeId::random(),
            inner: Mutex::default(),
            events: broadcast::channel(64).0,
        }
    }
}

/// Calls of one kind wait while this lives.
pub(crate) struct Gate {
    node: Arc<FakeNode>,
    what: &'static str,
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(gate) = self.node.inner().gates.remove(self.what) {
            gate.close();
        }
    }
}

impl Gate {
    /// Waits until a call waits at the gate.
    pub(crate) async fn reached(&self) {
        super::eventually(async || self.node.calls(self.what) > 0).await;
    }
}

impl FakeNode {
    /// Another node that has nothing, and reaches the same blobs.
    pub(crate) fn beside(other: &Self) -> Self {
        let node = Self::default();
        let stowed = Arc::clone(&other.inner().stowed);
        let mut inner = node.inner();
        inner.stowed = stowed;
        inner.is_strict = true;
        drop(inner);
        node
    }

    /// A scheduler gives it capacity for one sandbox alone.
    pub(crate) fn gives(&self, own: Own) {
        self.inner().own.push(own);
    }

    /// What the owner of an execution was told.
    pub(crate) fn said(&self, id: SandboxId, execution: ExecutionId) -> Vec<String> {
        let inner = self.inner();
        let said = inner.said.iter();
        said.filter(|(of, by, _)| (*of, *by) == (id, execution))
            .map(|(.., line)| line.clone())
            .collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The next call of a kind fails and changes nothing; a reboot that failed on its way leaves the disk.
    pub(crate) fn fail(&self, what: &'static str, error: NodeError) {
        self.inner().failures.entry(what).or_default().push_back(error);
    }

    /// Calls of a kind wait from now on.
    pub(crate) fn hold_back(self: &Arc<Self>, what: &'static str) -> Gate {
        let mut inner = self.inner();
        inner.gates.insert(what, Arc::new(Semaphore::new(0)));
        inner.calls.retain(|call| *call != what);
        drop(inner);
        Gate {
            node: Arc::clone(self),
            what,
        }
    }

    /// Sandboxes can be started from it.
    pub(crate) fn add_build(&self, build: BuildId) {
        self.inner().builds.insert(build);
    }

    pub(crate) fn has_build(&self, build: BuildId) -> bool {
        self.inner().builds.contains(&build)
    }

    pub(crate) fn build_ids(&self) -> BTreeSet<BuildId> {
        self.inner().builds.clone()
    }

    /// Loses a build, as a new disk in the machine does.
    pub(crate) fn lose_build(&self, build: BuildId) {
        let mut inner = self.inner();
        inner.builds.remove(&build);
        inner.lost.insert(build);
    }

    /// What the blobs hold.
    pub(crate) fn stowed(&self) -> BTreeSet<BuildId> {
        self.inner().stowed.lock().unwrap().values().copied().collect()
    }

    /// Says what a build is akin to.
    pub(crate) fn is_akin(&self, build: BuildId, kin: Vec<BuildId>) {
        self.inner().kin.insert(build, kin);
    }

    /// The digests beside which a build was brought to the blobs.
    pub(crate) fn told_kin(&self, build: BuildId) -> Vec<String> {
        self.inner().told_kin.get(&build).cloned().unwrap_or_default()
    }

    /// How much memory copies hold from now on.
    pub(crate) fn copy_memory(&self, memory: Memory) {
        self.inner().copies = memory;
    }

    /// The next build fails.
    pub(crate) fn fail_build(&self, error: BuildError) {
        self.inner().build_failures.push_back(error);
    }

    /// The next build reads an upload, and discards it.
    pub(crate) fn discard_upload(&self, files: &str) {
        self.inner().broken_upload = Some(files.to_owned());
    }

    pub(crate) fn build_orders(&self) -> Vec<BuildOrder> {
        self.inner().build_orders.clone()
    }

    /// Says that nothing was used after it was removed, nor removed while it was used.
    pub(crate) fn assert_right(&self) {
        assert_eq!(self.inner().wrongs, Vec::<String>::new());
    }

    /// The guest answers no more.
    pub(crate) fn wedge_guest(&self) {
        self.inner().envd_unresponsive = true;
    }

    pub(crate) fn held(&self) -> BTreeMap<SandboxId, Held> {
        self.inner().held.clone()
    }

    /// Changes what is held behind everybody's back.
    pub(crate) fn meddle(&self, edit: impl FnOnce(&mut BTreeMap<SandboxId, Held>)) {
        edit(&mut self.inner().held);
    }

    pub(crate) fn set_state(&self, id: SandboxId, state: HeldState) {
        self.meddle(|held| held.get_mut(&id).unwrap().state = state);
    }

    pub(crate) fn calls(&self, what: &str) -> usize {
        self.inner().calls.iter().filter(|call| **call == what).count()
    }

    /// Tells what happened.
    pub(crate) fn tell(&self, event: NodeEvent) {
        self.events.send(event).expect("somebody listens");
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Notes a call, waits where it is to wait, fails where it is to fail.
    async fn enter(&self, what: &'static str) -> Result<(), NodeError> {
        let gate = {
            let mut inner = self.inner();
            inner.calls.push(what);
            inner.gates.get(what).cloned()
        };
        if let Some(gate) = gate {
            // Closed when the gate is dropped.
            let _ = gate.acquire().await;
        }
        match self.inner().failures.get_mut(what).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn with<T>(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        act: impl FnOnce(&mut Held) -> T,
    ) -> Result<T, NodeError> {
        let mut inner = self.inner();
        let held = inner
            .held
            .get_mut(&id)
            .filter(|held| held.order.execution == execution);
        held.map(act).ok_or(NodeError::Unknown)
    }
}

impl FakeNode {
    /// Notes that a build is used.
    fn use_of(&self, build: Option<BuildId>) {
        let mut inner = self.inner();
        if let Some(build) = build.filter(|build| inner.removed.contains(build)) {
            inner.wrongs.push(format!("built on a removed build: {build}"));
        }
    }

    fn with_running(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        act: impl FnOnce(&mut Held),
    ) -> Result<(), NodeError> {
        self.with(id, execution, |held| match held.state {
            HeldState::Running => {
                act(held);
                Ok(())
            }
            _ => Err(NodeError::Busy("pausing")),
        })?
    }
}

#[async_trait]
impl Node for FakeNode {
    fn id(&self) -> NodeId {
        self.id
    }

    async fn start(&self, order: Order) -> Result<(), NodeError> {
        let lacks = |inner: &Inner| inner.is_strict && !inner.builds.contains(&order.build);
        if order.origin == OrderOrigin::Fresh && lacks(&self.inner()) {
            return Err(NodeError::NoBuild(order.build));
        }
        let entered = self.enter("start").await;
        let mut inner = self.inner();
        if order.origin == OrderOrigin::Fresh && inner.removed.contains(&order.build) {
            inner
                .wrongs
                .push(format!("started from a removed build: {}", order.build));
            return Err(NodeError::Failed {
                step: "finding the build",
                kind: Kind::NotFound,
                source: "it was removed".into(),
            });
        }
        if order.origin == OrderOrigin::Fresh && inner.lost.contains(&order.build) {
            return Err(NodeError::NoBuild(order.build));
        }
        let held = inner.held.get(&order.sandbox);
        if held
            .is_some_and(|held| held.order.execution == order.execution && held.state == HeldState::Running)
        {
            return Ok(());
        }
        if order.origin == OrderOrigin::Fresh && inner.is_closed {
            return Err(NodeError::Full {
                what: "places: it is cordoned",
                retry_after: None,
            });
        }
        let there = match (order.origin, held.map(|held| (held.order.execution, held.state))) {
            (OrderOrigin::Fresh, None) => true,
            (OrderOrigin::Paused(build, _), Some((_, HeldState::Paused(kept, _)))) => kept == build,
            (OrderOrigin::Reboot(old), Some((present, HeldState::Running))) => present == old,
            _ => false,
        };
        if !there {
            return Err(held.map_or(NodeError::Unknown, |_| NodeError::Busy("something else")));
        }
        let state = match (&entered, order.origin) {
            (Ok(()), _) => HeldState::Running,
            (Err(NodeError::Failed { .. }), OrderOrigin::Reboot(_)) => {
                HeldState::Paused(BuildId(order.execution.0), PauseMode::Filesystem)
            }
            (Err(_), _) => return entered,
        };
        inner.held.insert(
            order.sandbox,
            Held {
                order,
                state,
                pause: None,
            },
        );
        entered
    }

    async fn pause(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        self.enter("pause").await?;
        let envd_unresponsive = self.inner().envd_unresponsive;
        let outcome = PauseOutcome {
            mode,
            memory: match mode {
                PauseMode::Full => Memory::Volatile,
                PauseMode::Filesystem => Memory::None,
            },
            envd_unresponsive,
        };
        self.with(sandbox, execution, |held| {
            held.state = HeldState::Paused(into, mode);
            held.pause = Some(outcome);
        })?;
        Ok(outcome)
    }

    async fn set_accepts(&self, accepts: bool) -> Result<(), NodeError> {
        self.enter("set_accepts").await?;
        let mut inner = self.inner();
        (inner.is_closed, inner.draining) = (!accepts, None);
        Ok(())
    }

    async fn drain(&self, how: Draining) -> Result<(), NodeError> {
        self.enter("drain").await?;
        let mut inner = self.inner();
        (inner.is_closed, inner.draining) = (true, Some(how));
        Ok(())
    }

    async fn checkpoint(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        memory: bool,
    ) -> Result<Memory, NodeError> {
        let runs = || self.with_running(sandbox, execution, |_| {});
        runs()?;
        self.enter("checkpoint").await?;
        runs()?;
        let mut inner = self.inner();
        inner.builds.insert(into);
        Ok(if memory { inner.copies } else { Memory::None })
    }

    async fn build(&self, order: BuildOrder, talk: BuildTalk) -> Result<Built, BuildError> {
        let base = order.base.as_ref().map(|base| base.build);
        self.inner().build_orders.push(order.clone());
        let key = base.map_or(Key::of_image("sha256:00"), Key::of_build);
        let mut key = key;
        let mut at = base;
        let mut context = order
            .base
            .as_ref()
            .map(|base| base.context.clone())
            .unwrap_or_default();
        let broken = self.inner().broken_upload.take();
        if let Some(files) = broken {
            let read = talk.shelf.upload(&files).await.map(drop);
            let _ = self.enter("discard").await;
            talk.shelf.discard_upload(&files).await;
            read.expect("it was uploaded");
        }
        for (number, step) in (1..).zip(&order.recipe.steps) {
            key = key.then(&step.action);
            let line = BuildLine {
                at: SystemTime::UNIX_EPOCH,
                level: Level::Info,
                step: Some(BuildStep::Step(number)),
                message: format!("{:?}", step.action),
            };
            let _ = talk.lines.send(line).await;
            if let Some(kept) = talk.shelf.cached(key).await
                && self.has_build(kept.build)
            {
                (at, context) = (Some(kept.build), kept.context);
                continue;
            }
            let made = BuildId::random();
            self.use_of(at);
            self.add_build(made);
            // Nobody knows of it yet.
            tokio::task::yield_now().await;
            context.set("STEP", number.to_string());
            let kept = CachedStep {
                build: made,
                context: context.clone(),
            };
            talk.shelf.cache(key, kept).await;
            at = Some(made);
        }
        let entered = tokio::select! {
            entered = self.enter("build") => entered,
            () = talk.cancel.cancelled() => return Err(BuildError::Cancelled),
        };
        if let Err(error) = entered {
            return Err(BuildError::Node {
                step: "building",
                source: error.into(),
            });
        }
        if let Some(error) = self.inner().build_failures.pop_front() {
            return Err(error);
        }
        self.use_of(at);
        self.add_build(order.build);
        Ok(Built {
            context: Context {
                env: context.env,
                ..Context::default()
            },
            start: None,
            memory: Memory::None,
        })
    }

    async fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
        self.enter("builds").await?;
        Ok(self.inner().builds.iter().copied().collect())
    }

    async fn kin_of(&self, build: BuildId) -> Result<Vec<BuildId>, NodeError> {
        self.enter("kin_of").await?;
        Ok(self.inner().kin.get(&build).cloned().unwrap_or_default())
    }

    async fn stow_build(&self, build: BuildId, kin: &[String]) -> Result<String, NodeError> {
        self.enter("stow_build").await?;
        let mut inner = self.inner();
        inner.told_kin.insert(build, kin.to_vec());
        if !inner.builds.contains(&build) {
            return Err(NodeError::NoBuild(build));
        }
        let digest = format!("of {build}");
        inner.stowed.lock().unwrap().insert(digest.clone(), build);
        Ok(digest)
    }

    async fn copy_paused(&self, sandbox: SandboxId, snapshot: BuildId) -> Result<(), NodeError> {
        self.enter("copy_paused").await?;
        let mut inner = self.inner();
        match inner.held.get(&sandbox).map(|held| held.state) {
            None => return Err(NodeError::Unknown),
            Some(HeldState::Paused(paused, _)) if paused == snapshot => {}
            Some(_) => return Err(NodeError::Busy("something else")),
        }
        inner.builds.insert(snapshot);
        Ok(())
    }

    async fn say(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        _: Level,
        line: &str,
    ) -> Result<(), NodeError> {
        self.enter("say").await?;
        let mut inner = self.inner();
        let held = inner.held.get(&sandbox).ok_or(NodeError::Unknown)?;
        assert_eq!(held.order.execution, execution);
        inner.said.push((sandbox, execution, line.to_owned()));
        Ok(())
    }

    async fn fetch_build(&self, build: BuildId, digest: &str) -> Result<(), NodeError> {
        self.enter("fetch_build").await?;
        let mut inner = self.inner();
        let found = inner.stowed.lock().unwrap().get(digest).copied();
        if found != Some(build) {
            inner
                .wrongs
                .push(format!("fetched {build} by {digest}, which is not there"));
            return Err(NodeError::NoBuild(build));
        }
        inner.lost.remove(&build);
        inner.builds.insert(build);
        Ok(())
    }

    async fn sweep_stowed(&self, living: &[String]) -> Result<u64, NodeError> {
        self.enter("sweep_stowed").await?;
        let stowed = Arc::clone(&self.inner().stowed);
        let mut stowed = stowed.lock().unwrap();
        let before = stowed.len();
        stowed.retain(|digest, _| living.contains(digest));
        Ok((before - stowed.len()) as u64)
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        self.enter("remove_builds").await?;
        let mut inner = self.inner();
        for build in builds {
            if inner.held.values().any(|held| held.order.build == *build) {
                inner
                    .wrongs
                    .push(format!("removed while a sandbox was of it: {build}"));
            }
            inner.builds.remove(build);
            inner.removed.insert(*build);
        }
        Ok(())
    }

    async fn is_healthy(&self, _: SandboxId, _: ExecutionId) -> Result<bool, NodeError> {
        self.enter("is_healthy").await?;
        Ok(!self.inner().envd_unresponsive)
    }

    async fn kill(&self, sandbox: SandboxId, _: KillReason) -> Result<(), NodeError> {
        self.enter("kill").await?;
        self.inner().held.remove(&sandbox);
        Ok(())
    }

    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError> {
        self.enter("set_deadline").await?;
        self.with_running(sandbox, execution, |held| held.order.deadline = deadline)
    }

    async fn set_network(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        self.enter("set_network").await?;
        self.with_running(sandbox, execution, |held| held.order.network = policy)
    }

    async fn metrics(
        &self,
        sandbox: SandboxId,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, NodeError> {
        self.enter("metrics").await?;
        self.inner()
            .held
            .contains_key(&sandbox)
            .then(Vec::new)
            .ok_or(NodeError::Unknown)
    }

    async fn logs(&self, sandbox: SandboxId, _: LogQuery) -> Result<Vec<LogLine>, NodeError> {
        self.enter("logs").await?;
        self.inner()
            .held
            .contains_key(&sandbox)
            .then(Vec::new)
            .ok_or(NodeError::Unknown)
    }

    async fn report(&self) -> Result<Report, NodeError> {
        self.enter("report").await?;
        let (held, is_closed, draining, own) = {
            let inner = self.inner();
            (
                inner.held.values().cloned().collect(),
                inner.is_closed,
                inner.draining,
                inner.own.clone(),
            )
        };
        Ok(Report {
            node: self.id,
            runtime: "fake".to_owned(),
            capabilities: Capabilities {
                durable_memory: false,
                freeze: true,
                own_kernel: false,
                network: true,
                volumes: true,
                roots: true,
                portable_builds: true,
            },
            started_at: SystemTime::UNIX_EPOCH,
            held,
            cpu_total: 16,
            memory_total: MiB(64 * 1024),
            memory_available: MiB(32 * 1024),
            disk_total: MiB(1024 * 1024),
            disk_available: MiB(512 * 1024),
            slots_ready: 0,
            starting: 0,
            accepts: !is_closed,
            draining,
            own,
        })
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }
}
