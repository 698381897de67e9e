//! A process's line to a machine: words are late, lost on the way there or on the way back, or the line is cut.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{BuildId, ExecutionId, KillReason, Kind, Memory, NetworkPolicy, NodeId, PauseMode, SandboxId};
use ports::builds::{BuildError, BuildOrder, BuildTalk, Built};
use ports::node::{Order, PauseOutcome, Report};
use ports::{LogLine, LogQuery, MetricSample, Node, NodeError, NodeEvent};
use tokio::sync::broadcast;

use super::machine::Machine;
use super::wire::Wire;

/// A line learns after so long that there will be no answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Line {
    pub(crate) machine: Arc<Machine>,
    pub(crate) wire: Arc<Wire>,
    /// Nothing gets through.
    pub(crate) cut: Arc<AtomicBool>,
}

impl Line {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Has the machine do something. It goes on with that whatever becomes of the line. A word that never left fails clearly; of
    /// one that may have arrived nobody knows.
    async fn ask<T: Send + 'static, F>(&self, work: impl FnOnce(Arc<Machine>) -> F) -> Result<T, NodeError>
    where
        F: Future<Output = Result<T, NodeError>> + Send + 'static,
    {
        self.wire.takes(10).await;
        if self.is_cut() || !self.machine.is_up() {
            return Err(NodeError::Failed {
                step: "connecting to the node",
                kind: Kind::Unavailable,
                source: "connection refused".into(),
            });
        }
        if self.wire.per_mille(10) {
            tokio::time::sleep(PATIENCE).await;
            return Err(NodeError::Timeout("the answer"));
        }
        let done = tokio::spawn(work(Arc::clone(&self.machine))).await;
        let answer = done.expect("a machine does not panic");
        self.wire.takes(10).await;
        if self.is_cut() || self.wire.per_mille(15) {
            tokio::time::sleep(PATIENCE).await;
            return Err(NodeError::Timeout("the answer"));
        }
        answer
    }
}

fn not_here<T>() -> Result<T, NodeError> {
    Err(NodeError::Failed {
        step: "this",
        kind: Kind::Unsupported,
        source: "a model does not do it".into(),
    })
}

#[async_trait]
impl Node for Line {
    fn id(&self) -> NodeId {
        self.machine.id
    }

    async fn start(&self, order: Order) -> Result<(), NodeError> {
        self.ask(|machine| async move { machine.start(order).await })
            .await
    }

    async fn pause(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        self.ask(move |machine| async move { machine.pause(sandbox, execution, into, mode).await })
            .await
    }

    async fn checkpoint(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        _: bool,
    ) -> Result<Memory, NodeError> {
        self.ask(move |machine| async move { machine.checkpoint(sandbox, execution, into).await })
            .await
    }

    async fn build(&self, _: BuildOrder, _: BuildTalk) -> Result<Built, BuildError> {
        Err(BuildError::Cancelled)
    }

    async fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
        self.ask(|machine| async move { machine.builds() }).await
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        let builds = builds.to_vec();
        self.ask(|machine| async move { machine.remove_builds(&builds) })
            .await
    }

    async fn kill(&self, sandbox: SandboxId, _: KillReason) -> Result<(), NodeError> {
        self.ask(move |machine| async move { machine.kill(sandbox).await })
            .await
    }

    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError> {
        self.ask(move |machine| async move {
            machine.change(sandbox, execution, |order| order.deadline = deadline)
        })
        .await
    }

    async fn set_network(
        &self,
        sandbox: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        self.ask(move |machine| async move { machine.set_network(sandbox, execution, policy) })
            .await
    }

    async fn metrics(
        &self,
        _: SandboxId,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, NodeError> {
        not_here()
    }

    async fn logs(&self, _: SandboxId, _: LogQuery) -> Result<Vec<LogLine>, NodeError> {
        not_here()
    }

    async fn report(&self) -> Result<Report, NodeError> {
        self.ask(|machine| async move { machine.report() }).await
    }

    /// Each event late by its own time, and some of them never.
    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        let (there, here) = broadcast::channel(256);
        let (mut from, wire, cut) = (
            self.machine.events(),
            Arc::clone(&self.wire),
            Arc::clone(&self.cut),
        );
        tokio::spawn(async move {
            while let Ok(event) = from.recv().await {
                wire.takes(20).await;
                if cut.load(Ordering::SeqCst) || wire.per_mille(100) {
                    continue;
                }
                if there.send(event).is_err() {
                    return;
                }
            }
        });
        here
    }
}
