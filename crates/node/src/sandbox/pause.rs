//! Into a pause, and to the end.
use std::sync::Arc;
use std::time::SystemTime;

use model::{BuildId, ExecutionId, KillReason, Memory, PauseMode, SandboxId};
use ports::node::{HeldState, NodeError, PauseOutcome};
use ports::runtime::Disk;
use ports::{Machine, RuntimeError};

use crate::envd;
use crate::journal::{Entry, Kept};
use crate::node::LocalNode;
use crate::sandbox::bring_up::failed;
use crate::sandbox::{Sandbox, name};

impl LocalNode {
    /// Pauses an execution under a name. On failure it runs.
    pub(crate) async fn put_to_pause(
        self: &Arc<Self>,
        id: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        let sandbox = self.find(id).ok_or(NodeError::Unknown)?;
        let _turn = sandbox.turn.lock().await;
        self.pause_in_turn(&sandbox, execution, into, mode).await
    }

    /// For whoever holds the sandbox's turn.
    pub(crate) async fn pause_in_turn(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        let held = sandbox.held();
        if held.order.execution != execution {
            return Err(NodeError::Unknown);
        }
        match held.state {
            HeldState::Running => {}
            HeldState::Paused(paused, _) if paused == into => {
                return held.pause.ok_or(NodeError::Busy("paused"));
            }
            state => return Err(NodeError::Busy(name(state))),
        }
        let machine = sandbox.machine().ok_or(NodeError::Unknown)?;
        let envd_unresponsive = !envd::is_healthy(&*machine).await;
        self.fetch_lines(sandbox).await;
        let memory = match mode {
            PauseMode::Full if self.runtime.capabilities().durable_memory => Memory::Durable,
            PauseMode::Full => Memory::Volatile,
            PauseMode::Filesystem => Memory::None,
        };
        let kept = Kept {
            memory,
            envd_unresponsive,
        };
        self.change(sandbox, |entry| {
            entry.state = HeldState::Pausing(into, mode);
            entry.kept = Some(kept);
        })?;
        failpoint::reach("node/pausing-written");
        let paused = match mode {
            PauseMode::Full => self.keep_memory(sandbox, &*machine, into, kept).await,
            PauseMode::Filesystem => self.keep_disk(sandbox, &*machine, into).await,
        };
        // Whether it is paused or runs on: its deadline is another now.
        sandbox.nudge.notify_waiters();
        paused?;
        failpoint::reach("node/paused-written");
        sandbox.lines().say(
            SystemTime::now(),
            ports::Level::Info,
            "the sandbox is paused".to_owned(),
        );
        Ok(PauseOutcome {
            mode,
            memory: sandbox.now().entry.kept.map_or(memory, |kept| kept.memory),
            envd_unresponsive,
        })
    }

    /// Keeps memory on the disk, and where that cannot be, where it is.
    async fn keep_memory(
        &self,
        sandbox: &Sandbox,
        machine: &dyn Machine,
        into: BuildId,
        kept: Kept,
    ) -> Result<(), NodeError> {
        if kept.memory == Memory::Durable && self.write_down(sandbox, machine, into).await? {
            return Ok(());
        }
        let frozen = machine.freeze().await.map_err(failed("pausing the machine"));
        failpoint::reach("node/machine-paused");
        let kept = frozen.and_then(|()| {
            self.change(sandbox, |entry| {
                entry.state = HeldState::Paused(into, PauseMode::Full);
                entry.stay_in_memory();
            })
        });
        if kept.is_err() {
            // What is not written is not paused: a restart would find it running.
            if let Err(error) = machine.thaw().await {
                tracing::error!(sandbox = %sandbox.id(), error = &error as &dyn std::error::Error, "a sandbox that was not paused could not be thawed");
            }
            self.set_state_anyway(sandbox, HeldState::Running);
        }
        kept
    }

    /// Writes memory and disk down, and ends the machine. Whether it did: where it did not, the machine runs on.
    async fn write_down(
        &self,
        sandbox: &Sandbox,
        machine: &dyn Machine,
        into: BuildId,
    ) -> Result<bool, NodeError> {
        let paused = HeldState::Paused(into, PauseMode::Full);
        let quiet = sandbox.close_door().await;
        envd::quiesce(machine).await;
        failpoint::reach("node/quiet-to-pause");
        let error = match machine.hibernate().await {
            Ok(()) => {
                failpoint::reach("node/machine-hibernated");
                sandbox.let_go();
                // A restart that finds the disk, and that memory was meant to lie beside it, says the same.
                self.set_state_anyway(sandbox, paused);
                return Ok(true);
            }
            Err(error) => error,
        };
        drop(quiet);
        let id = sandbox.id();
        if machine.ended().borrow().is_none() {
            tracing::warn!(sandbox = %id, error = &error as &dyn std::error::Error, "the memory of a sandbox could not be written down; it stays in this machine's");
            // Its owner is told what concerns the sandbox; the rest is in the log of the node.
            let why = match &error {
                RuntimeError::CannotCheckpoint { why } => why,
                _ => "saving it failed; the error is in the server's log",
            };
            sandbox.lines().say(
                SystemTime::now(),
                ports::Level::Warn,
                format!("memory is kept only until this machine restarts: {why}"),
            );
            return Ok(false);
        }
        tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox died while it was written down; its disk is kept");
        self.change_anyway(sandbox, |entry| {
            entry.state = paused;
            entry.stay_in_memory();
        });
        sandbox.nudge.notify_waiters();
        Err(NodeError::Busy(name(paused)))
    }

