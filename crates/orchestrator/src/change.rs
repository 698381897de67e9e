//! Reading sandboxes, and the one way of writing them: by compare-and-set, along the phase table.
use std::time::Duration;

use model::{Event, Sandbox, SandboxId, TeamId};
use ports::{ManagerError, StoreError};
use tokio::time::Instant;

use crate::failure;
use crate::locks::Locked;
use crate::orchestrator::Orchestrator;
use crate::quota::share;

/// Writers of one sandbox are few: an operation, a kill, an event of its node and the reconciler. Losing this often means
/// that something writes in a loop.
const ATTEMPTS_MAX: usize = 16;
/// How long an operation that does not wait for transitions waits for another short one, such as a change of rules.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Writes of other processes move no channel here: look again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Moves a sandbox along the phase table.
pub(crate) fn apply(sandbox: &mut Sandbox, event: Event) -> Result<(), ManagerError> {
    sandbox.phase = sandbox.phase.on(event).map_err(failure::refused(sandbox.id))?;
    Ok(())
}

impl Orchestrator {
    /// The sandbox as it is stored, whoever owns it and whatever its phase.
    pub(crate) async fn stored(&self, id: SandboxId) -> Result<Option<Sandbox>, ManagerError> {
        self.parts
            .sandboxes
            .get(id)
            .await
            .map_err(failure::store("reading the sandbox"))
    }

    /// A sandbox that this team sees.
    pub(crate) async fn visible(&self, team: TeamId, id: SandboxId) -> Result<Sandbox, ManagerError> {
        let sandbox = self.stored(id).await?;
        let visible = |sandbox: &Sandbox| sandbox.team == team && sandbox.phase.state().is_some();
        sandbox.filter(visible).ok_or(ManagerError::NotFound(id))
    }

    /// A sandbox that this team sees, locked and in no transition. One that is in transition is
    /// [`ManagerError::Busy`].
    pub(crate) async fn settled_now(
        &self,
        team: TeamId,
        id: SandboxId,
    ) -> Result<(Locked, Sandbox), ManagerError> {
        self.check_settled(team, id).await?;
        let busy = ManagerError::Busy {
            id,
            state: "being changed",
        };
        let locked = tokio::time::timeout(TURN_MAX, self.locks.lock(id))
            .await
            .map_err(|_| busy)?;
        let sandbox = self.check_settled(team, id).await?;
        Ok((locked, sandbox))
    }

    async fn check_settled(&self, team: TeamId, id: SandboxId) -> Result<Sandbox, ManagerError> {
        let sandbox = self.visible(team, id).await?;
        if sandbox.phase.is_in_transition() {
            return Err(ManagerError::Busy {
                id,
                state: sandbox.phase.name(),
            });
        }
        Ok(sandbox)
    }

    /// Like [`Orchestrator::settled_now`], and waits for a transition under way until `deadline`.
    pub(crate) async fn settled_by(
        &self,
        team: TeamId,
        id: SandboxId,
        deadline: Instant,
    ) -> Result<(Locked, Sandbox), ManagerError> {
        let mut writes = self.writes.subscribe();
        loop {
            let locked = tokio::time::timeout_at(deadline, self.locks.lock(id)).await;
            writes.borrow_and_update();
            let sandbox = self.visible(team, id).await?;
            match locked {
                Ok(locked) if !sandbox.phase.is_in_transition() => return Ok((locked, sandbox)),
                Ok(_) if Instant::now() < deadline => {}
                _ => {
                    return Err(ManagerError::Busy {
                        id,
                        state: sandbox.phase.name(),
                    });
                }
            }
            let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
            let _ = tokio::time::timeout_at(look_again, writes.changed()).await;
        }
    }

    /// Writes `after` in place of `before`: `None` if somebody else wrote first.
    pub(crate) async fn replace(
        &self,
        before: &Sandbox,
        mut after: Sandbox,
    ) -> Result<Option<Sandbox>, ManagerError> {
        if after == *before {
            return Ok(Some(after));
        }
        after.version = match self.parts.sandboxes.update(&after).await {
            Ok(version) => version,
            Err(StoreError::Conflict) => return Ok(None),
            Err(StoreError::Missing) => return Err(ManagerError::NotFound(before.id)),
            Err(error) => return Err(failure::store("storing the sandbox")(error)),
        };
        match (before.phase.seat(), after.phase.seat()) {
            (Some(old), None) => {
                self.placement.freed(old.node, before.resources);
                self.parts.shares.release(share(before, old.execution)).await;
            }
            (Some(old), Some(new)) if old != new => {
                let held = share(before, old.execution);
                self.parts.shares.hand_on(held, new.execution).await;
            }
            _ => {}
        }
        self.writes.send_modify(|count| *count += 1);
        self.tell(before, &after).await;
        Ok(Some(after))
    }

    /// Edits a sandbox, beginning with what the caller read; reads and edits again where somebody wrote in between.
    /// `edit` is pure: it sees each version once. Where it changes nothing, nothing is written.
    pub(crate) async fn change(
        &self,
        mut sandbox: Sandbox,
        mut edit: impl FnMut(&mut Sandbox) -> Result<(), ManagerError> + Send,
    ) -> Result<Sandbox, ManagerError> {
        let id = sandbox.id;
        for _ in 0..ATTEMPTS_MAX {
            let mut after = sandbox.clone();
            edit(&mut after)?;
            if let Some(stored) = self.replace(&sandbox, after).await? {
                return Ok(stored);
            }
            sandbox = self.stored(id).await?.ok_or(ManagerError::NotFound(id))?;
        }
        Err(ManagerError::Busy {
            id,
            state: "being changed",
        })
    }
}
