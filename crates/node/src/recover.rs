//! After a restart: what the journal says, and what is there.
use std::collections::HashMap;
use std::sync::Arc;

use model::{PauseMode, SandboxId};
use ports::node::{HeldState, NodeError};
use ports::runtime::Disk;
use ports::{Machine, RuntimeError};

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
    /// The runtime cannot recover.
    pub async fn recover(self: &Arc<Self>) -> Result<Found, NodeError> {
        let recovered = self
            .runtime
            .recover()
            .await
            .map_err(failed("recovering the runtime"))?;
        failpoint::reach("node/runtime-recovered");
        let mut machines: HashMap<SandboxId, Arc<dyn Machine>> = recovered
            .machines
            .into_iter()
            .map(|(spec, machine)| (spec.sandbox, machine))
            .collect();
        let mut found = Found {
            reclaimed: recovered.reclaimed,
            ..Found::default()
        };
        for entry in self.journal.all() {
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
        for (id, machine) in machines {
            tracing::warn!(sandbox = %id, "a machine of no known sandbox is ended");
            machine
                .stop(Disk::Discard)
                .await
                .map_err(failed("stopping a machine"))?;
            found.reclaimed += 1;
        }
        for id in recovered.disks.into_iter().filter(|id| self.find(*id).is_none()) {
            self.runtime
                .discard(id)
                .await
                .map_err(failed("discarding a disk"))?;
            found.reclaimed += 1;
        }
        Ok(found)
    }

    async fn adopt(
        self: &Arc<Self>,
        entry: Entry,
        machine: Option<Arc<dyn Machine>>,
        has_disk: bool,
    ) -> Option<HeldState> {
        let id = entry.order.sandbox;
        let (machine, has_disk) = match machine {
            // It was booting from the sandbox's disk, or it was to leave nothing but that: the disk is all that counts.
            Some(machine)
                if !entry.is_of(&*machine)
                    || matches!(entry.state, HeldState::Paused(_, PauseMode::Filesystem)) =>
            {
                (None, machine.stop(Disk::Keep).await.is_ok())
            }
            machine => (machine, has_disk),
        };
        let (state, memory_lost) = match (entry.state, &machine) {
            // Until a pause commits, the sandbox runs.
            (HeldState::Running | HeldState::Pausing(..), Some(machine)) => {
                told(id, "thawed", machine.thaw().await);
                (HeldState::Running, false)
            }
            (HeldState::Pausing(build, PauseMode::Filesystem), None) if has_disk => {
                (HeldState::Paused(build, PauseMode::Filesystem), false)
            }
            (HeldState::Paused(build, PauseMode::Full), Some(machine)) => {
                // A resume that was not answered may have woken it.
                if !machine.is_frozen() {
                    told(id, "frozen again", machine.freeze().await);
                }
                (HeldState::Paused(build, PauseMode::Full), false)
            }
            (HeldState::Paused(build, mode), None) if has_disk => {
                (HeldState::Paused(build, mode), mode == PauseMode::Full)
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
        let sandbox = Sandbox::new(
            Entry {
                state,
                memory_lost,
                ..entry
            },
            machine,
        );
        let _ = self.write(&sandbox.now().entry);
        self.insert(id, Arc::clone(&sandbox));
        self.drive(&sandbox);
        Some(state)
    }
}

/// It is adopted all the same: somebody's work is in it, and its owner can end it.
fn told(id: SandboxId, what: &str, done: Result<(), RuntimeError>) {
    if let Err(error) = done {
        let error = &error as &dyn std::error::Error;
        tracing::error!(sandbox = %id, error, "an adopted machine could not be {what}");
    }
}
