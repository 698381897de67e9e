//! After a restart: what the journal says, and what is there.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use model::{PauseMode, SandboxId};
use ports::node::{HeldState, NodeError};
use ports::runtime::{Disk, DiskOrigin};
use ports::{Machine, MachineSpec, RuntimeError};

use crate::journal::Entry;
use crate::node::LocalNode;
use crate::sandbox::Sandbox;
use crate::sandbox::bring_up::failed;

/// What a restart found, for the log and for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    /// Running sandboxes that go on.
    pub running: usize,
    /// Paused ones.
    pub paused: usize,
    /// What could not be adopted and was cleared away.
    pub reclaimed: usize,
}

impl LocalNode {
    /// Adopts what earlier daemons left. Called once, before anything else.
    ///
    /// # Errors
    /// The journal cannot be read, or the runtime cannot recover.
    pub async fn recover(self: &Arc<Self>) -> Result<Found, NodeError> {
        // First of all: without it nobody knows what is whose, and nothing may be touched.
        let journal = self.journal.all().map_err(|source| NodeError::Failed {
            step: "reading the node's journal",
            kind: model::Kind::Unavailable,
            source: Box::new(source),
        })?;
        let recovered = self
            .runtime
            .recover()
            .await
            .map_err(failed("recovering the runtime"))?;
        failpoint::reach("node/runtime-recovered");
        let mut machines: HashMap<SandboxId, (MachineSpec, Arc<dyn Machine>)> = recovered
            .machines
            .into_iter()
            .map(|(spec, machine)| (spec.sandbox, (spec, machine)))
            .collect();
        let mut found = Found {
            reclaimed: recovered.reclaimed,
            ..Found::default()
        };
        for entry in journal.entries {
            let id = entry.order.sandbox;
            let machine = machines.remove(&id);
            let has_disk = recovered.disks.contains(&id);
            match self.adopt(entry, machine, has_disk).await {
                Some(HeldState::Running) => found.running += 1,
                Some(_) => found.paused += 1,
                None => found.reclaimed += 1,
            }
        }
        failpoint::reach("node/journal-compared");
        let unreadable: HashSet<SandboxId> = journal.unreadable.into_iter().collect();
        for (id, (_, machine)) in machines {
            if unreadable.contains(&id) {
                told(id, "stopped and its disk kept", machine.stop(Disk::Keep).await);
                continue;
            }
            tracing::warn!(sandbox = %id, "a machine of no known sandbox is ended");
            machine
                .stop(Disk::Discard)
                .await
                .map_err(failed("stopping a machine"))?;
            found.reclaimed += 1;
        }
        let is_nobodys = |id: &SandboxId| self.find(*id).is_none() && !unreadable.contains(id);
        for id in recovered.disks.into_iter().filter(is_nobodys) {
            self.runtime
                .discard(id)
                .await
                .map_err(failed("discarding a disk"))?;
            found.reclaimed += 1;
        }
        *self.unreadable() = unreadable;
        Ok(found)
    }

    async fn adopt(
        self: &Arc<Self>,
        mut entry: Entry,
        machine: Option<(MachineSpec, Arc<dyn Machine>)>,
        has_disk: bool,
    ) -> Option<HeldState> {
        let id = entry.order.sandbox;
        let disk_only = matches!(entry.state, HeldState::Paused(_, PauseMode::Filesystem));
        let is_written = matches!(entry.state, HeldState::Paused(_, PauseMode::Full)) && entry.is_on_disk();
        if is_written && let Some((spec, machine)) = &machine {
            // A resume that nobody was told of. What lay on the disk is of before: memory is where it went on.
            entry.stay_in_memory();
            if spec.restore && spec.disk == DiskOrigin::Kept && machine.ended().borrow().is_none() {
                entry.booted = Some(machine.execution());
            }
        }
        let (mut machine, mut has_disk) = (machine.map(|(_, machine)| machine), has_disk);
        // It was booting from the sandbox's disk, or it was to leave nothing but that: the disk is all that counts.
        let mut is_remains = false;
        if let Some(remains) = machine.take_if(|machine| disk_only || !entry.is_of(&**machine)) {
            let stopped = remains.stop(Disk::Keep).await;
            has_disk = true;
            is_remains = stopped.is_err();
            // Whoever drives the sandbox tries again.
            machine = is_remains.then_some(remains);
            told(id, "stopped", stopped);
        }
        let state = match (entry.state, &machine) {
            (HeldState::Pausing(build, _) | HeldState::Paused(build, _), Some(_)) if is_remains => {
                HeldState::Paused(build, PauseMode::Filesystem)
            }
            // Until a pause commits, the sandbox runs.
            (HeldState::Running | HeldState::Pausing(..), Some(machine)) => {
                told(id, "thawed", machine.thaw().await);
                HeldState::Running
            }
            (HeldState::Paused(build, PauseMode::Full), Some(machine)) => {
                // A resume that was not answered may have woken it.
                if !machine.is_frozen() {
                    told(id, "frozen again", machine.freeze().await);
                }
                HeldState::Paused(build, PauseMode::Full)
            }
            // Where memory was kept, it is lost: a resume says so.
            (HeldState::Paused(build, mode), None) if has_disk => HeldState::Paused(build, mode),
            (HeldState::Pausing(build, PauseMode::Filesystem), None) if has_disk => {
                HeldState::Paused(build, PauseMode::Filesystem)
            }
            // It was being written down. Whether it was finished, a resume finds out.
            (HeldState::Pausing(build, PauseMode::Full), None) if has_disk && entry.is_on_disk() => {
                HeldState::Paused(build, PauseMode::Full)
            }
            _ => {
                tracing::warn!(sandbox = %id, "a sandbox did not outlive the restart");
                self.journal.remove(id);
                if let Some(machine) = machine {
                    let _ = machine.stop(Disk::Discard).await;
                }
                let _ = self.runtime.discard(id).await;
                return None;
            }
        };
        let sandbox = Sandbox::new(Entry { state, ..entry }, machine);
        self.set_state_anyway(&sandbox, state);
        self.insert(id, Arc::clone(&sandbox));
        self.drive(&sandbox);
        Some(state)
    }
}

/// It is taken as it is: somebody's work is in it, and its owner can end it.
fn told(id: SandboxId, what: &str, done: Result<(), RuntimeError>) {
    if let Err(error) = done {
        let error = &error as &dyn std::error::Error;
        tracing::error!(sandbox = %id, error, "a machine that was found could not be {what}");
    }
}
