use std::time::Duration;

use model::{PauseMode, Phase, SandboxId, TeamId};
use ports::ManagerError;
use ports::manager::Connected;
use tokio::time::Instant;

use crate::orchestrator::Orchestrator;
use crate::quota::check_life;
use crate::resume::{Wish, WithoutHome};
use crate::timeout::{Move, end_of_run};

/// How long a connect waits for a pause or a resume under way: less than the minute after which the SDKs give up.
const PATIENCE: Duration = Duration::from_secs(50);
/// And for a move to another node: less, since it can be resumed where it is.
const MOVE_PATIENCE: Duration = Duration::from_secs(20);
/// A write of another process moves no channel here: look again this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Orchestrator {
    /// Extends what runs, resumes what is paused, and waits for what is in between.
    #[tracing::instrument(name = "sandbox.connect", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn connect_sandbox(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
    ) -> Result<Connected, ManagerError> {
        let deadline = Instant::now() + PATIENCE;
        let mut writes = self.writes.subscribe();
        loop {
            writes.borrow_and_update();
            match self.connect_by(deadline, team, id, timeout, mode).await {
                // Its node has begun to pause it, and the news is on its way.
                Err(ManagerError::Busy { .. }) if Instant::now() < deadline => {}
                Err(ManagerError::NotFound(_)) => return Err(self.not_found_or_killing(team, id).await?),
                outcome => return outcome,
            }
            let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
            let _ = tokio::time::timeout_at(look_again, writes.changed()).await;
        }
    }

    async fn connect_by(
        &self,
        deadline: Instant,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
    ) -> Result<Connected, ManagerError> {
        let (_locked, sandbox) = self.settled_by(team, id, deadline).await?;
        if sandbox.is_moving() && Instant::now() + PATIENCE < deadline + MOVE_PATIENCE {
            return Err(ManagerError::Busy {
                id,
                state: "being moved",
            });
        }
        if !sandbox.phase.is_routable() {
            let wish = Wish {
                timeout,
                mode,
                remember: true,
                auto_pause: None,
                // Whoever connects wants to work on in it, and has no other way to it: most clients do not know how to ask for
                // less. What they lose is what they would after a restart of the machine, and the sandbox's log tells it.
                without_home: WithoutHome::Boot,
                is_move: false,
            };
            let resumed = self.bring_back(sandbox, wish).await?;
            return Ok(Connected::Resumed(self.tokens().await?.grant(resumed)));
        }
        let quota = self.team(team).await?.quota;
        check_life(&quota, timeout)?;
        let end_at = end_of_run(self.now(), sandbox.started_at, timeout, &quota)?;
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        let extended = self.set_end(sandbox, end_at, Move::AtLeastTo, Some(seconds));
        match extended.await {
            Ok(extended) => Ok(Connected::Running(self.tokens().await?.grant(extended))),
            // It does not run any more, and is still there: it was paused in this moment.
            Err(ManagerError::NotFound(_)) => {
                let sandbox = self.visible(team, id).await?;
                Err(ManagerError::Busy {
                    id,
                    state: sandbox.phase.name(),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// One that is being killed is there for nobody, but a connect is told that it was (contract 3.5).
    async fn not_found_or_killing(&self, team: TeamId, id: SandboxId) -> Result<ManagerError, ManagerError> {
        let killing = self
            .stored(id)
            .await?
            .is_some_and(|sandbox| sandbox.team == team && matches!(sandbox.phase, Phase::Killing { .. }));
        Ok(if killing {
            ManagerError::Busy { id, state: "killing" }
        } else {
            ManagerError::NotFound(id)
        })
    }
}
