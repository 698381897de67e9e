//! A process that dies in the middle: after so many effects, none of its words reaches anybody any more.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use model::recipe::Key;
use model::{
    Build, BuildId, ExecutionId, KillReason, Kind, Memory, MiB, NetworkPolicy, NodeId, PauseMode, Sandbox,
    SandboxId, State, TeamId, Template, TemplateId, Volume, VolumeId,
};
use ports::blobs::ByteStream;
use ports::builds::{
    BuildError, BuildLine, BuildOrder, BuildStore, BuildTalk, Built, CachedStep, LinesQuery,
};
use ports::node::{Draining, Order, PauseOutcome, Report};
use ports::store::SandboxQuery;
use ports::volumes::{FileError, FileStat, Ownership};
use ports::{
    Level, LogLine, LogQuery, MetricSample, Node, NodeError, NodeEvent, SandboxStore, StoreError,
    TemplateStore, VolumeFiles, VolumeStore,
};
use tokio::sync::broadcast;

/// Counts the effects that are left.
pub(crate) struct Fuse {
    left: AtomicUsize,
    /// Whether the last effect happens, and only its answer is lost.
    last_happens: bool,
    burnt: AtomicUsize,
    /// Lets others go first, before and after effects, as often as it says.
    jitter: Option<Mutex<Dice>>,
}

