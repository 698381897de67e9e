use std::time::Duration;

use model::MiB;

use crate::placement::Overcommit;

/// What an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The size of new volumes.
    pub volume_size: MiB,
    /// The most volumes of one team.
    pub volumes_max: u32,
    /// What a team's volumes may hold in sum.
    pub volumes_size_max: MiB,
    /// The most results of steps that are kept for later builds, over all teams; the longest unused go first.
    pub steps_kept_max: usize,
    /// How long a result is kept that no build uses.
    pub steps_kept_for: Duration,
    /// Whether the blobs are to hold what templates and snapshots are, so that these outlive their node.
    pub stow: bool,
    /// Whether other processes work on the same store. Then what one of them may be at is left to it for a while, and
    /// builds are claimed before they are run.
    pub shared: bool,
    /// Whether this process carries builds through, or leaves that to others.
    pub runs_builds: bool,
    /// What may be promised on a node of those that are shared: see [`placement::Overcommit`].
    ///
    /// [`placement::Overcommit`]: crate::placement::Overcommit
    pub overcommit: Overcommit,
    /// How long a node may be gone from the fleet until what ran on it is given up.
    pub node_lost_after: Duration,
}

impl Default for Config {
    /// For a machine of one's own. Disks take the room that is written, so sizes are bounds, not reservations.
    fn default() -> Self {
        Self {
            volume_size: MiB(10 * 1024),
            volumes_max: 100,
            volumes_size_max: MiB(1024 * 1024),
            steps_kept_max: 1000,
            steps_kept_for: Duration::from_secs(30 * 24 * 3600),
            stow: false,
            shared: false,
            runs_builds: true,
            overcommit: Overcommit::default(),
            node_lost_after: Duration::from_secs(60),
        }
    }
}
