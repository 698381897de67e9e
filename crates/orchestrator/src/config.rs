use std::time::Duration;

use model::MiB;

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
        }
    }
}
