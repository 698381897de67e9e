//! A node that remembers what it was asked, and answers as it is told.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use model::recipe::{Base, Context, Key, Recipe};
use model::{
    BuildId, BuildStep, ExecutionId, KillReason, Lifecycle, Memory, MiB, NetworkPolicy, NodeId, PauseMode,
    Resources, SandboxId, Secret, StartCommand, TeamId, TemplateId,
};
use ports::blobs::ByteStream;
use ports::builds::{BuildError, BuildLine, BuildOrder, BuildTalk, Built, CachedStep};
use ports::logs::Level;
use ports::node::{Draining, Held, HeldState, Order, OrderOrigin, Own, PauseOutcome, Report};
use ports::root::{Change, ChangeKind, Changes};
use ports::runtime::Capabilities;
use ports::volumes::FileKind;
use ports::{LogLine, LogQuery, MetricSample, Node, NodeError, NodeEvent};
use tokio::sync::{Semaphore, broadcast};

pub(crate) struct FakeNode {
    id: NodeId,
    pub(crate) events: broadcast::Sender<NodeEvent>,
    inner: Mutex<Inner>,
    /// Calls that are under way.
    pub(crate) under_way: AtomicUsize,
    /// Calls that were given up by whoever called.
    pub(crate) given_up: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    calls: Vec<String>,
    failures: Vec<NodeError>,
    gate: Option<Arc<Semaphore>>,
    report: Option<Report>,
    changes: Option<Changes>,
    export: Option<Vec<std::io::Result<Bytes>>>,
    build: Option<BuildPlan>,
}

/// What the next build does.
#[derive(Clone, Default)]
pub(crate) struct BuildPlan {
    pub(crate) lines: u32,
    pub(crate) keys: Vec<Key>,
    pub(crate) upload: Option<String>,
    pub(crate) discard: Option<String>,
    pub(crate) hangs: bool,
    pub(crate) fails: Option<fn() -> BuildError>,
}

struct Counted<'a>(&'a FakeNode, bool);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.given_up.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl FakeNode {
    pub(crate) fn new() -> Arc<Self> {
        Self::of(NodeId::random())
    }

    pub(crate) fn of(id: NodeId) -> Arc<Self> {
        Arc::new(Self {
            id,
            events: broadcast::channel(10_000).0,
            inner: Mutex::default(),
            under_way: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// What it was asked, one text for each call.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.inner().calls.clone()
    }

    pub(crate) fn fail_next(&self, error: NodeError) {
        self.inner().failures.insert(0, error);
    }

    /// All calls wait until this is closed.
    pub(crate) fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.inner().gate = Some(Arc::clone(&gate));
        gate
    }

    pub(crate) fn set_report(&self, report: Report) {
        self.inner().report = Some(report);
    }

    pub(crate) fn set_changes(&self, changes: Changes) {
        self.inner().changes = Some(changes);
    }

    pub(crate) fn set_export(&self, export: Vec<std::io::Result<Bytes>>) {
        self.inner().export = Some(export);
    }

    pub(crate) fn set_build(&self, build: BuildPlan) {
        self.inner().build = Some(build);
    }

    async fn enter(&self, call: String) -> Result<(), NodeError> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let mut counted = Counted(self, false);
        let gate = {
            let mut inner = self.inner();
            inner.calls.push(call);
            inner.gate.clone()
        };
        if let Some(gate) = gate {
            let _ = gate.acquire().await;
        }
        counted.1 = true;
        match self.inner().failures.pop() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub(crate) fn outcome() -> PauseOutcome {
        PauseOutcome {
            mode: PauseMode::Full,
            memory: Memory::Durable,
            envd_unresponsive: true,
        }
    }

    pub(crate) fn report_now(&self, held: usize) -> Report {
        let states = [
            HeldState::Starting,
            HeldState::Running,
            HeldState::Pausing(BuildId::random(), PauseMode::Full),
            HeldState::Paused(BuildId::random(), PauseMode::Filesystem),
            HeldState::Stopping,
        ];
        let held = (0..held).map(|number| Held {
            order: order(),
            state: states[number % states.len()],
            pause: (number % 2 == 0).then(Self::outcome),
        });
        Report {
            node: self.id,
            runtime: "container".to_owned(),
            capabilities: Capabilities {
                durable_memory: true,
                freeze: false,
                own_kernel: true,
                network: false,
                volumes: true,
                roots: false,
                portable_builds: true,
            },
            started_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789),
            held: held.collect(),
            cpu_total: 8,
            memory_total: MiB(16_384),
            memory_available: MiB(1024),
            disk_total: MiB(1_000_000),
            disk_available: MiB(999_999),
            slots_ready: 7,
            starting: 3,
            accepts: false,
            draining: Some(Draining {
                deadline: SystemTime::UNIX_EPOCH + Duration::from_nanos(9_876_543_210_987_654_321 / 2),
                kills: true,
            }),
            own: vec![Own {
                sandbox: SandboxId::random(),
                size: ports::scheduler::Size {
                    cpu: 2,
                    memory: MiB(512),
                },
            }],
        }
    }
}