/// Draws numbers that look like chance, and are the same for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }

    pub(crate) fn pick<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[usize::try_from(self.roll(N as u64)).unwrap()]
    }
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
            jitter: None,
        })
    }

    /// One that never burns through, and mixes what goes on at the same time.
    pub(crate) fn jitter(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(usize::MAX),
            last_happens: false,
            burnt: AtomicUsize::new(0),
            jitter: Some(Mutex::new(Dice::new(seed))),
        })
    }

    /// Somebody who is about to store what it has in hand is held up, now and then for as long as others take for much.
    async fn hold_up(&self) {
        let Some(jitter) = &self.jitter else { return };
        let turns = {
            let mut dice = jitter.lock().unwrap();
            dice.pick([0, 0, 300, 1500])
        };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    }

    async fn let_others(&self) {
        let Some(jitter) = &self.jitter else { return };
        let turns = jitter.lock().unwrap().roll(3);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
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
            self.let_others().await;
            let outcome = effect.await;
            self.let_others().await;
            Some(outcome)
        };
        match (fate, outcome) {
            (Fate::Alive, Some(outcome)) => outcome,
            _ => Err(StoreError::Away("the process is dead".into())),
        }
    }

    async fn files<T>(&self, effect: impl Future<Output = Result<T, FileError>>) -> Result<T, FileError> {
        let fate = self.burn();
        let outcome = if matches!(fate, Fate::Dead) {
            None
        } else {
            self.let_others().await;
            let outcome = effect.await;
            self.let_others().await;
            Some(outcome)
        };
        match (fate, outcome) {
            (Fate::Alive, Some(outcome)) => outcome,
            _ => Err(FileError::Failed {
                step: "dying",
                source: std::io::Error::other("the process is dead"),
            }),
        }
    }

    async fn node<T>(&self, effect: impl Future<Output = Result<T, NodeError>>) -> Result<T, NodeError> {
        let fate = self.burn();
        let outcome = if matches!(fate, Fate::Dead) {
            None
        } else {
            self.let_others().await;
            let outcome = effect.await;
            self.let_others().await;
            Some(outcome)
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
        self.fuse.hold_up().await;
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
impl TemplateStore for Fused<dyn TemplateStore> {
    async fn insert(&self, template: &Template) -> Result<(), StoreError> {
        self.fuse.hold_up().await;
        self.fuse.store(self.part.insert(template)).await
    }
    async fn update(&self, template: &Template) -> Result<u64, StoreError> {
        self.fuse.hold_up().await;
        self.fuse.store(self.part.update(template)).await
    }
    async fn get(&self, id: TemplateId) -> Result<Option<Template>, StoreError> {
        self.fuse.store(self.part.get(id)).await
    }
    async fn named(&self, team: TeamId, name: &str) -> Result<Option<Template>, StoreError> {
        self.fuse.store(self.part.named(team, name)).await
    }
    async fn promoted(&self, name: &str) -> Result<Option<Template>, StoreError> {
        self.fuse.store(self.part.promoted(name)).await
    }
    async fn list(&self, team: TeamId) -> Result<Vec<Template>, StoreError> {
        self.fuse.store(self.part.list(team)).await
    }
    async fn remove(&self, id: TemplateId) -> Result<(), StoreError> {
        self.fuse.store(self.part.remove(id)).await
    }
    async fn spawned(&self, id: TemplateId, at: SystemTime) -> Result<(), StoreError> {
        self.part.spawned(id, at).await
    }
    async fn builds(&self) -> Result<Vec<BuildId>, StoreError> {
        self.fuse.store(self.part.builds()).await
    }
}

#[async_trait]
impl BuildStore for Fused<dyn BuildStore> {
    async fn insert_build(&self, build: &Build) -> Result<(), StoreError> {
        self.fuse.store(self.part.insert_build(build)).await
    }
    async fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        self.fuse.store(self.part.build(id)).await
    }
    async fn update_build(&self, build: &Build) -> Result<u64, StoreError> {
        self.fuse.store(self.part.update_build(build)).await
    }
    async fn builds_of(&self, template: TemplateId) -> Result<Vec<Build>, StoreError> {
        self.fuse.store(self.part.builds_of(template)).await
    }
    async fn unfinished_builds(&self) -> Result<Vec<Build>, StoreError> {
        self.fuse.store(self.part.unfinished_builds()).await
    }
    async fn builds_beyond(&self, newer: u32) -> Result<Vec<BuildId>, StoreError> {
        self.fuse.store(self.part.builds_beyond(newer)).await
    }
    async fn remove_build(&self, id: BuildId) -> Result<(), StoreError> {
        self.fuse.store(self.part.remove_build(id)).await
    }
    async fn remove_builds_of(&self, template: TemplateId) -> Result<(), StoreError> {
        self.fuse.store(self.part.remove_builds_of(template)).await
    }
    async fn append_lines(&self, build: BuildId, lines: &[BuildLine]) -> Result<(), StoreError> {
        self.fuse.store(self.part.append_lines(build, lines)).await
    }
    async fn lines(&self, build: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, StoreError> {
        self.fuse.store(self.part.lines(build, query)).await
    }
    async fn cached_step(
        &self,
        team: TeamId,
        key: Key,
        now: SystemTime,
    ) -> Result<Option<CachedStep>, StoreError> {
        self.fuse.store(self.part.cached_step(team, key, now)).await
    }
    async fn cache_step(
        &self,
        team: TeamId,
        key: Key,
        step: &CachedStep,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        self.fuse.store(self.part.cache_step(team, key, step, now)).await
    }
    async fn cached_builds(&self) -> Result<Vec<(BuildId, SystemTime)>, StoreError> {
        self.fuse.store(self.part.cached_builds()).await
    }
    async fn forget_cached(&self, build: BuildId) -> Result<(), StoreError> {
        self.fuse.store(self.part.forget_cached(build)).await
    }
    async fn note_stowed(&self, build: BuildId, digest: &str) -> Result<(), StoreError> {
        self.fuse.store(self.part.note_stowed(build, digest)).await
    }
    async fn stowed(&self) -> Result<BTreeMap<BuildId, String>, StoreError> {
        self.fuse.store(self.part.stowed()).await
    }
    async fn stowed_as(&self, build: BuildId) -> Result<Option<String>, StoreError> {
        self.fuse.store(self.part.stowed_as(build)).await
    }
    async fn forget_stowed(&self, build: BuildId) -> Result<(), StoreError> {
        self.fuse.store(self.part.forget_stowed(build)).await
    }
}

#[async_trait]
impl VolumeStore for Fused<dyn VolumeStore> {
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        self.fuse.store(self.part.insert_volume(volume)).await
    }
    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, StoreError> {
        self.fuse.store(self.part.volume(id)).await
    }
    async fn volume_named(&self, team: TeamId, name: &str) -> Result<Option<Volume>, StoreError> {
        self.fuse.store(self.part.volume_named(team, name)).await
    }
    async fn volumes(&self, team: TeamId) -> Result<Vec<Volume>, StoreError> {
        self.fuse.store(self.part.volumes(team)).await
    }
    async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError> {
        self.fuse.store(self.part.all_volumes()).await
    }
    async fn update_volume(&self, volume: &Volume) -> Result<u64, StoreError> {
        self.fuse.store(self.part.update_volume(volume)).await
    }
    async fn give_up_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        self.fuse.store(self.part.give_up_volume(volume)).await
    }
    async fn volume_remains(&self) -> Result<Vec<Volume>, StoreError> {
        self.fuse.store(self.part.volume_remains()).await
    }
    async fn forget_remains(&self, id: VolumeId) -> Result<(), StoreError> {
        self.fuse.store(self.part.forget_remains(id)).await
    }
}

