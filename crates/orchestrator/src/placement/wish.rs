//! What is to be placed.
use std::ops::BitOr;

use model::{BuildId, NodeId, Resources, TeamId};
use ports::runtime::Capabilities;

/// What a runtime must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs(u16);

impl Needs {
    /// Nothing but to run it.
    pub const NOTHING: Self = Self(0);
    /// [`Capabilities::durable_memory`].
    pub const DURABLE_MEMORY: Self = Self(1);
    /// [`Capabilities::freeze`].
    pub const FREEZE: Self = Self(1 << 1);
    /// [`Capabilities::own_kernel`].
    pub const OWN_KERNEL: Self = Self(1 << 2);
    /// [`Capabilities::network`].
    pub const NETWORK: Self = Self(1 << 3);
    /// [`Capabilities::volumes`].
    pub const VOLUMES: Self = Self(1 << 4);
    /// [`Capabilities::roots`].
    pub const ROOTS: Self = Self(1 << 5);
    /// [`Capabilities::portable_builds`].
    pub const PORTABLE_BUILDS: Self = Self(1 << 6);

    /// Everything.
    pub(super) const ALL: Self = Self(u16::MAX);

    /// All that a runtime can do.
    #[must_use]
    pub fn of(can: Capabilities) -> Self {
        let all = [
            (can.durable_memory, Self::DURABLE_MEMORY),
            (can.freeze, Self::FREEZE),
            (can.own_kernel, Self::OWN_KERNEL),
            (can.network, Self::NETWORK),
            (can.volumes, Self::VOLUMES),
            (can.roots, Self::ROOTS),
            (can.portable_builds, Self::PORTABLE_BUILDS),
        ];
        let has = all.into_iter().filter(|(can, _)| *can);
        has.fold(Self::NOTHING, |sum, (_, one)| sum | one)
    }

    /// Whether `can` is enough.
    #[must_use]
    pub fn are_met_by(self, can: Needs) -> bool {
        self.0 & can.0 == self.0
    }
}

impl BitOr for Needs {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What is to be placed, and where it would be best.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Its size.
    pub resources: Resources,
    /// Whose it is: a team's sandboxes are spread over zones.
    pub team: TeamId,
    /// What it starts from: better where it is.
    pub build: Option<BuildId>,
    /// What that stands on: still better than nothing.
    pub base: Option<BuildId>,
    /// The zone where it should be.
    pub zone: Option<&'a str>,
    /// The node where it should be, as one that has its memory.
    pub home: Option<NodeId>,
    /// The only node where it can be, as one that has its volumes.
    pub only: Option<NodeId>,
    /// The runtime that it must have.
    pub runtime: Option<&'a str>,
    /// What its runtime must be able to do.
    pub needs: Needs,
    /// Where it must not be.
    pub excluded: &'a [NodeId],
}

impl Wish<'_> {
    /// To be placed anywhere.
    #[must_use]
    pub fn new(team: TeamId, resources: Resources) -> Self {
        Self {
            resources,
            team,
            build: None,
            base: None,
            zone: None,
            home: None,
            only: None,
            runtime: None,
            needs: Needs::NOTHING,
            excluded: &[],
        }
    }
}
