//! What teams hold of what they may hold. Counted in this process from the store's sandboxes, so that a claim is atomic
//! and costs no query.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{ExecutionId, Kind, MiB, Phase, Quota, Resources, Sandbox, Seat, Team, TeamId};
use ports::ManagerError;
use ports::limits::Rate;
use tokio::time::Instant;

use crate::failure;
use crate::orchestrator::Orchestrator;

/// A claim is followed by its sandbox in the store within milliseconds. One that is older and has none is a leak.
const UNSTORED_MAX: Duration = Duration::from_secs(120);

/// What a team's sandboxes hold in sum; paused ones hold nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    sandboxes: u32,
    cpu: u32,
    memory_mib: u64,
}

impl Held {
    fn with(self, more: Resources) -> Self {
        Self {
            sandboxes: self.sandboxes + 1,
            cpu: self.cpu.saturating_add(more.cpu),
            memory_mib: self.memory_mib + u64::from(more.memory.0),
        }
    }

    fn without(self, less: Resources) -> Self {
        Self {
            sandboxes: self.sandboxes.saturating_sub(1),
            cpu: self.cpu.saturating_sub(less.cpu),
            memory_mib: self.memory_mib.saturating_sub(u64::from(less.memory.0)),
        }
    }

    /// Which limit of `quota` this is beyond, in words.
    fn beyond(self, quota: &Quota) -> Option<String> {
        let MiB(memory_mib) = quota.memory;
        if self.sandboxes > quota.sandboxes {
            Some(format!("{} concurrent sandboxes", quota.sandboxes))
        } else if self.cpu > quota.cpu {
            Some(format!("{} vCPUs in concurrent sandboxes", quota.cpu))
        } else if self.memory_mib > u64::from(memory_mib) {
            Some(format!("{memory_mib} MiB of memory in concurrent sandboxes"))
        } else {
            None
        }
    }
}

/// Shares by execution: the end of one incarnation gives back nothing of the next, however late it is noticed.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    executions: HashMap<ExecutionId, (TeamId, Resources, Instant)>,
    teams: HashMap<TeamId, Held>,
}

impl Entries {
    fn remove(&mut self, execution: ExecutionId) {
        let Some((team, resources, _)) = self.executions.remove(&execution) else {
            return;
        };
        let Some(held) = self.teams.get_mut(&team) else {
            return;
        };
        *held = held.without(resources);
        if *held == Held::default() {
            self.teams.remove(&team);
        }
    }

    /// Whether it was not there.
    fn insert(&mut self, execution: ExecutionId, team: TeamId, resources: Resources) -> bool {
        let entry = (team, resources, Instant::now());
        let is_new = self.executions.insert(execution, entry).is_none();
        if is_new {
            let held = self.teams.entry(team).or_default();
            *held = held.with(resources);
        }
        is_new
    }
}

impl Ledger {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("nothing panics while it holds the entries")
    }

    /// Takes an execution's share of its team's quota, or says which limit is reached.
    pub(crate) fn claim(
        self: &Arc<Self>,
        execution: ExecutionId,
        team: &Team,
        resources: Resources,
    ) -> Result<Claim, ManagerError> {
        let mut entries = self.entries();
        let held = entries.teams.get(&team.id).copied().unwrap_or_default();
        if let Some(limit) = held.with(resources).beyond(&team.quota) {
            let message = format!("The team has reached its limit of {limit}: kill or pause one first");
            return Err(ManagerError::Exhausted {
                message,
                retry_after: None,
            });
        }
        entries.insert(execution, team.id, resources);
        Ok(Claim {
            ledger: Some(Arc::clone(self)),
            execution,
        })
    }

    /// Notes an execution that is there, whatever the quota says; whether it was not noted before.
    pub(crate) fn hold(&self, execution: ExecutionId, team: TeamId, resources: Resources) -> bool {
        self.entries().insert(execution, team, resources)
    }

    /// Gives back what an execution holds, if it holds anything.
    pub(crate) fn release(&self, execution: ExecutionId) {
        self.entries().remove(execution);
    }

    /// A share goes on to the next execution of the same sandbox.
    pub(crate) fn hand_on(&self, from: ExecutionId, to: ExecutionId) {
        let mut entries = self.entries();
        if let Some(&(team, resources, _)) = entries.executions.get(&from) {
            entries.remove(from);
            entries.insert(to, team, resources);
        }
    }

    /// Drops what is held for executions that are not in `live` and were claimed well before.
    pub(crate) fn prune(&self, live: &HashSet<ExecutionId>) {
        let mut entries = self.entries();
        let stale = |(execution, entry): (&ExecutionId, &(_, _, Instant))| {
            (!live.contains(execution) && entry.2.elapsed() > UNSTORED_MAX).then_some(*execution)
        };
        let leaked: Vec<_> = entries.executions.iter().filter_map(stale).collect();
        for execution in leaked {
            entries.remove(execution);
        }
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
    ledger: Option<Arc<Ledger>>,
    execution: ExecutionId,
}

