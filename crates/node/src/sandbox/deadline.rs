//! What happens to a running sandbox without anybody asking: the end of its time, the end of its machine.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{BuildId, ExecutionId, KillReason, OnTimeout, PauseMode};
use ports::Machine;
use ports::node::{HeldState, NodeEvent};
use ports::runtime::{Disk, Ended};

use crate::node::LocalNode;
use crate::sandbox::Sandbox;

/// After an auto-pause that failed, the sandbox runs on for this long, and it is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What ended the waiting.
enum Woken {
    Deadline,
    MachineEnded(Ended),
    Changed,
}

impl LocalNode {
    /// Watches over the present execution until it is over.
    pub(crate) fn drive(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let (node, sandbox) = (Arc::downgrade(self), Arc::clone(sandbox));
        let (execution, machine) = {
            let now = sandbox.now();
            (now.entry.order.execution, now.machine.clone())
        };
        let Some(machine) = machine else { return };
        tokio::spawn(async move {
            loop {
                let nudged = sandbox.nudge.notified();
                let woken = wait(&sandbox, execution, &*machine, nudged).await;
                let Some(node) = node.upgrade() else { return };
                let held = sandbox.held();
                if held.order.execution != execution {
                    return;
                }
                match woken {
                    Woken::Changed => {
                        if matches!(held.state, HeldState::Stopping) {
                            return;
                        }
                    }
                    Woken::MachineEnded(Ended::Stopped) => return,
                    Woken::MachineEnded(Ended::Died) => {
                        return node.machine_died(&sandbox, execution, &*machine).await;
                    }
                    Woken::Deadline => node.time_is_over(&sandbox, execution).await,
                }
            }
        });
    }

    async fn time_is_over(self: &Arc<Self>, sandbox: &Arc<Sandbox>, execution: ExecutionId) {
        let _turn = sandbox.turn.lock().await;
        let held = sandbox.held();
        let still = held.order.execution == execution
            && held.state == HeldState::Running
            && held.order.deadline <= SystemTime::now();
        if !still {
            return;
        }
        let id = held.order.sandbox;
        match held.order.lifecycle.on_timeout {
            OnTimeout::Kill => {
                if let Err(error) = self.end_in_turn(sandbox, KillReason::Timeout).await {
                    tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox whose time is over could not be ended; it is tried again");
                    return self.postpone(sandbox);
                }
                self.tell(NodeEvent::Ended(id, execution, KillReason::Timeout));
            }
            OnTimeout::Pause(mode) => {
                let into = BuildId::random();
                self.tell(NodeEvent::Pausing(id, execution, into, mode));
                match self.pause_in_turn(sandbox, execution, into, mode).await {
                    Ok(outcome) => self.tell(NodeEvent::Paused(id, execution, into, outcome)),
                    Err(error) => {
                        tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox whose time is over could not be paused; it is tried again");
                        self.postpone(sandbox);
                        self.tell(NodeEvent::PauseFailed(id, execution, into));
                    }
                }
            }
        }
    }

    fn postpone(&self, sandbox: &Sandbox) {
        let mut now = sandbox.now();
        now.entry.order.deadline = SystemTime::now() + TRY_AGAIN_AFTER;
        let _ = self.write(&now.entry);
    }

    async fn machine_died(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        execution: ExecutionId,
        machine: &dyn Machine,
    ) {
        let _turn = sandbox.turn.lock().await;
        let held = sandbox.held();
        if held.order.execution != execution {
            return;
        }
        let id = held.order.sandbox;
        tracing::warn!(sandbox = %id, %execution, "the first process of a sandbox ended");
        match held.state {
            // Its memory is gone; its disk is worth keeping, and a resume says what happened.
            HeldState::Paused(build, PauseMode::Full) => {
                let kept = machine.stop(Disk::Keep).await;
                let mut now = sandbox.now();
                now.machine = None;
                now.entry.memory_lost = true;
                now.entry.state = HeldState::Paused(build, PauseMode::Full);
                let _ = self.write(&now.entry);
                if let Err(error) = kept {
                    tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "the disk of a paused sandbox could not be kept");
                }
            }
            HeldState::Stopping => {}
            _ => {
                let ended = self.end_in_turn(sandbox, KillReason::Crashed).await;
                if let Err(error) = ended {
                    tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "what is left of a sandbox could not be cleared");
                }
                self.tell(NodeEvent::Ended(id, execution, KillReason::Crashed));
            }
        }
    }
}

async fn wait(
    sandbox: &Sandbox,
    execution: ExecutionId,
    machine: &dyn Machine,
    nudged: impl Future<Output = ()>,
) -> Woken {
    let left = {
        let now = sandbox.now();
        let runs = now.entry.state == HeldState::Running && now.entry.order.execution == execution;
        runs.then(|| {
            now.entry
                .order
                .deadline
                .duration_since(SystemTime::now())
                .unwrap_or_default()
        })
    };
    let deadline = async {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let mut ended = machine.ended();
    tokio::select! {
        () = nudged => Woken::Changed,
        () = deadline => Woken::Deadline,
        how = ended.wait_for(Option::is_some) => match how.map(|how| *how) {
            Ok(Some(how)) => Woken::MachineEnded(how),
            _ => Woken::MachineEnded(Ended::Stopped),
        },
    }
}
