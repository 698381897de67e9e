//! What an operator may say about placement.
use std::ops::RangeInclusive;
use std::time::Duration;

/// How much of a thing may be promised for each that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    per_mille: u32,
}

impl Ratio {
    /// As much as there is.
    pub const ONE: Self = Self { per_mille: 1000 };
    /// Whatever is asked for: the node itself says when it is full.
    pub const UNBOUNDED: Self = Self { per_mille: u32::MAX };

    /// A ratio from 0.001 to 1000; `None` for anything else.
    #[must_use]
    pub fn new(ratio: f64) -> Option<Self> {
        let per_mille = (ratio * 1000.0).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the bounds of the pattern before it"
        )]
        let per_mille = (1.0..=1_000_000.0)
            .contains(&per_mille)
            .then_some(per_mille as u32)?;
        Some(Self { per_mille })
    }

    /// How much there must be so that so much may be promised.
    pub(crate) fn needs(self, promised: u64) -> u64 {
        promised.saturating_mul(1000).div_ceil(u64::from(self.per_mille))
    }

    /// What may be promised of `total`.
    pub(super) fn of(self, total: u64) -> i32 {
        if self == Self::UNBOUNDED {
            return i32::MAX;
        }
        let promised = total.saturating_mul(u64::from(self.per_mille)) / 1000;
        i32::try_from(promised).unwrap_or(i32::MAX)
    }
}

/// What may be promised on a node against what it has, in sum over its sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overcommit {
    /// vCPUs for each CPU.
    pub cpu: Ratio,
    /// Limits of memory for each MiB of memory.
    pub memory: Ratio,
    /// Sizes of disks for each MiB of disk.
    pub disk: Ratio,
}

impl Default for Overcommit {
    /// A sandbox waits for its user most of the time, so four share a CPU. Memory that is promised twice is missing at the
    /// worst moment. Disks take the room that is written, so their sizes are bounds and no promises: what counts is what a node
    /// measures to be free ([`Policy::disk_reserve`]).
    fn default() -> Self {
        Self {
            cpu: Ratio { per_mille: 4000 },
            memory: Ratio::ONE,
            disk: Ratio::UNBOUNDED,
        }
    }
}

impl Overcommit {
    /// Whether so many CPUs and so much memory may be promised where there is so much of them. Disks are not looked at.
    #[must_use]
    pub fn fits(&self, promised: super::Room, total: super::Room) -> bool {
        self.cpu.needs(promised.cpu) <= total.cpu && self.memory.needs(promised.memory) <= total.memory
    }
}

/// How much each thing speaks for a node. Each is multiplied by something between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// The part of its vCPUs that is free.
    pub cpu: f32,
    /// The part of its memory that is free.
    pub memory: f32,
    /// The part of its disk that is free.
    pub disk: f32,
    /// Slots that are prepared; from [`WARM_ENOUGH`] on they are enough.
    pub warm: f32,
    /// It holds the build; half of it for the base that the build stands on.
    pub locality: f32,
    /// The team has fewer sandboxes in its zone than in the zone where it has the most.
    pub spread: f32,
    /// It is in the zone that is preferred.
    pub zone: f32,
    /// It is the node that is preferred.
    pub home: f32,
    /// Starts failed on it lately. Speaks against it.
    pub failures: f32,
    /// Little of its vCPUs, memory or disk is left: another process may have taken that meanwhile. Speaks against it.
    pub crowded: f32,
    /// It is starting others; from [`STARTING_MANY`] on they are many. Speaks against it.
    pub starting: f32,
}

/// A node with so many prepared slots is as good as one with more.
pub const WARM_ENOUGH: u32 = 4;
/// A node that starts so many at a time is as bad as one that starts more.
pub const STARTING_MANY: u32 = 16;

impl Default for Weights {
    /// A build that has to be fetched costs seconds, a slot that has to be made some ten milliseconds: locality is worth
    /// as much as an empty machine against a full one, warmth half of that.
    fn default() -> Self {
        Self {
            cpu: 1.0,
            memory: 1.0,
            disk: 0.25,
            warm: 0.5,
            locality: 1.0,
            spread: 1.0,
            zone: 0.5,
            home: 4.0,
            failures: 1.0,
            crowded: 2.0,
            starting: 1.0,
        }
    }
}

/// How nodes are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Nodes that are compared for one start. Two are enough against the worst; eight find warmth and builds too.
    pub choices: usize,
    /// Nodes that are asked before a start is given up: more would keep the client waiting for a fleet that is full.
    pub tries: usize,
    /// What may be promised.
    pub overcommit: Overcommit,
    /// What speaks for a node.
    pub weights: Weights,
    /// Memory, in MiB, that a node must have free by its own measure, whatever is promised.
    pub memory_reserve: u64,
    /// Disk, in MiB, that a node must have free by its own measure.
    pub disk_reserve: u64,
    /// Nodes that have not reported for so long get nothing new.
    pub stale_after: Duration,
    /// What was started on a node counts for so long at most where the node does not report.
    pub claims_for: Duration,
    /// Failures count half after this time.
    pub failures_half_life: Duration,
    /// So many failed starts, by their present weight, rest a node; where all others are full it is asked all the same.
    pub failures_max: f32,
    /// The versions of the node protocol that this process speaks.
    pub protocols: RangeInclusive<u32>,
    /// Nodes that are looked at one by one where chance found none. In a greater fleet counts of refusals are of so many.
    pub scan_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            choices: 8,
            tries: 4,
            overcommit: Overcommit::default(),
            weights: Weights::default(),
            memory_reserve: 512,
            disk_reserve: 1024,
            // Four heartbeats of five seconds: three may be lost.
            stale_after: Duration::from_secs(20),
            // Longer than any start takes.
            claims_for: Duration::from_secs(120),
            failures_half_life: Duration::from_secs(30),
            failures_max: 5.0,
            protocols: 0..=u32::MAX,
            scan_max: 16_384,
        }
    }
}

impl Policy {
    /// For the one node of the embedded mode: nothing is refused but by the node itself.
    #[must_use]
    pub fn embedded() -> Self {
        Self {
            overcommit: Overcommit {
                cpu: Ratio::UNBOUNDED,
                memory: Ratio::UNBOUNDED,
                disk: Ratio::UNBOUNDED,
            },
            memory_reserve: 0,
            disk_reserve: 0,
            stale_after: Duration::MAX,
            failures_max: f32::INFINITY,
            ..Self::default()
        }
    }
}
