use std::time::Duration;

use model::{PauseMode, Phase, SandboxId, TeamId};
use ports::ManagerError;
use ports::manager::Connected;
use tokio::time::Instant;

use crate::orchestrator::Orchestrator;
use crate::quota::check_life;
use crate::resume::Wish;
use crate::timeout::{Move, end_of_run};

/// How long a connect waits for a pause or a resume under way: less than the minute after which the SDKs give up.
const PATIENCE: Duration = Duration::from_secs(50);

impl Orchestrator {
    /// Extends what runs, resumes what is paused, and waits for what is in between.
    #[tracing::instrument(name = "sandbox.connect", skip(self))]
    pub(crate) async fn connect_sandbox(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
    ) -> Result<Connected, ManagerError> {
        let settled = self.settled_by(team, id, Instant::now() + PATIENCE).await;
        let (_locked, sandbox) = match settled {
            Err(ManagerError::NotFound(_)) => return Err(self.not_found_or_killing(team, id).await?),
            settled => settled?,
        };
        if !sandbox.phase.is_routable() {
            let wish = Wish {
                timeout,
                mode,
                remember: true,
                lifecycle: None,
            };
            let resumed = self.bring_back(sandbox, wish).await?;
            return Ok(Connected::Resumed(self.tokens().await?.grant(resumed)));
        }
        let quota = self.team(team).await?.quota;
        check_life(&quota, timeout)?;
        let end_at = end_of_run(self.now(), sandbox.started_at, timeout, &quota)?;
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        let sandbox = self
            .set_end(sandbox, end_at, Move::AtLeastTo, Some(seconds))
            .await?;
        Ok(Connected::Running(self.tokens().await?.grant(sandbox)))
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
