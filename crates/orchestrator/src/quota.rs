//! What teams hold of what they may hold. Counted in this process from the store's sandboxes, so that a claim is atomic
//! and costs no query.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{Kind, MiB, Quota, Resources, SandboxId, Team, TeamId};
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

#[derive(Default)]
pub(crate) struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    sandboxes: HashMap<SandboxId, (TeamId, Resources, Instant)>,
    teams: HashMap<TeamId, Held>,
}

impl Entries {
    fn remove(&mut self, id: SandboxId) {
        let Some((team, resources, _)) = self.sandboxes.remove(&id) else {
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

    fn insert(&mut self, id: SandboxId, team: TeamId, resources: Resources) {
        if self
            .sandboxes
            .insert(id, (team, resources, Instant::now()))
            .is_none()
        {
            let held = self.teams.entry(team).or_default();
            *held = held.with(resources);
        }
    }
}

impl Ledger {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("nothing panics while it holds the entries")
    }

    /// Takes a sandbox's share of its team's quota, or says which limit is reached.
    pub(crate) fn claim(
        self: &Arc<Self>,
        id: SandboxId,
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
        entries.insert(id, team.id, resources);
        Ok(Claim {
            ledger: Some(Arc::clone(self)),
            id,
        })
    }

    /// Notes a sandbox that is there, whatever the quota says.
    pub(crate) fn hold(&self, id: SandboxId, team: TeamId, resources: Resources) {
        self.entries().insert(id, team, resources);
    }

    /// Gives back what a sandbox holds, if it holds anything.
    pub(crate) fn release(&self, id: SandboxId) {
        self.entries().remove(id);
    }

    /// Drops what is held for sandboxes that are not in `live` and were claimed well before.
    pub(crate) fn prune(&self, live: &HashSet<SandboxId>) {
        let mut entries = self.entries();
        let stale = |(id, entry): (&SandboxId, &(_, _, Instant))| {
            (!live.contains(id) && entry.2.elapsed() > UNSTORED_MAX).then_some(*id)
        };
        let leaked: Vec<_> = entries.sandboxes.iter().filter_map(stale).collect();
        for id in leaked {
            entries.remove(id);
        }
    }
}

/// A share that is taken. Dropped, it is given back, until the store knows its sandbox.
pub(crate) struct Claim {
    ledger: Option<Arc<Ledger>>,
    id: SandboxId,
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
            ledger.release(self.id);
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
            match ledger.claim(SandboxId::random(), team, Resources::default()) {
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
                .claim(SandboxId::random(), team, Resources::default())
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
        let id = SandboxId::random();
        ledger.claim(id, &team, Resources::default()).unwrap().keep();
        ledger.release(SandboxId::random());
        assert!(
            ledger
                .claim(SandboxId::random(), &team, Resources::default())
                .is_err()
        );
        ledger.release(id);
        ledger.release(id);
        assert!(
            ledger
                .claim(SandboxId::random(), &team, Resources::default())
                .is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_old_claims_without_a_sandbox_are_pruned() {
        let ledger = Arc::new(Ledger::default());
        let team = team(10, 100, 100_000);
        let (live, leaked, fresh) = (SandboxId::random(), SandboxId::random(), SandboxId::random());
        ledger.hold(live, team.id, Resources::default());
        ledger.hold(leaked, team.id, Resources::default());
        tokio::time::advance(UNSTORED_MAX + Duration::from_secs(1)).await;
        ledger.hold(fresh, team.id, Resources::default());
        ledger.prune(&HashSet::from([live]));
        let entries = ledger.entries();
        assert!(entries.sandboxes.contains_key(&live) && entries.sandboxes.contains_key(&fresh));
        assert!(!entries.sandboxes.contains_key(&leaked));
    }
}
