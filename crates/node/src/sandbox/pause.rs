//! Into a pause, and to the end.
use std::sync::Arc;
use std::time::SystemTime;

use model::{BuildId, ExecutionId, KillReason, PauseMode, SandboxId};
use ports::node::{HeldState, NodeError, PauseOutcome};
use ports::runtime::Disk;

use crate::envd;
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
            HeldState::Paused(paused, kept) if paused == into => {
                return Ok(PauseOutcome {
                    mode: kept,
                    envd_unresponsive: false,
                });
            }
            state => return Err(NodeError::Busy(name(state))),
        }
        let machine = sandbox.machine().ok_or(NodeError::Unknown)?;
        let envd_unresponsive = !envd::is_healthy(&*machine).await;
        self.fetch_lines(sandbox).await;
        self.set_state(sandbox, HeldState::Pausing(into, mode))?;
        failpoint::reach("node/pausing-written");
        let paused = match mode {
            PauseMode::Full => machine.freeze().await,
            PauseMode::Filesystem => {
                let _ = envd::shut_down(&*machine).await;
                failpoint::reach("node/shut-down-to-pause");
                machine.stop(Disk::Keep).await
            }
        };
        failpoint::reach("node/machine-paused");
        if let Err(error) = paused {
            if mode == PauseMode::Full {
                let _ = machine.thaw().await;
            }
            self.set_state(sandbox, HeldState::Running)?;
            return Err(failed("pausing the machine")(error));
        }
        if mode == PauseMode::Filesystem {
            sandbox.now().machine = None;
        }
        sandbox.lines().say(
            SystemTime::now(),
            ports::Level::Info,
            "the sandbox is paused".to_owned(),
        );
        self.set_state(sandbox, HeldState::Paused(into, mode))?;
        failpoint::reach("node/paused-written");
        sandbox.nudge.notify_waiters();
        Ok(PauseOutcome {
            mode,
            envd_unresponsive,
        })
    }

    /// Ends whatever there is of a sandbox.
    pub(crate) async fn end(self: &Arc<Self>, id: SandboxId, why: KillReason) -> Result<(), NodeError> {
        let Some(sandbox) = self.find(id) else {
            return self
                .runtime
                .discard(id)
                .await
                .map_err(failed("discarding a disk"));
        };
        let _turn = sandbox.turn.lock().await;
        self.end_in_turn(&sandbox, why).await
    }

    /// For whoever holds the sandbox's turn.
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
        sandbox.now().entry.state = HeldState::Stopping;
        self.journal.remove(id);
        failpoint::reach("node/journal-removed");
        if let Some(machine) = sandbox.machine() {
            machine
                .stop(Disk::Discard)
                .await
                .map_err(failed("stopping the machine"))?;
        }
        failpoint::reach("node/machine-stopped");
        self.runtime
            .discard(id)
            .await
            .map_err(failed("discarding a disk"))?;
        self.forget(id, sandbox);
        sandbox.nudge.notify_waiters();
        Ok(())
    }

    pub(crate) fn set_state(&self, sandbox: &Sandbox, state: HeldState) -> Result<(), NodeError> {
        let mut now = sandbox.now();
        let entry = crate::journal::Entry {
            state,
            ..now.entry.clone()
        };
        self.write(&entry)?;
        now.entry = entry;
        Ok(())
    }
}
