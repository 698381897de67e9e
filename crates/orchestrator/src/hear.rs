//! What nodes tell of their own accord. An event about an execution that is not the present one is old news.
use std::sync::Arc;
use std::time::Duration;

use model::{BuildId, Event, ExecutionId, KillReason, PauseMode, Phase, Sandbox, SandboxId, Seat};
use ports::node::PauseOutcome;
use ports::{ManagerError, NodeEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::change::apply;
use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::pause::pausing;
use crate::timeout::whole_micros;

/// What a node adds to the time of a sandbox that it could not pause (see [`NodeEvent::PauseFailed`]).
const RESPITE: Duration = Duration::from_secs(60);

impl Orchestrator {
    /// Hears one node until it is gone or `shutdown`.
    pub(crate) async fn listen(
        self: Arc<Self>,
        mut events: Receiver<NodeEvent>,
        shutdown: CancellationToken,
    ) {
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Ok(event) => self.hear(event).await,
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(
                        missed,
                        "events of a node were missed; its report tells what they said"
                    );
                    self.nudge.notify_one();
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Stores what a node tells.
    pub(crate) async fn hear(&self, event: NodeEvent) {
        let outcome = match event {
            NodeEvent::Ending(id, execution, why) => self.ending(id, execution, why).await,
            NodeEvent::Ended(id, execution, why) => self.ended(id, execution, why).await,
            NodeEvent::Pausing(id, execution, into, mode) => self.pausing(id, execution, into, mode).await,
            NodeEvent::Paused(id, execution, into, outcome) => {
                self.paused(id, execution, into, outcome).await
            }
            NodeEvent::PauseFailed(id, execution, _) => self.not_paused(id, execution).await,
        };
        match outcome {
            Ok(()) | Err(ManagerError::NotFound(_)) => {}
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "an event of a node was not stored; its report tells what it said"
                );
                self.nudge.notify_one();
            }
        }
    }

    /// The sandbox with its seat, if `execution` is its present one.
    async fn present(
        &self,
        id: SandboxId,
        execution: ExecutionId,
    ) -> Result<Option<(Sandbox, Seat)>, ManagerError> {
        let sandbox = self.stored(id).await?;
        let seat = |sandbox: &Sandbox| sandbox.phase.seat().filter(|seat| seat.execution == execution);
        Ok(sandbox.and_then(|sandbox| seat(&sandbox).map(|at| (sandbox, at))))
    }

    /// Changes the sandbox, where `execution` is its present one when it is written, and takes its route back.
    async fn leave(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        mut edit: impl FnMut(&mut Sandbox) -> Result<(), ManagerError> + Send,
    ) -> Result<(), ManagerError> {
        let Some((sandbox, at)) = self.present(id, execution).await? else {
            return Ok(());
        };
        let edit = |sandbox: &mut Sandbox| {
            if sandbox.phase.seat() == Some(at) {
                edit(sandbox)?;
            }
            Ok(())
        };
        self.change(sandbox, edit).await?;
        self.withdraw(id, at).await;
        Ok(())
    }

    /// Its streams are cut before its node ends them, so that none of them seems to end well.
    async fn ending(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        why: KillReason,
    ) -> Result<(), ManagerError> {
        if let Some((_, at)) = self.present(id, execution).await? {
            self.withdraw(id, at).await;
        }
        // Whoever published it again in between did not know: it is taken back once more.
        self.leave(id, execution, |sandbox| apply(sandbox, Event::Kill(why)))
            .await
    }

    async fn ended(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        why: KillReason,
    ) -> Result<(), ManagerError> {
        self.leave(id, execution, |sandbox| {
            apply(sandbox, Event::Kill(why))?;
            apply(sandbox, Event::Reaped)
        })
        .await
    }

    async fn pausing(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<(), ManagerError> {
        self.leave(id, execution, |sandbox| {
            sandbox.phase = pausing(sandbox.phase, into, mode).map_err(failure::refused(id))?;
            Ok(())
        })
        .await
    }

    async fn paused(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        outcome: PauseOutcome,
    ) -> Result<(), ManagerError> {
        let Some((sandbox, at)) = self.present(id, execution).await? else {
            return Ok(());
        };
        self.seal(sandbox, into, outcome).await?;
        self.withdraw(id, at).await;
        Ok(())
    }

    async fn not_paused(&self, id: SandboxId, execution: ExecutionId) -> Result<(), ManagerError> {
        let Some((sandbox, at)) = self.present(id, execution).await? else {
            return Ok(());
        };
        if !matches!(sandbox.phase, Phase::Pausing { .. }) {
            return Ok(());
        }
        let end_at = whole_micros(self.now() + RESPITE);
        let edit = |sandbox: &mut Sandbox| {
            sandbox.end_at = sandbox.end_at.max(end_at);
            Ok(())
        };
        let sandbox = self.change(sandbox, edit).await?;
        self.run_on(sandbox, at).await
    }
}
