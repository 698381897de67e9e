use model::{
    BuildId, Event, ExecutionId, Memory, PauseMode, Phase, Refused, Sandbox, SandboxId, Seat, TeamId,
};
use ports::node::PauseOutcome;
use ports::{ManagerError, Node, NodeError};
use tokio::time::Instant;

use crate::change::apply;
use crate::failure;
use crate::nodes::{PAUSE_MAX, WORD_MAX, within};
use crate::orchestrator::Orchestrator;

/// The phase of a sandbox that its node is pausing as `into`, whatever was meant before.
pub(crate) fn pausing(phase: Phase, into: BuildId, mode: PauseMode) -> Result<Phase, Refused> {
    match phase {
        Phase::Pausing { into: meant, .. } if meant == into => Ok(phase),
        Phase::Pausing { .. } | Phase::Snapshotting { .. } => pausing(phase.on(Event::Failed)?, into, mode),
        Phase::Starting { .. } => pausing(phase.on(Event::Ready)?, into, mode),
        phase => phase.on(Event::Pause(into, mode)),
    }
}

/// The phase of a sandbox that its node has paused as `into`, with what it really kept.
pub(crate) fn paused(phase: Phase, into: BuildId, kept: PauseMode) -> Result<Phase, Refused> {
    match phase {
        Phase::Paused { snapshot, .. } if snapshot == into => Ok(phase),
        // Its node paused it again and nobody was told of what came before: what it holds is what there is.
        Phase::Paused { home, .. } => {
            let at = Seat {
                node: home,
                execution: ExecutionId(into.0),
            };
            paused(phase.on(Event::Resume(at, kept))?, into, kept)
        }
        Phase::Pausing { mode, .. } if mode != kept => paused(phase.on(Event::Failed)?, into, kept),
        phase => pausing(phase, into, kept)?.on(Event::Sealed),
    }
}

/// How much memory a pause has kept for certain, where its node tells no more than what can be resumed.
pub(crate) fn kept_at_least(mode: PauseMode) -> Memory {
    match mode {
        PauseMode::Full => Memory::Volatile,
        PauseMode::Filesystem => Memory::None,
    }
}

