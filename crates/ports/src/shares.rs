//! What teams hold of what they may hold.
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use model::{ExecutionId, MiB, Quota, Resources, TeamId};
use tokio::time::Instant;

pub mod contract;

/// What one incarnation of a sandbox holds of its team's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whose quota.
    pub team: TeamId,
    /// The incarnation.
    pub execution: ExecutionId,
    /// The size of its machine.
    pub resources: Resources,
}

/// What a team's sandboxes hold in sum; paused ones hold nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// How many there are.
    pub sandboxes: u32,
    /// Their vCPUs.
    pub cpu: u32,
    /// Their memory.
    pub memory_mib: u64,
}

impl Held {
    /// With one more.
    #[must_use]
    pub fn with(self, more: Resources) -> Self {
        Self {
            sandboxes: self.sandboxes.saturating_add(1),
            cpu: self.cpu.saturating_add(more.cpu),
            memory_mib: self.memory_mib.saturating_add(u64::from(more.memory.0)),
        }
    }

    /// With one less.
    #[must_use]
    pub fn without(self, less: Resources) -> Self {
        Self {
            sandboxes: self.sandboxes.saturating_sub(1),
            cpu: self.cpu.saturating_sub(less.cpu),
            memory_mib: self.memory_mib.saturating_sub(u64::from(less.memory.0)),
        }
    }

    /// Which limit of `quota` this is beyond.
    #[must_use]
    pub fn beyond(self, quota: &Quota) -> Option<Beyond> {
        let MiB(memory_mib) = quota.memory;
        if self.sandboxes > quota.sandboxes {
            Some(Beyond::Sandboxes(quota.sandboxes))
        } else if self.cpu > quota.cpu {
            Some(Beyond::Cpu(quota.cpu))
        } else if self.memory_mib > u64::from(memory_mib) {
            Some(Beyond::MemoryMib(memory_mib))
        } else {
            None
        }
    }
}

/// The limit that a claim would be beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// So many sandboxes at once.
    Sandboxes(u32),
    /// So many vCPUs in sandboxes at once.
    Cpu(u32),
    /// So much memory in sandboxes at once.
    MemoryMib(u32),
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Beyond::Sandboxes(most) => write!(f, "{most} concurrent sandboxes"),
            Beyond::Cpu(most) => write!(f, "{most} vCPUs in concurrent sandboxes"),
            Beyond::MemoryMib(most) => write!(f, "{most} MiB of memory in concurrent sandboxes"),
        }
    }
}

impl std::error::Error for Beyond {}

/// What teams hold of what they may hold, counted so that a claim is atomic.
///
/// Shares go by execution: the end of one incarnation gives back nothing of the next, however late it is noticed. They are a
/// cache of what is stored: the reconcilers [hold](Shares::hold) what is missing and [prune](Shares::prune) what has leaked.
///
/// Shares that are held by processes together are refused nothing for the sake of what is away: while it is, each process counts
/// on from the last word that it had. Of `n` processes each may then grant what was free at that word, which is at most the
/// quota: a team has at most `n` times its quota until it is over, and claims nothing more until it is below its quota.
#[async_trait]
pub trait Shares: Send + Sync {
    /// Takes a share, or says which limit of the quota is reached. A share that is taken already is not taken twice.
    async fn claim(&self, share: Share, quota: &Quota) -> Result<(), Beyond>;
    /// Notes what is there, whatever the quota says; those that were not noted before.
    async fn hold(&self, shares: &[Share]) -> Vec<Share>;
    /// Gives back a share, if it is held.
    async fn release(&self, share: Share);
    /// The same behind the caller's back, for whoever cannot wait. The next claim of this process finds it given back.
    fn release_soon(&self, share: Share);
    /// A share, if it is held, goes on to the next execution of the same sandbox. It is as good as new.
    async fn hand_on(&self, share: Share, to: ExecutionId);
    /// Drops what is held for executions that are not in `live`, and has been for longer than `unstored`.
    async fn prune(&self, live: &HashSet<ExecutionId>, unstored: Duration);
    /// What a team holds in sum, as far as this process knows.
    async fn held(&self, team: TeamId) -> Held;
}

/// The shares of one process.
#[derive(Default)]
pub struct Memory(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    executions: HashMap<ExecutionId, (Share, Instant)>,
    teams: HashMap<TeamId, Held>,
}

impl Entries {
    fn remove(&mut self, execution: ExecutionId) -> Option<Share> {
        let (share, _) = self.executions.remove(&execution)?;
        if let Some(held) = self.teams.get_mut(&share.team) {
            *held = held.without(share.resources);
            if *held == Held::default() {
                self.teams.remove(&share.team);
            }
        }
        Some(share)
    }

    /// Whether it was not there.
    fn insert(&mut self, share: Share) -> bool {
        let entry = (share, Instant::now());
        let is_new = self.executions.insert(share.execution, entry).is_none();
        if is_new {
            let held = self.teams.entry(share.team).or_default();
            *held = held.with(share.resources);
        }
        is_new
    }

    fn held(&self, team: TeamId) -> Held {
        self.teams.get(&team).copied().unwrap_or_default()
    }
}

impl Memory {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("nothing panics while it holds the entries")
    }
}

#[async_trait]
impl Shares for Memory {
    async fn claim(&self, share: Share, quota: &Quota) -> Result<(), Beyond> {
        let mut entries = self.entries();
        if entries.executions.contains_key(&share.execution) {
            return Ok(());
        }
        match entries.held(share.team).with(share.resources).beyond(quota) {
            Some(limit) => Err(limit),
            None => {
                entries.insert(share);
                Ok(())
            }
        }
    }

    async fn hold(&self, shares: &[Share]) -> Vec<Share> {
        let mut entries = self.entries();
        let new = shares.iter().filter(|share| entries.insert(**share));
        new.copied().collect()
    }

    async fn release(&self, share: Share) {
        self.release_soon(share);
    }

    fn release_soon(&self, share: Share) {
        self.entries().remove(share.execution);
    }

    async fn hand_on(&self, share: Share, to: ExecutionId) {
        let mut entries = self.entries();
        if let Some(share) = entries.remove(share.execution) {
            entries.insert(Share {
                execution: to,
                ..share
            });
        }
    }

    async fn prune(&self, live: &HashSet<ExecutionId>, unstored: Duration) {
        let mut entries = self.entries();
        let stale = |(execution, (_, at)): (&ExecutionId, &(Share, Instant))| {
            (!live.contains(execution) && at.elapsed() > unstored).then_some(*execution)
        };
        let leaked: Vec<_> = entries.executions.iter().filter_map(stale).collect();
        for execution in leaked {
            entries.remove(execution);
        }
    }

    async fn held(&self, team: TeamId) -> Held {
        self.entries().held(team)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    crate::share_contract!(async {
        let shares = Arc::new(Memory::default());
        ((), Arc::clone(&shares), shares)
    });

    #[tokio::test]
    async fn nothing_is_kept_of_a_team_that_holds_nothing() {
        let shares = Memory::default();
        let share = contract::share(TeamId::random());
        assert_eq!(shares.hold(&[share]).await, [share]);
        shares.release(share).await;
        assert!(shares.entries().teams.is_empty() && shares.entries().executions.is_empty());
    }
}
