//! How much is done for each figure.
use std::time::Duration;

/// Enough for figures that mean something, or, in short, just enough to see that each can still be had.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    /// Of what is done one after another.
    pub(crate) runs: usize,
    /// Of what is done 50 times at once.
    pub(crate) bursts: usize,
    /// For what is done as often as it goes.
    pub(crate) sustained: Duration,
    /// Loads of the edge, of which the median is told.
    pub(crate) loads: usize,
    /// Seconds of each of these.
    pub(crate) load_seconds: u32,
    /// Sandboxes that do nothing.
    pub(crate) idle: [u32; 2],
    /// Of what takes a second or more each: builds, snapshots and forks of much, pulls.
    pub(crate) rounds: usize,
    /// Of pauses.
    pub(crate) pauses: usize,
    /// Lives of microVMs.
    pub(crate) microvms: usize,
    /// MicroVMs that do nothing.
    pub(crate) clones: u32,
    /// MiB of the large template, each a file.
    pub(crate) template_mib: u32,
    /// Files of 50 kB in the sandbox that is copied.
    pub(crate) files: u32,
    /// MiB of the image that is pulled, in layers of equal size.
    pub(crate) image_mib: u32,
    /// MiB of the one layer that the daemon imports.
    pub(crate) layer_mib: u32,
    /// Creates that are under way at once.
    pub(crate) at_once: usize,
    /// Sandboxes in the database of lists.
    pub(crate) listed: usize,
    /// Lists of each kind.
    pub(crate) lists: usize,
    /// Whether programs that measure by themselves do all that they do.
    pub(crate) whole: bool,
}

impl Scale {
    pub(crate) const WHOLE: Self = Self {
        runs: 300,
        bursts: 4,
        sustained: Duration::from_secs(10),
        loads: 3,
        load_seconds: 5,
        idle: [200, 1000],
        rounds: 5,
        pauses: 20,
        microvms: 20,
        clones: 20,
        template_mib: 1024,
        files: 10_000,
        image_mib: 500,
        layer_mib: 2048,
        at_once: 1000,
        listed: 100_000,
        lists: 500,
        whole: true,
    };
    pub(crate) const SHORT: Self = Self {
        runs: 6,
        bursts: 1,
        sustained: Duration::from_secs(1),
        loads: 1,
        load_seconds: 1,
        idle: [8, 16],
        rounds: 1,
        pauses: 2,
        microvms: 2,
        clones: 2,
        template_mib: 8,
        files: 100,
        image_mib: 10,
        layer_mib: 16,
        at_once: 30,
        listed: 2000,
        lists: 10,
        whole: false,
    };
}
