use std::fmt;

use serde::{Deserialize, Serialize};

/// Mebibytes (2^20 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct MiB(pub u32);

impl MiB {
    /// The same amount in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 20
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// The size of a sandbox's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual CPUs: 1, or an even number up to 32 (contract 4.1).
    pub cpu: u32,
    /// Memory limit.
    pub memory: MiB,
    /// Size of the writable disk.
    pub disk: MiB,
}

impl Default for Resources {
    /// The defaults of the contract, section 4.1.
    fn default() -> Self {
        Self {
            cpu: 2,
            memory: MiB(1024),
            disk: MiB(10_240),
        }
    }
}

/// What a team may hold and do at a time.
///
/// What is left out, where it is read, is as by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Sandboxes that are not paused, at once.
    pub sandboxes: u32,
    /// vCPUs of those, in sum.
    pub cpu: u32,
    /// Memory limits of those, in sum.
    pub memory: MiB,
    /// Creates, resumes and forks per second, sustained; the burst is twice that.
    pub creates_per_second: u32,
    /// Longest life of one run of a sandbox, in hours.
    pub life_hours: u32,
    /// Snapshots that are kept, each of its tags counted. What is copied by forks, which nothing names, is none.
    pub snapshots: u32,
}

impl Default for Quota {
    /// Generous on purpose: on a machine of one's own the machine is the limit.
    fn default() -> Self {
        Self {
            sandboxes: 10_000,
            cpu: 100_000,
            memory: MiB(100 * 1024 * 1024),
            creates_per_second: 2_000,
            life_hours: 24 * 30,
            snapshots: 10_000,
        }
    }
}
