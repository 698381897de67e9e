//! A copy of a running sandbox, which goes on: the half that snapshots and forks share.
use model::{BuildId, Event, Memory, NodeId, Phase, Sandbox, SandboxId, Seat, TeamId};
use ports::{ManagerError, NodeError};

use crate::change::apply;
use crate::failure;
use crate::locks::Locked;
use crate::nodes::{CHECKPOINT_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::uses::Use;

/// A copy that was taken. What it was taken of is still stored as being copied, so that its name is.
pub(crate) struct Copied {
    /// What it was taken of, locked.
    pub(crate) source: Sandbox,
    _locked: Locked,
    /// Keeps it from being removed before anything names it.
    using: Use,
    /// The copy.
    pub(crate) build: BuildId,
    /// How much of the source's memory is in it.
    pub(crate) memory: Memory,
}

impl Copied {
    /// Which node has its memory, if there is any: the source's.
    pub(crate) fn home(&self) -> Option<NodeId> {
        let at = self.source.phase.seat().map(|seat| seat.node);
        at.filter(|_| self.memory != Memory::None)
    }
}

impl Orchestrator {
    /// Copies a running sandbox. `paused` says what is told of a paused one. On failure it runs on, or is what it became
    /// meanwhile.
    pub(crate) async fn copy(
        &self,
        team: TeamId,
        id: SandboxId,
        memory: bool,
        paused: impl FnOnce(SandboxId) -> ManagerError,
    ) -> Result<Copied, ManagerError> {
        let (locked, sandbox) = self.settled_now(team, id).await?;
        let at = match sandbox.phase {
            Phase::Running { at } => at,
            Phase::Paused { .. } => return Err(paused(id)),
            other => {
                return Err(ManagerError::Busy {
                    id,
                    state: other.name(),
                });
            }
        };
        let node = self.node(at.node)?;
        let into = BuildId::random();
        let using = self.uses.begin();
        assert!(using.take(into), "nobody has condemned what has just been named");
        let source = self
            .change(sandbox, |sandbox| apply(sandbox, Event::Snapshot(into)))
            .await?;
        failpoint::reach("orchestrator/snapshotting-stored");
        let checkpoint = node.checkpoint(id, at.execution, into, memory);
        let checkpoint = within(CHECKPOINT_MAX, "the snapshot", checkpoint);
        match self.touching(id, checkpoint).await {
            Ok(memory) => {
                failpoint::reach("orchestrator/node-checkpointed");
                Ok(Copied {
                    source,
                    _locked: locked,
                    using,
                    build: into,
                    memory,
                })
            }
            Err(error) => {
                self.undo_copy(source, at, into, &error).await;
                Err(self.not_copied_because(id, error).await)
            }
        }
    }

    /// Stores that the copy is taken, and lets others at the source. The copy is kept while what is returned lives. Where that
    /// cannot be stored, the reconciler does it: the copy is none the worse.
    pub(crate) async fn go_on(&self, copied: Copied) -> Use {
        let (id, into) = (copied.source.id, copied.build);
        let stored = self
            .leave_snapshotting(copied.source, into, Event::Snapshotted)
            .await;
        self.tell_if_not_stored(id, stored);
        copied.using
    }

    /// A copy that failed leaves a running sandbox. Where the node's answer does not say what is true now, it is asked.
    async fn undo_copy(&self, source: Sandbox, at: Seat, into: BuildId, error: &NodeError) {
        let id = source.id;
        let outcome = if error.is_unclear() {
            self.settle_one(id).await
        } else {
            debug_assert_eq!(source.phase, Phase::Snapshotting { at, into });
            self.leave_snapshotting(source, into, Event::Failed).await
        };
        self.tell_if_not_stored(id, outcome);
    }

    /// Ends the snapshot `into`, if it is under way.
    async fn leave_snapshotting(
        &self,
        source: Sandbox,
        into: BuildId,
        event: Event,
    ) -> Result<(), ManagerError> {
        let edit = |sandbox: &mut Sandbox| match sandbox.phase {
            Phase::Snapshotting { into: present, .. } if present == into => apply(sandbox, event),
            // It was ended, or its node paused it, in the meantime.
            _ => Ok(()),
        };
        self.change(source, edit).await?;
        Ok(())
    }

    fn tell_if_not_stored(&self, id: SandboxId, outcome: Result<(), ManagerError>) {
        match outcome {
            Ok(()) | Err(ManagerError::NotFound(_)) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(sandbox = %id, error, "the end of a snapshot was not stored; the reconciler does it");
                self.nudge.notify_one();
            }
        }
    }

    /// What a client is told of a copy that failed. One that ended in that moment is not there any more.
    async fn not_copied_because(&self, id: SandboxId, error: NodeError) -> ManagerError {
        let stored = self.stored(id).await;
        let ended = stored.is_ok_and(|now| now.is_none_or(|now| now.phase.state().is_none()));
        if ended {
            ManagerError::NotFound(id)
        } else {
            failure::node(id, "copying the sandbox")(error)
        }
    }
}
