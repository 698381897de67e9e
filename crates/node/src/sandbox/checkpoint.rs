//! A copy of a sandbox that runs, for others to start from; and of the disk of one that is paused, for itself to start from where
//! its node is not.
use std::sync::Arc;
use std::time::SystemTime;

use model::{BuildId, ExecutionId, Memory, SandboxId};
use ports::node::{HeldState, NodeError};

use crate::envd;
use crate::node::LocalNode;
use crate::sandbox::bring_up::failed;
use crate::sandbox::name;

impl LocalNode {
    /// Copies an execution into a build; it runs on. Its deadline, should it come meanwhile, waits for its turn.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        id: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        memory: bool,
    ) -> Result<Memory, NodeError> {
        let sandbox = self.find(id).ok_or(NodeError::Unknown)?;
        let _turn = sandbox.turn.lock().await;
        let held = sandbox.held();
        if held.order.execution != execution {
            return Err(NodeError::Unknown);
        }
        // Asked again by somebody who did not hear the answer.
        if self.runtime.has_build(into).await {
            return Ok(self.runtime.memory_of(into).await);
        }
        if held.state != HeldState::Running {
            return Err(NodeError::Busy(name(held.state)));
        }
        let machine = sandbox.machine().ok_or(NodeError::Unknown)?;
        let memory = memory && self.runtime.capabilities().durable_memory;
        let copied = if memory {
            // Whoever dials waits until it is done.
            let _quiet = sandbox.close_door().await;
            envd::quiesce(&*machine).await;
            failpoint::reach("node/quiet-to-copy");
            machine.checkpoint(into, true).await
        } else {
            machine.checkpoint(into, false).await
        };
        let copied = copied.map_err(failed("copying the machine"))?;
        failpoint::reach("node/machine-copied");
        let what = match copied {
            Memory::None => "a copy of its disk was taken",
            Memory::Durable | Memory::Volatile => "a copy of its disk and memory was taken",
        };
        sandbox
            .lines()
            .say(SystemTime::now(), ports::Level::Info, what.to_owned());
        Ok(copied)
    }

    /// Copies the disk of a sandbox that is paused under this name into a build of the name. A resume that comes meanwhile waits
    /// for its turn.
    pub(crate) async fn copy_pause(
        self: &Arc<Self>,
        id: SandboxId,
        snapshot: BuildId,
    ) -> Result<(), NodeError> {
        if !self.runtime.capabilities().portable_builds {
            return Err(NodeError::Refused(format!(
                "the {} runtime does not support taking builds elsewhere",
                self.runtime.name()
            )));
        }
        let sandbox = self.find(id).ok_or(NodeError::Unknown)?;
        let _turn = sandbox.turn.lock().await;
        match sandbox.state() {
            HeldState::Paused(paused, _) if paused == snapshot => {}
            state => return Err(NodeError::Busy(name(state))),
        }
        let mut claim = self.in_use.claim();
        claim.add(snapshot);
        // Asked again by somebody who did not hear the answer.
        if self.runtime.has_build(snapshot).await {
            return Ok(());
        }
        let copied = match sandbox.machine() {
            Some(machine) if machine.ended().borrow().is_some() || !machine.is_frozen() => {
                // It died, or was to be stopped: whoever drives it puts its disk away.
                return Err(NodeError::Busy("being put away"));
            }
            Some(machine) => machine.checkpoint(snapshot, false).await.map(drop),
            None => self.runtime.copy_kept(id, snapshot).await,
        };
        copied.map_err(failed("copying the disk of a paused sandbox"))
    }
}
