//! Volumes in the machine: file systems whose requests go over streams of the host's.
//!
//! Each is a FUSE mount of its own among the machine's mounts, by a descriptor of `/dev/fuse` that we hold. What its kernel asks is
//! passed on as it is, and what the host answers is passed back. What was asked and not answered when a stream ended is asked again
//! on the next: whoever waits for it in the machine waits until then. Memory that is written down holds all of that.
mod mount;
mod relay;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use guest::line::Nothing;

pub(crate) use self::mount::Refused;
use self::mount::{attach, detach};
pub(crate) use self::relay::Relay;
use crate::console::say;
use crate::machine::Machine;

/// The host asks for no more.
const VOLUMES_MAX: usize = 64;

/// All that are attached.
#[derive(Debug, Default)]
pub(crate) struct Volumes(Mutex<Attached>);

#[derive(Debug, Default)]
struct Attached {
    /// By the host's name for it: where it is, and who passes on what is asked.
    volumes: BTreeMap<u64, (String, Arc<Relay>)>,
    /// Those that are being detached, by their place.
    going: BTreeMap<String, JoinHandle<()>>,
}

impl Volumes {
    fn attached(&self) -> std::sync::MutexGuard<'_, Attached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one with this name.
    pub(crate) fn find(&self, tag: u64) -> Option<Arc<Relay>> {
        self.attached()
            .volumes
            .get(&tag)
            .map(|(_, relay)| Arc::clone(relay))
    }

    /// All of them, to be brought to their disks.
    pub(crate) fn all(&self) -> Vec<Arc<Relay>> {
        let attached = self.attached();
        attached
            .volumes
            .values()
            .map(|(_, relay)| Arc::clone(relay))
            .collect()
    }

    /// Loses all: whoever waits for one is told that it is gone.
    pub(crate) fn abandon(&self) {
        for (_, relay) in std::mem::take(&mut self.attached().volumes).into_values() {
            relay.abandon();
        }
    }
}

/// Attaches a volume, unless it is there already.
pub(crate) async fn have(machine: &Arc<Machine>, tag: u64, path: &str) -> Result<Nothing, Refused> {
    let going = {
        let mut attached = machine.volumes.attached();
        if attached.volumes.contains_key(&tag) {
            return Ok(Nothing {});
        }
        if attached.volumes.len() >= VOLUMES_MAX {
            return Err(Refused::Failed(format!("more than {VOLUMES_MAX} volumes")));
        }
        attached.going.remove(path)
    };
    let relay = attach(machine, path, going).await?;
    let mut attached = machine.volumes.attached();
    attached.volumes.insert(tag, (path.to_owned(), Arc::new(relay)));
    Ok(Nothing {})
}

/// Loses all volumes but some. Does not wait until they are detached: the way to one may lead through another.
pub(crate) fn keep(machine: &Arc<Machine>, tags: &[u64]) -> Result<Nothing, String> {
    let mut attached = machine.volumes.attached();
    let lost: Vec<u64> = attached
        .volumes
        .keys()
        .filter(|tag| !tags.contains(tag))
        .copied()
        .collect();
    for tag in lost {
        let Some((path, relay)) = attached.volumes.remove(&tag) else {
            continue;
        };
        // First: who walks over it is told that it is gone, and does not wait.
        relay.abandon();
        drop(relay);
        match detach(machine, &path) {
            Ok(going) => {
                attached.going.insert(path, going);
            }
            Err(error) => say(format_args!("a volume at {path} stays, and is dead: {error}")),
        }
    }
    Ok(Nothing {})
}
