use futures_util::{FutureExt, StreamExt, stream};
use model::{Event, KillReason, Phase, Sandbox, SandboxId, TeamId};
use ports::{ManagerError, Node};
use tokio::time::Instant;

use crate::change::apply;
use crate::failure;
use crate::nodes::{KILL_MAX, within};
use crate::orchestrator::Orchestrator;

/// Sandboxes that [`Orchestrator::down`] ends at once: enough to keep a small machine busy, few enough for it to answer.
const DOWN_AT_ONCE: usize = 16;

impl Orchestrator {
    /// Ends a sandbox that the team sees. Waits for no other operation: whatever is under way finds it ended.
    #[tracing::instrument(name = "sandbox.kill", skip_all, fields(%team, sandbox = %id, execution, node))]
    pub(crate) async fn kill_sandbox(&self, team: TeamId, id: SandboxId) -> Result<(), ManagerError> {
        let sandbox = self.visible(team, id).await?;
        if let Some(at) = sandbox.phase.seat() {
            tracing::Span::current()
                .record("execution", at.execution.as_str())
                .record("node", tracing::field::display(at.node));
        }
        self.end(sandbox, KillReason::Requested).await
    }

    /// Ends a sandbox.
    pub(crate) async fn end(&self, sandbox: Sandbox, why: KillReason) -> Result<(), ManagerError> {
        let began = Instant::now();
        let killing = self
            .change(sandbox, |sandbox| apply(sandbox, Event::Kill(why)))
            .await?;
        failpoint::reach("orchestrator/killing-stored");
        self.reap(killing).await?;
        metrics::histogram!("atoll_sandbox_kill_seconds").record(began.elapsed());
        Ok(())
    }

    /// Carries out a kill that is stored: unreachable first, then gone from its node, then gone.
    pub(crate) async fn reap(&self, killing: Sandbox) -> Result<(), ManagerError> {
        let (id, Phase::Killing { at, why }) = (killing.id, killing.phase) else {
            return Ok(());
        };
        self.withdraw(id, at).await;
        let Ok(node) = self.node(at.node) else {
            // Its node is away. The kill is recorded, and carried out when the node is there again.
            self.ledger.release(id);
            return Ok(());
        };
        within(KILL_MAX, "the kill", node.kill(id, why))
            .await
            .map_err(failure::node(id, "killing the sandbox"))?;
        failpoint::reach("orchestrator/node-killed");
        match self
            .change(killing, |sandbox| apply(sandbox, Event::Reaped))
            .await
        {
            // Somebody else reaped it, so long ago that it is forgotten.
            Ok(_) | Err(ManagerError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends what a node holds of a sandbox, whatever the store says.
    pub(crate) async fn kill_on(&self, node: &dyn Node, id: SandboxId) -> Result<(), ManagerError> {
        let kill = node.kill(id, KillReason::NodeLost);
        within(KILL_MAX, "the kill", kill)
            .await
            .map_err(failure::node(id, "killing the sandbox"))
    }

    /// Ends all sandboxes of all teams; returns how many there were. The first failure is returned after all were tried.
    ///
    /// # Errors
    /// Where the store or a node did not do its part; what was recorded is finished by the next reconciler.
    pub async fn down(&self) -> Result<usize, ManagerError> {
        let live = self
            .parts
            .sandboxes
            .live()
            .await
            .map_err(failure::store("reading the sandboxes"))?;
        let count = live.len();
        let ends = live
            .into_iter()
            .map(|sandbox| self.end(sandbox, KillReason::Requested).boxed());
        let mut first = Ok(());
        let mut outcomes = stream::iter(ends).buffer_unordered(DOWN_AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            first = first.and(outcome);
        }
        first.map(|()| count)
    }
}