impl Orchestrator {
    /// Pauses a running sandbox; when this returns it can be resumed.
    #[tracing::instrument(name = "sandbox.pause", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn pause_sandbox(
        &self,
        team: TeamId,
        id: SandboxId,
        mode: PauseMode,
        require_healthy: bool,
    ) -> Result<(), ManagerError> {
        let began = Instant::now();
        let (_locked, sandbox) = self.settled_now(team, id).await?;
        if matches!(sandbox.phase, Phase::Paused { .. }) && sandbox.is_moving() {
            // It would be resumed on another node in a moment, and is not, as its owner wants it so.
            self.stay_paused(sandbox).await?;
            return Ok(());
        }
        self.pause_settled(sandbox, mode, require_healthy, false).await?;
        metrics::histogram!("atoll_sandbox_pause_seconds").record(began.elapsed());
        Ok(())
    }

    /// Pauses one that is to go on on another node. The caller holds its lock.
    pub(crate) async fn pause_to_move(&self, sandbox: Sandbox, mode: PauseMode) -> Result<(), ManagerError> {
        self.pause_settled(sandbox, mode, false, true).await
    }

    async fn pause_settled(
        &self,
        sandbox: Sandbox,
        mode: PauseMode,
        require_healthy: bool,
        is_move: bool,
    ) -> Result<(), ManagerError> {
        let id = sandbox.id;
        let at = match sandbox.phase {
            Phase::Running { at } => at,
            Phase::Paused { .. } => return Err(ManagerError::AlreadyPaused(id)),
            other => {
                return Err(ManagerError::Busy {
                    id,
                    state: other.name(),
                });
            }
        };
        let node = self.node(at.node)?;
        // A guest that is stuck cannot flush its disk, so a pause that keeps only that would lose data.
        if require_healthy || mode == PauseMode::Filesystem {
            self.check_health(node.as_ref(), id, at).await?;
        }
        let into = BuildId::random();
        let meant = self
            .change(sandbox, |sandbox| {
                apply(sandbox, Event::Pause(into, mode))?;
                sandbox.moving = is_move.then_some(into);
                Ok(())
            })
            .await?;
        failpoint::reach("orchestrator/pausing-stored");
        self.withdraw(id, at).await;
        let pause = node.pause(id, at.execution, into, mode);
        match within(PAUSE_MAX, "the pause", pause).await {
            Ok(outcome) => {
                failpoint::reach("orchestrator/node-paused");
                self.seal(meant, into, outcome).await?;
                failpoint::reach("orchestrator/paused-stored");
            }
            Err(error) => {
                self.undo_pause(meant, at, &error).await;
                return Err(self.not_paused_because(id, error).await);
            }
        }
        Ok(())
    }

    async fn check_health(&self, node: &dyn Node, id: SandboxId, at: Seat) -> Result<(), ManagerError> {
        match within(WORD_MAX, "the health probe", node.is_healthy(id, at.execution)).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(NodeError::Timeout(_)) => Err(ManagerError::GuestUnhealthy(id)),
            Err(NodeError::Unknown) => {
                self.settle_one(id).await?;
                Err(self.not_paused_because(id, NodeError::Unknown).await)
            }
            Err(error) => Err(failure::node(id, "probing the guest")(error)),
        }
    }

    /// What a client is told of a pause that failed. One that ended in that moment is not there any more.
    async fn not_paused_because(&self, id: SandboxId, error: NodeError) -> ManagerError {
        let stored = self.stored(id).await;
        let ended = stored.is_ok_and(|now| now.is_none_or(|now| now.phase.state().is_none()));
        if ended {
            ManagerError::NotFound(id)
        } else {
            failure::node(id, "pausing the sandbox")(error)
        }
    }

    /// Stores that a pause is complete.
    pub(crate) async fn seal(
        &self,
        sandbox: Sandbox,
        into: BuildId,
        outcome: PauseOutcome,
    ) -> Result<(), ManagerError> {
        let at = sandbox.phase.seat();
        let edit = |sandbox: &mut Sandbox| {
            // Another incarnation, or what became of it, is no business of this pause.
            let is_other = sandbox.phase.seat().is_some_and(|now| Some(now) != at);
            let is_other_pause = matches!(sandbox.phase, Phase::Paused { snapshot, .. } if snapshot != into);
            if is_other || is_other_pause {
                return Ok(());
            }
            sandbox.phase =
                paused(sandbox.phase, into, outcome.mode).map_err(failure::refused(sandbox.id))?;
            sandbox.envd_unresponsive_at_pause = outcome.envd_unresponsive;
            sandbox.kept = outcome.memory;
            Ok(())
        };
        self.change(sandbox, edit).await?;
        Ok(())
    }

    /// A pause that failed leaves a running sandbox. Where the node's answer does not say what is true now, the node is
    /// asked.
    async fn undo_pause(&self, meant: Sandbox, at: Seat, error: &NodeError) {
        let id = meant.id;
        let outcome = if error.is_unclear() {
            self.settle_one(id).await
        } else {
            self.run_on(meant, at).await
        };
        if let Err(error) = outcome {
            tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a failed pause was not undone; the reconciler does it");
            self.nudge.notify_one();
        }
    }

    /// A pause failed, and the sandbox runs on: it is reachable again.
    pub(crate) async fn run_on(&self, pausing: Sandbox, at: Seat) -> Result<(), ManagerError> {
        let id = pausing.id;
        self.publish(&pausing, at).await?;
        let outcome = self
            .change(pausing, |sandbox| apply(sandbox, Event::Failed))
            .await;
        if outcome.is_err() {
            self.unpublish(id, at).await;
        }
        outcome.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use model::{KillReason, NodeId, Origin};

    use super::*;

    #[test]
    fn what_a_node_has_paused_is_paused_whatever_was_meant() {
        let at = Seat {
            node: NodeId::random(),
            execution: ExecutionId::random(),
        };
        let (into, other) = (BuildId::random(), BuildId::random());
        let (full, disk) = (PauseMode::Full, PauseMode::Filesystem);
        let kept = Phase::Paused {
            snapshot: into,
            mode: disk,
            home: at.node,
        };
        for phase in [
            Phase::Running { at },
            Phase::Snapshotting { at, into: other },
            Phase::Pausing { at, into, mode: disk },
            Phase::Pausing { at, into, mode: full },
            Phase::Pausing {
                at,
                into: other,
                mode: full,
            },
            Phase::Starting {
                at,
                from: Origin::Template(other),
            },
            kept,
            Phase::Paused {
                snapshot: other,
                mode: full,
                home: at.node,
            },
        ] {
            assert_eq!(paused(phase, into, disk), Ok(kept), "{phase:?}");
        }
        let why = KillReason::Requested;
        for phase in [Phase::Killing { at, why }, Phase::Gone { why }] {
            assert!(paused(phase, into, disk).is_err(), "{phase:?}");
        }
    }
}
