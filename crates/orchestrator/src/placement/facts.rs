//! What is known of a node.
use model::{Memory, SandboxId, TeamId};
use ports::node::{Held, HeldState, Own, Report};

use super::Needs;

/// Where a node is, and how it is spoken to: what its report does not say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// What fails together: a room, a rack.
    pub zone: String,
    /// The version of the node protocol that it speaks.
    pub protocol: u32,
}

/// CPUs, and MiB of memory and disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// CPUs, or vCPUs.
    pub cpu: u64,
    /// MiB.
    pub memory: u64,
    /// MiB.
    pub disk: u64,
}

/// What a node has, and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Where it is.
    pub place: Place,
    /// The name of its runtime.
    pub runtime: String,
    /// What its runtime can do.
    pub can: Needs,
    /// Whether it takes new sandboxes.
    pub accepts: bool,
    /// What the machine has.
    pub total: Room,
    /// What its sandboxes were promised.
    pub promised: Room,
    /// MiB of memory that are free by its own measure.
    pub memory_available: u64,
    /// MiB of disk that are free by its own measure.
    pub disk_available: u64,
    /// Slots that are prepared.
    pub slots_ready: u32,
    /// Sandboxes that are being started.
    pub starting: u32,
    /// How many sandboxes of which teams run on it, each team once.
    pub teams: Vec<(TeamId, u32)>,
    /// For which sandboxes it has capacity that is theirs alone.
    pub own: Vec<SandboxId>,
}

impl Facts {
    /// What a report says.
    #[must_use]
    pub fn of(report: &Report, place: Place) -> Self {
        // What is for one sandbox alone is neither to be had by others nor used by it out of what is.
        let own: Vec<_> = report.own.iter().map(|own| own.sandbox).collect();
        let for_one = |part: fn(&Own) -> u32| report.own.iter().map(part).fold(0, u32::saturating_add);
        let (own_cpu, own_memory) = (for_one(|own| own.size.cpu), for_one(|own| own.size.memory.0));
        let runs = report.held.iter().filter(|held| charges(held).0);
        let mut teams: Vec<_> = runs.map(|held| (held.order.team, 1)).collect();
        teams.sort_unstable_by_key(|(team, _)| *team);
        teams.dedup_by(|(team, count), (kept, sum)| {
            let same = team == kept;
            *sum += *count * u32::from(same);
            same
        });
        Self {
            place,
            runtime: report.runtime.clone(),
            can: Needs::of(report.capabilities),
            accepts: report.accepts,
            total: Room {
                cpu: u64::from(report.cpu_total.saturating_sub(own_cpu)),
                memory: u64::from(report.memory_total.0.saturating_sub(own_memory)),
                disk: u64::from(report.disk_total.0),
            },
            promised: promised(report, |id| own.contains(&id)),
            memory_available: u64::from(report.memory_available.0),
            disk_available: u64::from(report.disk_available.0),
            slots_ready: report.slots_ready,
            starting: report.starting,
            teams,
            own,
        }
    }
}

/// What a node's sandboxes were promised, but for those that have capacity of their own: of these, their disks alone.
pub fn promised(report: &Report, has_own: impl Fn(SandboxId) -> bool) -> Room {
    report.held.iter().fold(Room::default(), |sum, held| {
        let (of_cpu, of_memory) = charges(held);
        let shares = !has_own(held.order.sandbox);
        let resources = held.order.resources;
        Room {
            cpu: sum.cpu + u64::from(resources.cpu) * u64::from(of_cpu && shares),
            memory: sum.memory + u64::from(resources.memory.0) * u64::from(of_memory && shares),
            disk: sum.disk + u64::from(resources.disk.0),
        }
    })
}

/// Whether what is held uses CPUs, and memory. All of it has a disk.
fn charges(held: &Held) -> (bool, bool) {
    match held.state {
        HeldState::Paused(..) => {
            // Memory that does not outlive the machine is in the machine.
            let kept = held.pause.map_or(Memory::None, |pause| pause.memory);
            (false, kept == Memory::Volatile)
        }
        _ => (true, true),
    }
}
