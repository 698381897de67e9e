use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::{Quota, Sandbox, SandboxId, State, TeamId};
use ports::{ManagerError, NodeError};

use crate::failure;
use crate::nodes::{WORD_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::quota::life_max;

/// Times are stored and compared at microseconds (contract 3.1).
pub(crate) fn whole_micros(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::new(since.as_secs(), since.subsec_micros() * 1000)
}

/// The end of a run that is to last `timeout` from now. A run never lasts longer than the team's longest life.
pub(crate) fn end_of_run(
    now: SystemTime,
    started_at: SystemTime,
    timeout: Duration,
    quota: &Quota,
) -> Result<SystemTime, ManagerError> {
    let last = started_at + life_max(quota);
    if timeout > life_max(quota) || last <= now {
        return Err(ManagerError::Invalid("Max instance length exceeded".to_owned()));
    }
    Ok(whole_micros(last.min(now + timeout)))
}

/// Which ends a new end may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// Any.
    To,
    /// Earlier ones.
    AtLeastTo,
}

/// Refuses what does not run: a client's wish may meet a kill, or a pause that its node began in this moment.
pub(crate) fn check_runs(sandbox: &Sandbox) -> Result<(), ManagerError> {
    let (id, phase) = (sandbox.id, sandbox.phase);
    match phase.state() {
        Some(State::Running) => Ok(()),
        Some(State::Paused) if phase.is_in_transition() => Err(ManagerError::Busy {
            id,
            state: phase.name(),
        }),
        Some(State::Paused) | None => Err(ManagerError::NotFound(id)),
    }
}

impl Orchestrator {
    /// Moves the end of a running one's time; [`ManagerError::NotFound`] for a paused one.
    #[tracing::instrument(name = "sandbox.timeout", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn move_end(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        how: Move,
    ) -> Result<(), ManagerError> {
        let (_locked, sandbox) = self.settled_now(team, id).await?;
        check_runs(&sandbox)?;
        let quota = self.team(team).await?.quota;
        let end_at = end_of_run(self.now(), sandbox.started_at, timeout, &quota)?;
        self.set_end(sandbox, end_at, how, None).await?;
        Ok(())
    }

    /// Stores a running sandbox's end, and the timeout that a client connected with; then tells its node.
    pub(crate) async fn set_end(
        &self,
        sandbox: Sandbox,
        end_at: SystemTime,
        how: Move,
        timeout_seconds: Option<u32>,
    ) -> Result<Sandbox, ManagerError> {
        let id = sandbox.id;
        let edit = |sandbox: &mut Sandbox| {
            check_runs(sandbox)?;
            if how == Move::To || sandbox.end_at < end_at {
                sandbox.end_at = end_at;
            }
            sandbox.timeout_seconds = timeout_seconds.unwrap_or(sandbox.timeout_seconds);
            Ok(())
        };
        let sandbox = self.change(sandbox, edit).await?;
        let Some(at) = sandbox.phase.seat() else {
            return Ok(sandbox);
        };
        // Also where nothing changed: the node may have missed it the last time.
        let node = self.node(at.node)?;
        let word = node.set_deadline(id, at.execution, sandbox.end_at);
        self.tell_node(id, "setting the deadline", word).await?;
        Ok(sandbox)
    }

    /// Tells its node a setting of a running sandbox. One that does not run there any more is settled, and refused as
    /// what it then is.
    pub(crate) async fn tell_node(
        &self,
        id: SandboxId,
        step: &'static str,
        word: impl Future<Output = Result<(), NodeError>>,
    ) -> Result<(), ManagerError> {
        match within(WORD_MAX, step, word).await {
            Ok(()) => Ok(()),
            Err(NodeError::Unknown | NodeError::Busy(_)) => {
                self.settle_one(id).await?;
                let sandbox = self.stored(id).await?.ok_or(ManagerError::NotFound(id))?;
                check_runs(&sandbox)?;
                let state = "being changed";
                Err(ManagerError::Busy { id, state })
            }
            Err(error) => {
                // The reconciler tells it again.
                self.nudge.notify_one();
                Err(failure::node(id, step)(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(now: u64, started: u64, timeout: u64, expected: Option<u64>) {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let quota = Quota {
            life_hours: 1,
            ..Quota::default()
        };
        let end = end_of_run(at(now), at(started), Duration::from_secs(timeout), &quota);
        assert_eq!(end.ok(), expected.map(at));
    }

    #[test]
    fn an_end_is_counted_from_now_and_capped_by_the_longest_life() {
        check(1000, 1000, 60, Some(1060));
        check(1000, 900, 0, Some(1000));
        check(1000, 1000, 3600, Some(4600));
        check(1000, 900, 3600, Some(4500));
        check(1000, 1000, 3601, None);
        check(4600, 1000, 1, None);
        check(4599, 1000, 60, Some(4600));
    }
}
