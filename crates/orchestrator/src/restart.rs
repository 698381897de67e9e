use model::{Event, ExecutionId, Phase, SandboxId, Seat, TeamId};
use ports::ManagerError;
use ports::manager::Granted;
use ports::node::OrderOrigin;
use tokio::time::Instant;

use crate::bring_up::Flow;
use crate::change::apply;
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    /// Reboots a running sandbox from its disk. Where it does not come up again, its disk is kept as a pause.
    #[tracing::instrument(name = "sandbox.restart", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn restart_sandbox(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError> {
        let began = Instant::now();
        let (_locked, sandbox) = self.settled_now(team, id).await?;
        let Phase::Running { at: old } = sandbox.phase else {
            return Err(ManagerError::Busy {
                id,
                state: sandbox.phase.name(),
            });
        };
        let _start = self.begin_start()?;
        let node = self.node(old.node)?;
        let at = Seat {
            node: old.node,
            execution: ExecutionId::random(),
        };
        let origin = OrderOrigin::Reboot(old.execution);
        let order = self.order(&sandbox, at, origin, sandbox.end_at).await?;
        let starting = self
            .change(sandbox, |sandbox| apply(sandbox, Event::Restart(at)))
            .await?;
        failpoint::reach("orchestrator/restarting-stored");
        self.withdraw(id, old).await;
        let running = self
            .bring_up(Flow::Restart, starting, order, node.as_ref(), |_| {})
            .await;
        let running = running.map_err(|error| error.public(id))?;
        metrics::histogram!("atoll_sandbox_restart_seconds").record(began.elapsed());
        Ok(self.tokens().await?.grant(running))
    }
}
