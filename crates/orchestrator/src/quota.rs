//! What teams hold of what they may hold: claimed before a sandbox is stored, given back when it is over, and kept the same as
//! what is stored by the reconciler.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use model::{ExecutionId, Kind, Phase, Quota, Resources, Sandbox, Seat, Team, TeamId};
use ports::limits::Rate;
use ports::{ManagerError, Share, Shares};

use crate::failure;
use crate::orchestrator::Orchestrator;

/// A claim is followed by its sandbox in the store within milliseconds. One that is older and has none is a leak.
const UNSTORED_MAX: Duration = Duration::from_secs(120);

/// What an incarnation of a sandbox holds.
pub(crate) fn share(sandbox: &Sandbox, execution: ExecutionId) -> Share {
    Share {
        team: sandbox.team,
        execution,
        resources: sandbox.resources,
    }
}

/// The seat for which a sandbox counts against its team's quota. One that is being killed may be on a node that is away
/// for long: it keeps its share until its end is noted, and is never given one anew.
pub(crate) fn counted(sandbox: &Sandbox) -> Option<Seat> {
    let ends = matches!(sandbox.phase, Phase::Killing { .. });
    sandbox.phase.seat().filter(|_| !ends)
}

/// A share that is taken. Dropped, it is given back, until the store knows its sandbox.
pub(crate) struct Claim {
    shares: Option<Arc<dyn Shares>>,
    share: Share,
}

impl Claim {
    /// The store knows the sandbox: its end gives the share back.
    pub(crate) fn keep(mut self) {
        self.shares = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(shares) = self.shares.take() {
            shares.release_soon(self.share);
        }
    }
}

/// The longest life of one run.
pub(crate) fn life_max(quota: &Quota) -> Duration {
    Duration::from_secs(u64::from(quota.life_hours) * 3600)
}

/// Refuses a life that is longer than the team may have.
pub(crate) fn check_life(quota: &Quota, timeout: Duration) -> Result<(), ManagerError> {
    if timeout <= life_max(quota) {
        return Ok(());
    }
    Err(ManagerError::Invalid(format!(
        "Timeout cannot be greater than {} hours",
        quota.life_hours
    )))
}

impl Orchestrator {
    /// Takes an execution's share of its team's quota, or says which limit is reached.
    pub(crate) async fn claim(
        &self,
        execution: ExecutionId,
        team: &Team,
        resources: Resources,
    ) -> Result<Claim, ManagerError> {
        let share = Share {
            team: team.id,
            execution,
            resources,
        };
        // Whoever is given up while he waits for the answer may hold a share: it is given back, too.
        let claim = Claim {
            shares: Some(Arc::clone(&self.parts.shares)),
            share,
        };
        match self.parts.shares.claim(share, &team.quota).await {
            Ok(()) => Ok(claim),
            Err(limit) => {
                claim.keep();
                Err(ManagerError::Exhausted {
                    message: format!("The team has reached its limit of {limit}: kill or pause one first"),
                    retry_after: None,
                })
            }
        }
    }

    /// Notes what is stored as holding a share and is not noted. What was read may be over by now: that is looked up again,
    /// after it is noted, so that whoever ends it later gives it back.
    pub(crate) async fn hold_stored(&self, sandboxes: &[Sandbox]) -> Result<(), ManagerError> {
        let held = |sandbox: &Sandbox| counted(sandbox).map(|at| share(sandbox, at.execution));
        let shares: Vec<_> = sandboxes.iter().filter_map(held).collect();
        let new = self.parts.shares.hold(&shares).await;
        if new.is_empty() {
            return Ok(());
        }
        let holds = |sandbox: &Sandbox| counted(sandbox).map(|at| (at.execution, sandbox.id));
        let holders: HashMap<_, _> = sandboxes.iter().filter_map(holds).collect();
        for share in new {
            let Some(id) = holders.get(&share.execution) else {
                continue;
            };
            let now = self.stored(*id).await?;
            let still = now.as_ref().and_then(counted);
            if still.is_none_or(|at| at.execution != share.execution) {
                self.parts.shares.release(share).await;
            }
        }
        Ok(())
    }

    /// Drops what is held for executions that are not in `live` and were claimed well before.
    pub(crate) async fn prune_shares(&self, live: &HashSet<ExecutionId>) {
        self.parts.shares.prune(live, UNSTORED_MAX).await;
    }

    /// The team, which its key has named.
    pub(crate) async fn team(&self, id: TeamId) -> Result<Team, ManagerError> {
        let step = "reading the team";
        let team = self.parts.teams.team(id).await.map_err(failure::store(step))?;
        team.ok_or_else(|| failure::fault(step, Kind::Internal, "the team is not in the store"))
    }

    /// Counts a start against the team's rate.
    pub(crate) async fn take_start(&self, team: TeamId, per_second: u32) -> Result<(), ManagerError> {
        let rate = Rate {
            per_second,
            burst: per_second.saturating_mul(2),
        };
        self.parts
            .limits
            .take(team, "sandbox.start", rate)
            .await
            .map_err(|wait| ManagerError::Exhausted {
                message: format!("The team has reached its limit of {per_second} sandbox starts per second"),
                retry_after: Some(wait),
            })
    }
}
