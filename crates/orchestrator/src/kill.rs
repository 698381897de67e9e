use std::collections::HashSet;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use model::{Event, KillReason, Kind, Phase, Sandbox, SandboxId, TeamId};
use ports::{ManagerError, Node};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::change::apply;
use crate::failure;
use crate::nodes::{KILL_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::quota::share;

/// Sandboxes that [`Orchestrator::down`] ends at once: enough to keep a small machine busy, few enough for it to answer.
const DOWN_AT_ONCE: usize = 16;
/// How often [`Orchestrator::down`] tries to end what it could not.
const DOWN_ROUNDS_MAX: u32 = 3;
/// How long it waits for starts that were under way, which are ended as soon as they are stored.
const DOWN_MAX: Duration = Duration::from_secs(60);
/// How long it waits before it looks again.
const DOWN_PAUSE: Duration = Duration::from_millis(50);

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
        let is_unreachable = self.withdraw(id, at).await;
        let Ok(node) = self.node(at.node) else {
            // Its node is away. The kill is recorded, and carried out when the node is there again.
            let share = share(&killing, at.execution);
            self.parts.shares.release(share).await;
            return if is_unreachable {
                Ok(())
            } else {
                // The node may be there again at any moment, and what it runs would still be served.
                let cause = "its node is away, and its route could not be withdrawn";
                Err(failure::fault("ending the sandbox", Kind::Unavailable, cause))
            };
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

    /// Ends all sandboxes of all teams, and lets nothing start any more; returns how many there were. What could not be
    /// ended is tried again, and does not stop the rest.
    ///
    /// # Errors
    /// Where the store or a node did not do its part; what was recorded is finished by the next reconciler.
    pub async fn down(&self) -> Result<usize, ManagerError> {
        self.starts.close();
        self.building.close();
        let deadline = Instant::now() + DOWN_MAX;
        let mut ended = HashSet::new();
        let mut failures = 0;
        loop {
            // Counted before the store is read: what is not under way any more is stored by then, or nothing.
            let starting = Semaphore::MAX_PERMITS - self.starts.available_permits();
            let outcome = self.end_all(&mut ended).await;
            match outcome {
                Ok(0) if starting == 0 => return Ok(ended.len()),
                Ok(0) if Instant::now() >= deadline => {
                    let cause = "a start that was under way did not come to its end";
                    return Err(failure::fault("ending the sandboxes", Kind::Timeout, cause));
                }
                // Something more may have been stored meanwhile.
                Ok(1..) => continue,
                Ok(0) => {}
                Err(error) => {
                    failures += 1;
                    if failures >= DOWN_ROUNDS_MAX {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(DOWN_PAUSE).await;
        }
    }

    /// Ends everything that is stored and not yet in `ended`; how many that were. The first failure is returned after all
    /// were tried.
    async fn end_all(&self, ended: &mut HashSet<SandboxId>) -> Result<usize, ManagerError> {
        let live = self.parts.sandboxes.live().await;
        let live = live.map_err(failure::store("reading the sandboxes"))?;
        let left: Vec<_> = live
            .into_iter()
            .filter(|sandbox| !ended.contains(&sandbox.id))
            .collect();
        let count = left.len();
        let ends = left.into_iter().map(|sandbox| {
            let id = sandbox.id;
            let end = async move { (id, self.end(sandbox, KillReason::Requested).await) };
            end.boxed()
        });
        let mut first = Ok(count);
        let mut outcomes = stream::iter(ends).buffer_unordered(DOWN_AT_ONCE);
        while let Some((id, outcome)) = outcomes.next().await {
            match outcome {
                Ok(()) | Err(ManagerError::NotFound(_)) => {
                    ended.insert(id);
                }
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }
}