    async fn keep_disk(
        &self,
        sandbox: &Sandbox,
        machine: &dyn Machine,
        into: BuildId,
    ) -> Result<(), NodeError> {
        let paused = HeldState::Paused(into, PauseMode::Filesystem);
        let _ = envd::shut_down(machine).await;
        failpoint::reach("node/shut-down-to-pause");
        self.stop_and_keep(sandbox, machine, HeldState::Running, paused)
            .await?;
        failpoint::reach("node/machine-paused");
        // A restart that finds the disk, and that it was meant to be paused, says the same.
        self.set_state_anyway(sandbox, paused);
        Ok(())
    }

    /// Stops a machine and keeps its disk. Where that fails, the sandbox is what it was `before`, unless its machine is
    /// dead: then its disk, wherever it is, is all that there is of it.
    pub(crate) async fn stop_and_keep(
        &self,
        sandbox: &Sandbox,
        machine: &dyn Machine,
        before: HeldState,
        disk_only: HeldState,
    ) -> Result<(), NodeError> {
        let Err(error) = machine.stop(Disk::Keep).await else {
            sandbox.let_go();
            return Ok(());
        };
        if machine.ended().borrow().is_none() {
            self.set_state_anyway(sandbox, before);
            sandbox.nudge.notify_waiters();
            return Err(failed("keeping the disk")(error));
        }
        tracing::error!(sandbox = %sandbox.id(), error = &error as &dyn std::error::Error, "a sandbox is dead and its disk could not be put away; it is tried again");
        self.set_state_anyway(sandbox, disk_only);
        sandbox.nudge.notify_waiters();
        Err(NodeError::Busy(name(disk_only)))
    }

    /// Ends whatever there is of a sandbox.
    pub(crate) async fn end(self: &Arc<Self>, id: SandboxId, why: KillReason) -> Result<(), NodeError> {
        let Some(sandbox) = self.find(id) else {
            return self.discard(id, why).await;
        };
        let _turn = sandbox.turn.lock().await;
        self.end_in_turn(&sandbox, why).await
    }

    /// Throws away what may be left of a sandbox that is not known.
    async fn discard(&self, id: SandboxId, why: KillReason) -> Result<(), NodeError> {
        if self.unreadable().contains(&id) {
            // That we do not know it is why others think that it is lost.
            if why != KillReason::Requested {
                tracing::warn!(sandbox = %id, %why, "a sandbox whose entry is not understood is over; its disk is kept");
                return Ok(());
            }
            self.journal.remove(id);
            self.unreadable().remove(&id);
        }
        self.runtime
            .discard(id)
            .await
            .map_err(failed("discarding a disk"))
    }

    /// For whoever holds the sandbox's turn. Where it fails and there is a machine, the sandbox's driver tries again.
    #[tracing::instrument(level = "debug", name = "node.kill", skip_all, fields(node = %ports::Node::id(&**self), sandbox, execution, %why))]
    pub(crate) async fn end_in_turn(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        why: KillReason,
    ) -> Result<(), NodeError> {
        let order = sandbox.held().order;
        let id = order.sandbox;
        tracing::Span::current()
            .record("sandbox", id.as_str())
            .record("execution", order.execution.as_str());
        tracing::info!(sandbox = %id, %why, "ending a sandbox");
        // Not dialled any more, and not restored by a restart.
        {
            let mut now = sandbox.now();
            now.entry.state = HeldState::Stopping;
            now.ending.get_or_insert(why);
        }
        self.journal.remove(id);
        failpoint::reach("node/journal-removed");
        let ended = self.leave_nothing(id, sandbox.machine()).await;
        if ended.is_ok() {
            self.forget(id, sandbox);
            sandbox.let_go();
        } else {
            sandbox.nudge.notify_waiters();
        }
        ended
    }

    async fn leave_nothing(&self, id: SandboxId, machine: Option<Arc<dyn Machine>>) -> Result<(), NodeError> {
        if let Some(machine) = machine {
            machine
                .stop(Disk::Discard)
                .await
                .map_err(failed("stopping the machine"))?;
        }
        failpoint::reach("node/machine-stopped");
        self.runtime
            .discard(id)
            .await
            .map_err(failed("discarding a disk"))
    }

    /// Changes an entry, in the journal first, and not at all where that fails.
    pub(crate) fn change(&self, sandbox: &Sandbox, edit: impl FnOnce(&mut Entry)) -> Result<(), NodeError> {
        let mut now = sandbox.now();
        let mut entry = now.entry.clone();
        edit(&mut entry);
        self.write(&entry)?;
        now.entry = entry;
        Ok(())
    }

    /// Notes what is true already, whatever the journal says: what it was told before leads a restart to the same.
    pub(crate) fn change_anyway(&self, sandbox: &Sandbox, edit: impl FnOnce(&mut Entry)) {
        let mut now = sandbox.now();
        edit(&mut now.entry);
        if let Err(error) = self.write(&now.entry) {
            let (id, state) = (now.entry.order.sandbox, name(now.entry.state));
            tracing::error!(sandbox = %id, state, error = &error as &dyn std::error::Error, "the state of a sandbox was not written");
        }
    }

    /// Changes a state, as [`LocalNode::change`] does.
    pub(crate) fn set_state(&self, sandbox: &Sandbox, state: HeldState) -> Result<(), NodeError> {
        self.change(sandbox, |entry| entry.state = state)
    }

    /// Notes a state, as [`LocalNode::change_anyway`] does.
    pub(crate) fn set_state_anyway(&self, sandbox: &Sandbox, state: HeldState) {
        self.change_anyway(sandbox, |entry| entry.state = state);
    }
}