pub(crate) fn order() -> Order {
    Order {
        sandbox: SandboxId::random(),
        execution: ExecutionId::random(),
        team: TeamId::random(),
        template: TemplateId::random(),
        build: BuildId::random(),
        resources: Resources {
            cpu: 2,
            memory: MiB(512),
            disk: MiB(1024),
        },
        network: NetworkPolicy::default(),
        env: BTreeMap::from([("KEY".to_owned(), "value ✓".to_owned())]),
        user: "user".to_owned(),
        workdir: Some("/home/user".to_owned()),
        start: Some(StartCommand {
            command: "serve".to_owned(),
            user: "user".to_owned(),
            cwd: None,
        }),
        envd_token: Some(Secret::new("a token".to_owned())),
        deadline: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_800_000_000_123_456_789),
        lifecycle: Lifecycle::default(),
        origin: OrderOrigin::Paused(BuildId::random(), PauseMode::Full),
        volumes: Vec::new(),
    }
}

pub(crate) fn build_order() -> BuildOrder {
    BuildOrder {
        build: BuildId::random(),
        team: TeamId::random(),
        template: TemplateId::random(),
        resources: order().resources,
        recipe: Recipe {
            from: Base::Image {
                reference: "debian:12".to_owned(),
                credentials: None,
            },
            steps: Vec::new(),
            start: None,
            ready: Some("true".to_owned()),
            force: false,
        },
        base: None,
    }
}

#[async_trait]
impl Node for FakeNode {
    fn id(&self) -> NodeId {
        self.id
    }

    async fn start(&self, order: Order) -> Result<(), NodeError> {
        self.enter(format!(
            "start {order:?} {:?}",
            order.envd_token.as_ref().map(Secret::expose)
        ))
        .await
    }

    async fn pause(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        self.enter(format!("pause {sandbox} {execution} {into} {mode:?}"))
            .await?;
        Ok(Self::outcome())
    }

    async fn checkpoint(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        memory: bool,
    ) -> Result<Memory, NodeError> {
        self.enter(format!("checkpoint {sandbox} {execution} {into} {memory}"))
            .await?;
        Ok(Memory::Volatile)
    }

