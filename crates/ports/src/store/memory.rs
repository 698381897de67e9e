//! The stores of one process, which forget everything with it: the reference model of the laws, and the stores of tests.
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::recipe::Key;
use model::{ApiKey, Build, BuildId, Sandbox, SandboxId, Secret, Team, TeamId, Template, Volume, VolumeId};

use crate::builds::{BuildLine, CachedStep};

mod builds;
mod sandboxes;
mod teams;
mod templates;
mod volumes;

/// All stores in maps.
#[derive(Default)]
pub struct Memory(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    /// With the time at which each was stored as gone.
    sandboxes: BTreeMap<SandboxId, (Sandbox, Option<SystemTime>)>,
    templates: Vec<Template>,
    /// With their lines.
    builds: BTreeMap<BuildId, (Build, Vec<BuildLine>)>,
    /// With the time of their last use.
    cached: BTreeMap<(TeamId, Key), (CachedStep, SystemTime)>,
    stowed: BTreeMap<BuildId, String>,
    volumes: BTreeMap<VolumeId, Volume>,
    /// Volumes that were given up.
    remains: BTreeMap<VolumeId, Volume>,
    teams: Vec<Team>,
    keys: Vec<ApiKey>,
    seed: Option<Secret<Vec<u8>>>,
}

impl Memory {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().expect("nothing panics while it holds the tables")
    }
}

/// Times compare at microseconds.
fn micros(time: SystemTime) -> Duration {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::new(since.as_secs(), since.subsec_micros() * 1000)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Memory;

    crate::store_contract!(async { ((), Arc::new(Memory::default())) });
}