#[async_trait]
impl VolumeFiles for Fused<dyn VolumeFiles> {
    async fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError> {
        self.fuse.files(self.part.make(id, size)).await
    }
    async fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        self.fuse.files(self.part.discard(id)).await
    }
    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        self.fuse.files(self.part.held()).await
    }
    async fn stat(&self, id: VolumeId, path: &str) -> Result<FileStat, FileError> {
        self.fuse.files(self.part.stat(id, path)).await
    }
    async fn change(&self, id: VolumeId, path: &str, ownership: Ownership) -> Result<FileStat, FileError> {
        self.part.change(id, path, ownership).await
    }
    async fn list(&self, id: VolumeId, path: &str, depth: u32) -> Result<Vec<FileStat>, FileError> {
        self.part.list(id, path, depth).await
    }
    async fn make_dir(
        &self,
        id: VolumeId,
        path: &str,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        self.part.make_dir(id, path, ownership, force).await
    }
    async fn remove(&self, id: VolumeId, path: &str) -> Result<(), FileError> {
        self.part.remove(id, path).await
    }
    async fn read(&self, id: VolumeId, path: &str) -> Result<(u64, ByteStream), FileError> {
        self.part.read(id, path).await
    }
    async fn write(
        &self,
        id: VolumeId,
        path: &str,
        bytes: ByteStream,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        self.part.write(id, path, bytes, ownership, force).await
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
    async fn checkpoint(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        memory: bool,
    ) -> Result<Memory, NodeError> {
        self.fuse
            .node(self.part.checkpoint(sandbox, execution, into, memory))
            .await
    }
    async fn build(&self, order: BuildOrder, talk: BuildTalk) -> Result<Built, BuildError> {
        let dead = |source: NodeError| BuildError::Node {
            step: "dying",
            source: source.into(),
        };
        let build = async { Ok(self.part.build(order, talk).await) };
        self.fuse.node(build).await.map_err(dead)?
    }
    async fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
        self.fuse.node(self.part.builds()).await
    }
    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        self.fuse.node(self.part.remove_builds(builds)).await
    }
    async fn kin_of(&self, build: BuildId) -> Result<Vec<BuildId>, NodeError> {
        self.fuse.node(self.part.kin_of(build)).await
    }
    async fn stow_build(&self, build: BuildId, kin: &[String]) -> Result<String, NodeError> {
        self.fuse.node(self.part.stow_build(build, kin)).await
    }
    async fn fetch_build(&self, build: BuildId, digest: &str) -> Result<(), NodeError> {
        self.fuse.node(self.part.fetch_build(build, digest)).await
    }
    async fn copy_paused(&self, sandbox: SandboxId, snapshot: BuildId) -> Result<(), NodeError> {
        self.fuse.node(self.part.copy_paused(sandbox, snapshot)).await
    }
    async fn set_accepts(&self, accepts: bool) -> Result<(), NodeError> {
        self.fuse.node(self.part.set_accepts(accepts)).await
    }
    async fn drain(&self, how: Draining) -> Result<(), NodeError> {
        self.fuse.node(self.part.drain(how)).await
    }
    async fn say(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        level: Level,
        line: &str,
    ) -> Result<(), NodeError> {
        self.fuse
            .node(self.part.say(sandbox, execution, level, line))
            .await
    }
    async fn sweep_stowed(&self, living: &[String]) -> Result<u64, NodeError> {
        self.fuse.node(self.part.sweep_stowed(living)).await
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