    async fn build(&self, order: BuildOrder, talk: BuildTalk) -> Result<Built, BuildError> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let mut counted = Counted(self, false);
        let plan = self.inner().build.take().unwrap_or_default();
        self.inner().calls.push(format!("build {order:?}"));
        for number in 0..plan.lines {
            let line = BuildLine {
                at: SystemTime::UNIX_EPOCH,
                level: Level::Warn,
                step: Some(BuildStep::Step(number)),
                message: format!("line {number}"),
            };
            talk.lines.send(line).await.unwrap();
        }
        for key in plan.keys {
            let found = talk.shelf.cached(key).await;
            self.inner().calls.push(format!("cached {key} {found:?}"));
            let step = CachedStep {
                build: order.build,
                context: Context::default(),
            };
            talk.shelf.cache(key, step).await;
        }
        if let Some(files) = plan.upload {
            let told = match talk.shelf.upload(&files).await {
                Ok(mut bytes) => {
                    let mut length = 0;
                    let mut end = "whole".to_owned();
                    while let Some(piece) = bytes.next().await {
                        match piece {
                            Ok(piece) => length += piece.len(),
                            Err(error) => end = error.to_string(),
                        }
                    }
                    format!("{length} {end}")
                }
                Err(error) => format!("{error:?}"),
            };
            self.inner().calls.push(format!("upload {told}"));
        }
        if let Some(files) = plan.discard {
            talk.shelf.discard_upload(&files).await;
        }
        if plan.hangs {
            talk.cancel.cancelled().await;
            self.inner().calls.push("cancelled".to_owned());
            counted.1 = true;
            return Err(BuildError::Cancelled);
        }
        counted.1 = true;
        match plan.fails {
            Some(fails) => Err(fails()),
            None => Ok(Built {
                context: Context::default(),
                start: Some(StartCommand {
                    command: "serve".to_owned(),
                    user: "user".to_owned(),
                    cwd: Some("/srv".to_owned()),
                }),
                memory: Memory::Durable,
            }),
        }
    }

    async fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
        self.enter("builds".to_owned()).await?;
        Ok(vec![
            BuildId(uuid::Uuid::from_u128(1)),
            BuildId(uuid::Uuid::from_u128(2)),
        ])
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        self.enter(format!("remove_builds {}", builds.len())).await
    }

    async fn kin_of(&self, build: BuildId) -> Result<Vec<BuildId>, NodeError> {
        self.enter(format!("kin_of {build}")).await?;
        Ok(vec![build])
    }

    async fn stow_build(&self, build: BuildId, kin: &[String]) -> Result<String, NodeError> {
        self.enter(format!("stow_build {build} {kin:?}")).await?;
        Ok("sha256:00".to_owned())
    }

    async fn fetch_build(&self, build: BuildId, digest: &str) -> Result<(), NodeError> {
        self.enter(format!("fetch_build {build} {digest}")).await
    }

    async fn sweep_stowed(&self, living: &[String]) -> Result<u64, NodeError> {
        self.enter(format!("sweep_stowed {}", living.len())).await?;
        Ok(living.len() as u64)
    }

    async fn changes(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<Changes, NodeError> {
        self.enter(format!("changes {sandbox} {execution}")).await?;
        Ok(self.inner().changes.clone().unwrap_or(Changes {
            entries: vec![Change {
                path: "/a".to_owned(),
                kind: ChangeKind::Deleted,
                file: FileKind::Symlink,
            }],
            is_cut: false,
        }))
    }

    async fn export(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<ByteStream, NodeError> {
        self.enter(format!("export {sandbox} {execution}")).await?;
        let pieces = self.inner().export.take().unwrap_or_default();
        Ok(futures_util::stream::iter(pieces).boxed())
    }

    async fn is_healthy(&self, sandbox: SandboxId, execution: ExecutionId) -> Result<bool, NodeError> {
        self.enter(format!("is_healthy {sandbox} {execution}")).await?;
        Ok(true)
    }

    async fn kill(&self, sandbox: SandboxId, why: KillReason) -> Result<(), NodeError> {
        self.enter(format!("kill {sandbox} {why:?}")).await
    }

    async fn set_accepts(&self, accepts: bool) -> Result<(), NodeError> {
        self.enter(format!("set_accepts {accepts}")).await
    }

    async fn drain(&self, how: Draining) -> Result<(), NodeError> {
        self.enter(format!("drain {how:?}")).await
    }

    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError> {
        self.enter(format!("set_deadline {sandbox} {execution} {deadline:?}"))
            .await
    }

    async fn set_network(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        self.enter(format!("set_network {sandbox} {execution} {policy:?}"))
            .await
    }

    async fn metrics(
        &self,
        sandbox: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, NodeError> {
        self.enter(format!("metrics {sandbox} {from:?} {to:?}")).await?;
        Ok(vec![MetricSample {
            timestamp: SystemTime::UNIX_EPOCH + Duration::from_nanos(77),
            cpu_count: 2,
            cpu_used_pct: 12.5,
            mem_used: 1,
            mem_total: 2,
            mem_cache: 3,
            disk_used: 4,
            disk_total: u64::MAX,
        }])
    }

    async fn logs(&self, sandbox: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, NodeError> {
        self.enter(format!("logs {sandbox} {query:?}")).await?;
        Ok(vec![LogLine {
            timestamp: SystemTime::UNIX_EPOCH + Duration::from_nanos(88),
            level: Level::Error,
            logger: "envd".to_owned(),
            message: "said".to_owned(),
            fields: BTreeMap::from([("pid".to_owned(), "1".to_owned())]),
        }])
    }

    async fn report(&self) -> Result<Report, NodeError> {
        self.enter("report".to_owned()).await?;
        let report = self.inner().report.clone();
        Ok(report.unwrap_or_else(|| self.report_now(0)))
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }
}
