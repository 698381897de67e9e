use std::time::Duration;

use model::{Event, ExecutionId, PauseMode, Phase, Sandbox, SandboxId, Seat, TeamId};
use ports::ManagerError;
use ports::manager::Granted;
use ports::node::OrderOrigin;
use tokio::time::Instant;

use crate::bring_up::Flow;
use crate::change::apply;
use crate::orchestrator::Orchestrator;
use crate::quota::check_life;
use crate::timeout::whole_micros;

/// How a paused sandbox is to be brought back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// How long it then lives.
    pub(crate) timeout: Duration,
    /// What is used of what the pause kept.
    pub(crate) mode: PauseMode,
    /// Whether the next wake takes this timeout again.
    pub(crate) remember: bool,
    /// Whether it is paused at its end from then on; as before, where it is not given.
    pub(crate) auto_pause: Option<bool>,
}

impl Orchestrator {
    /// Resumes a paused sandbox, with all that its pause kept.
    #[tracing::instrument(name = "sandbox.resume", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn resume_sandbox(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
        auto_pause: Option<bool>,
    ) -> Result<Granted, ManagerError> {
        let (_locked, sandbox) = self.settled_now(team, id).await?;
        if sandbox.phase.is_routable() {
            return Err(ManagerError::AlreadyRunning(id));
        }
        let wish = Wish {
            timeout,
            mode,
            remember: true,
            auto_pause,
        };
        let sandbox = self.bring_back(sandbox, wish).await?;
        Ok(self.tokens().await?.grant(sandbox))
    }

    /// Brings a paused sandbox back; the caller holds its lock. Where that fails, it is paused as before.
    pub(crate) async fn bring_back(&self, paused: Sandbox, wish: Wish) -> Result<Sandbox, ManagerError> {
        let began = Instant::now();
        let Phase::Paused {
            snapshot,
            mode: kept,
            home,
        } = paused.phase
        else {
            return Err(ManagerError::Busy {
                id: paused.id,
                state: paused.phase.name(),
            });
        };
        let id = paused.id;
        let _start = self.begin_start()?;
        let with_memory = kept == PauseMode::Full && wish.mode == PauseMode::Full;
        if with_memory && paused.envd_unresponsive_at_pause {
            return Err(ManagerError::GuestUnresponsive(id));
        }
        let (team, node) = (self.team(paused.team).await?, self.node(home)?);
        check_life(&team.quota, wish.timeout)?;
        self.take_start(&team).await?;
        let at = Seat {
            node: home,
            execution: ExecutionId::random(),
        };
        let claim = self.ledger.claim(at.execution, &team, paused.resources)?;
        let started_at = whole_micros(self.now());
        let end_at = started_at + wish.timeout;
        let ready = move |sandbox: &mut Sandbox| {
            sandbox.started_at = started_at;
            sandbox.end_at = end_at;
            if wish.remember {
                sandbox.timeout_seconds = u32::try_from(wish.timeout.as_secs()).unwrap_or(u32::MAX);
            }
            if let Some(auto_pause) = wish.auto_pause {
                sandbox.lifecycle = sandbox.lifecycle.with_auto_pause(auto_pause);
            }
            sandbox.envd_unresponsive_at_pause = false;
        };
        // The node is told of the sandbox as it will be.
        let mut running = paused.clone();
        ready(&mut running);
        let mode = if with_memory {
            PauseMode::Full
        } else {
            PauseMode::Filesystem
        };
        let order = self
            .order(&running, at, OrderOrigin::Paused(snapshot, mode), end_at)
            .await?;
        let starting = self
            .change(paused, |sandbox| apply(sandbox, Event::Resume(at, wish.mode)))
            .await?;
        claim.keep();
        failpoint::reach("orchestrator/resuming-stored");
        let running = self
            .bring_up(Flow::Resume, starting, order, node.as_ref(), ready)
            .await
            .map_err(|error| error.public(id))?;
        metrics::histogram!("atoll_sandbox_resume_seconds").record(began.elapsed());
        Ok(running)
    }
}