impl Claim {
    /// The store knows the sandbox: its end gives the share back.
    pub(crate) fn keep(mut self) {
        self.ledger = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(ledger) = self.ledger.take() {
            ledger.release(self.execution);
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
    /// Notes what is stored as holding a share and is not in the ledger. What was read may be over by now: that is looked
    /// up again, after it is noted, so that whoever ends it later gives it back.
    pub(crate) async fn hold_stored(&self, sandboxes: &[Sandbox]) -> Result<(), ManagerError> {
        for sandbox in sandboxes {
            let Some(at) = counted(sandbox) else { continue };
            if !self.ledger.hold(at.execution, sandbox.team, sandbox.resources) {
                continue;
            }
            let now = self.stored(sandbox.id).await?;
            if now.as_ref().and_then(counted) != Some(at) {
                self.ledger.release(at.execution);
            }
        }
        Ok(())
    }

    /// The team, which its key has named.
    pub(crate) async fn team(&self, id: TeamId) -> Result<Team, ManagerError> {
        let step = "reading the team";
        let team = self.parts.teams.team(id).await.map_err(failure::store(step))?;
        team.ok_or_else(|| failure::fault(step, Kind::Internal, "the team is not in the store"))
    }

    /// Counts a start against the team's rate.
    pub(crate) async fn take_start(&self, team: &Team) -> Result<(), ManagerError> {
        let per_second = team.quota.creates_per_second;
        let rate = Rate {
            per_second,
            burst: per_second.saturating_mul(2),
        };
        self.parts
            .limits
            .take(team.id, "sandbox.start", rate)
            .await
            .map_err(|wait| ManagerError::Exhausted {
                message: format!("The team has reached its limit of {per_second} sandbox starts per second"),
                retry_after: Some(wait),
            })
    }
}

#[cfg(test)]
mod tests {
    use ports::store::contract;

    use super::*;

    fn team(sandboxes: u32, cpu: u32, memory: u32) -> Team {
        let mut team = contract::team("acme");
        team.quota = Quota {
            sandboxes,
            cpu,
            memory: MiB(memory),
            ..Quota::default()
        };
        team
    }

    /// How many sandboxes of 2 vCPUs and 1 GiB fit.
    fn check(team: &Team, fit: usize, reason: &str) {
        let ledger = Arc::new(Ledger::default());
        let mut claims = Vec::new();
        let error = loop {
            match ledger.claim(ExecutionId::random(), team, Resources::default()) {
                Ok(claim) => claims.push(claim),
                Err(error) => break error,
            }
        };
        assert_eq!(claims.len(), fit);
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(error.retry_after(), None);
        claims.pop();
        claims.push(
            ledger
                .claim(ExecutionId::random(), team, Resources::default())
                .unwrap(),
        );
        drop(claims);
        assert!(ledger.entries().teams.is_empty());
    }

    #[test]
    fn every_limit_holds_by_itself() {
        check(&team(3, 100, 100_000), 3, "3 concurrent sandboxes");
        check(&team(100, 5, 100_000), 2, "5 vCPUs");
        check(&team(100, 100, 4096), 4, "4096 MiB");
    }

    #[test]
    fn a_release_without_a_claim_gives_nothing() {
        let ledger = Arc::new(Ledger::default());
        let team = team(1, 10, 10_000);
        let id = ExecutionId::random();
        ledger.claim(id, &team, Resources::default()).unwrap().keep();
        ledger.release(ExecutionId::random());
        assert!(
            ledger
                .claim(ExecutionId::random(), &team, Resources::default())
                .is_err()
        );
        ledger.release(id);
        ledger.release(id);
        assert!(
            ledger
                .claim(ExecutionId::random(), &team, Resources::default())
                .is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_old_claims_of_what_is_not_stored_are_pruned() {
        let ledger = Arc::new(Ledger::default());
        let team = team(10, 100, 100_000);
        let (live, leaked, fresh) = (
            ExecutionId::random(),
            ExecutionId::random(),
            ExecutionId::random(),
        );
        ledger.hold(live, team.id, Resources::default());
        ledger.hold(leaked, team.id, Resources::default());
        tokio::time::advance(UNSTORED_MAX + Duration::from_secs(1)).await;
        ledger.hold(fresh, team.id, Resources::default());
        ledger.prune(&HashSet::from([live]));
        let entries = ledger.entries();
        assert!(entries.executions.contains_key(&live) && entries.executions.contains_key(&fresh));
        assert!(!entries.executions.contains_key(&leaked));
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_that_is_handed_on_is_as_good_as_new_and_counts_once() {
        let ledger = Arc::new(Ledger::default());
        let team = team(1, 100, 100_000);
        let (old, new) = (ExecutionId::random(), ExecutionId::random());
        ledger.claim(old, &team, Resources::default()).unwrap().keep();
        tokio::time::advance(UNSTORED_MAX + Duration::from_secs(1)).await;
        ledger.hand_on(old, new);
        ledger.prune(&HashSet::from([old]));
        ledger.release(old);
        assert!(
            ledger
                .claim(ExecutionId::random(), &team, Resources::default())
                .is_err()
        );
        ledger.release(new);
        assert!(ledger.entries().teams.is_empty());
    }

    #[test]
    fn a_late_end_of_one_incarnation_gives_back_nothing_of_the_next() {
        let ledger = Arc::new(Ledger::default());
        let team = team(2, 100, 100_000);
        let (old, new) = (ExecutionId::random(), ExecutionId::random());
        ledger.claim(old, &team, Resources::default()).unwrap().keep();
        ledger.claim(new, &team, Resources::default()).unwrap().keep();
        ledger.release(old);
        ledger.release(old);
        assert_eq!(ledger.entries().teams[&team.id].sandboxes, 1);
    }

    #[test]
    fn a_second_note_of_the_same_execution_says_so() {
        let ledger = Ledger::default();
        let (team, execution) = (TeamId::random(), ExecutionId::random());
        assert!(ledger.hold(execution, team, Resources::default()));
        assert!(!ledger.hold(execution, team, Resources::default()));
    }
}
