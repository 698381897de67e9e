//! What is known of a node.
use model::{Memory, TeamId};
use ports::node::{Held, HeldState, Report};

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
}

impl Facts {
    /// What a report says.
    #[must_use]
    pub fn of(report: &Report, place: Place) -> Self {
        let mut promised = Room::default();
        let mut teams: Vec<_> = Vec::new();
        for held in &report.held {
            let (of_cpu, of_memory) = charges(held);
            let resources = held.order.resources;
            promised.disk += u64::from(resources.disk.0);
            promised.memory += u64::from(resources.memory.0) * u64::from(of_memory);
            promised.cpu += u64::from(resources.cpu) * u64::from(of_cpu);
            if of_cpu {
                teams.push((held.order.team, 1));
            }
        }
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
                cpu: u64::from(report.cpu_total),
                memory: u64::from(report.memory_total.0),
                disk: u64::from(report.disk_total.0),
            },
            promised,
            memory_available: u64::from(report.memory_available.0),
            disk_available: u64::from(report.disk_available.0),
            slots_ready: report.slots_ready,
            starting: report.starting,
            teams,
        }
    }
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
