//! Making store and node agree.
use model::{Event, ExecutionId, Origin, Phase, Sandbox, Seat};
use ports::ManagerError;
use ports::node::{Held, OrderOrigin};

use super::verdict::Verdict;
use crate::bring_up::Flow;
use crate::change::apply;
use crate::failure;
use crate::nodes::{WORD_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::pause::{kept_at_least, paused, pausing};
use crate::quota::share;
use crate::timeout::whole_micros;

impl Orchestrator {
    /// Makes store and node agree; `false` where somebody wrote in between.
    pub(super) async fn carry_out(
        &self,
        verdict: Verdict,
        sandbox: Sandbox,
        held: Option<&Held>,
    ) -> Result<bool, ManagerError> {
        let id = sandbox.id;
        match verdict {
            Verdict::Wait => Ok(false),
            Verdict::Agreed => match held {
                Some(held) => self.agree(sandbox, held).await,
                None => Ok(true),
            },
            Verdict::Runs(event) => self.settle_running(sandbox, event, held).await,
            Verdict::NotStarted => {
                let failed = self
                    .edit(&sandbox, |sandbox| apply(sandbox, Event::Failed))
                    .await?;
                self.reap_if(failed).await
            }
            Verdict::Lost(why) => {
                let killing = self
                    .edit(&sandbox, |sandbox| apply(sandbox, Event::Kill(why)))
                    .await?;
                self.reap_if(killing).await
            }
            Verdict::Reap => self.reap(sandbox).await.map(|()| true),
            Verdict::Pausing(into, mode) => {
                let edit = |sandbox: &mut Sandbox| {
                    sandbox.phase = pausing(sandbox.phase, into, mode).map_err(failure::refused(id))?;
                    sandbox.build = held.map_or(sandbox.build, |held| held.order.build);
                    Ok(())
                };
                self.unroute_if(&sandbox, self.edit(&sandbox, edit).await?).await
            }
            Verdict::Paused(into, mode) => {
                let edit = |sandbox: &mut Sandbox| {
                    sandbox.phase = paused(sandbox.phase, into, mode).map_err(failure::refused(id))?;
                    sandbox.kept = kept_at_least(mode);
                    sandbox.build = held.map_or(sandbox.build, |held| held.order.build);
                    if let Some(outcome) = held.and_then(|held| held.pause) {
                        sandbox.kept = outcome.memory;
                        sandbox.envd_unresponsive_at_pause = outcome.envd_unresponsive;
                    }
                    Ok(())
                };
                self.unroute_if(&sandbox, self.edit(&sandbox, edit).await?).await
            }
            Verdict::Reboot(old) => self.reboot(sandbox, old).await,
            Verdict::Adopt(execution) => self.adopt(sandbox, execution, held).await,
        }
    }

    /// One compare-and-set; `None` where somebody wrote in between.
    async fn edit(
        &self,
        sandbox: &Sandbox,
        edit: impl FnOnce(&mut Sandbox) -> Result<(), ManagerError>,
    ) -> Result<Option<Sandbox>, ManagerError> {
        let mut after = sandbox.clone();
        edit(&mut after)?;
        self.replace(sandbox, after).await
    }

    async fn reap_if(&self, sandbox: Option<Sandbox>) -> Result<bool, ManagerError> {
        let Some(sandbox) = sandbox else { return Ok(false) };
        self.reap(sandbox).await?;
        Ok(true)
    }

    async fn unroute_if(&self, before: &Sandbox, after: Option<Sandbox>) -> Result<bool, ManagerError> {
        if let (Some(_), Some(at)) = (&after, before.phase.seat()) {
            self.withdraw(before.id, at).await;
        }
        Ok(after.is_some())
    }

    /// A running sandbox: its route is published, and its node has the settings that are stored.
    async fn agree(&self, sandbox: Sandbox, held: &Held) -> Result<bool, ManagerError> {
        let Phase::Running { at } = sandbox.phase else {
            return Ok(true);
        };
        let (id, deadline) = (sandbox.id, held.order.deadline);
        let node = self.node(at.node)?;
        // A node gives more time to what it could not pause at its end.
        let extended = sandbox.end_at <= self.now() && deadline > sandbox.end_at;
        let edit = |sandbox: &mut Sandbox| {
            sandbox.end_at = if extended { deadline } else { sandbox.end_at };
            Ok(())
        };
        let Some(sandbox) = self.edit(&sandbox, edit).await? else {
            return Ok(false);
        };
        if sandbox.end_at != deadline {
            let told = node.set_deadline(id, at.execution, sandbox.end_at);
            let step = "setting the deadline";
            within(WORD_MAX, step, told)
                .await
                .map_err(failure::node(id, step))?;
        }
        if sandbox.network != held.order.network {
            let told = node.set_network(id, at.execution, sandbox.network.clone());
            let step = "setting the network";
            within(WORD_MAX, step, told)
                .await
                .map_err(failure::node(id, step))?;
        }
        self.publish_again(&sandbox).await?;
        Ok(true)
    }

    /// A sandbox that runs, though it is stored as being on its way to somewhere.
    async fn settle_running(
        &self,
        sandbox: Sandbox,
        event: Event,
        held: Option<&Held>,
    ) -> Result<bool, ManagerError> {
        let (Some(at), Some(held)) = (sandbox.phase.seat(), held) else {
            return Ok(false);
        };
        let now = whole_micros(self.now());
        let resumed = matches!(sandbox.phase, Phase::Starting { at, from: Origin::Snapshot { build, .. } }
            if build.0 != at.execution.0);
        let edit = |sandbox: &mut Sandbox| {
            apply(sandbox, event)?;
            if resumed {
                // The client's wish is known to the node alone: it was to be stored with the answer.
                sandbox.started_at = now;
                sandbox.end_at = held.order.deadline;
                sandbox.lifecycle = held.order.lifecycle;
                sandbox.envd_unresponsive_at_pause = false;
                // Another than before, where it was resumed on another node.
                sandbox.build = held.order.build;
            }
            Ok(())
        };
        self.publish(&sandbox, at).await?;
        let stored = self.edit(&sandbox, edit).await;
        if !matches!(stored, Ok(Some(_))) {
            self.unpublish(sandbox.id, at).await;
        }
        Ok(stored?.is_some())
    }

    /// A sandbox that came up after its resume was given up.
    async fn adopt(
        &self,
        sandbox: Sandbox,
        execution: ExecutionId,
        held: Option<&Held>,
    ) -> Result<bool, ManagerError> {
        let Phase::Paused { mode, home, .. } = sandbox.phase else {
            return Ok(false);
        };
        let at = Seat {
            node: home,
            execution,
        };
        let share = share(&sandbox, execution);
        let is_new = !self.parts.shares.hold(&[share]).await.is_empty();
        let resuming = self
            .edit(&sandbox, |sandbox| apply(sandbox, Event::Resume(at, mode)))
            .await;
        match resuming {
            Ok(Some(resuming)) => self.settle_running(resuming, Event::Ready, held).await,
            not_resuming => {
                // A client's own resume may have claimed it meanwhile.
                if is_new {
                    self.parts.shares.release(share).await;
                }
                not_resuming.map(|_| false)
            }
        }
    }

    /// A restart that was stored, and of which its node has not heard.
    async fn reboot(&self, sandbox: Sandbox, old: ExecutionId) -> Result<bool, ManagerError> {
        let Phase::Starting { at, .. } = sandbox.phase else {
            return Ok(false);
        };
        let id = sandbox.id;
        let node = self.node(at.node)?;
        let order = self
            .order(&sandbox, at, OrderOrigin::Reboot(old), sandbox.end_at)
            .await?;
        self.withdraw(
            id,
            Seat {
                node: at.node,
                execution: old,
            },
        )
        .await;
        let running = self
            .bring_up(Flow::Restart, sandbox, order, node.as_ref(), |_| {})
            .await;
        running.map(|_| true).map_err(|error| error.public(id))
    }
}
