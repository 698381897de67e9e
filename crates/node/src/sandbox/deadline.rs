//! What happens to a sandbox without anybody asking: the end of its time, the end of its machine, and what could not be
//! cleared away at once.
//!
//! ```text
//!   what is true of it                            its driver waits for
//!   running                                       its deadline, the end of its machine
//!   on its way, or frozen                         the end of its machine
//!   being ended, or paused with a dead machine    another try
//!   another execution, or without this machine    nothing: it is over
//! ```
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{BuildId, ExecutionId, KillReason, Memory, OnTimeout, PauseMode};
use ports::Machine;
use ports::node::{HeldState, NodeEvent, PauseOutcome};
use ports::runtime::{Disk, Ended};

use crate::node::LocalNode;
use crate::sandbox::Sandbox;

/// After an auto-pause that failed, the sandbox runs on for this long, and it is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// What could not be cleared away is tried again after this long, then twice that, …
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// … and at last this often.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Between the news that an execution is about to end and its end. Withdrawing its route, and cutting its streams, takes
/// those who hear it less than a millisecond; who is as late as this finds streams that seem to end well.
const LEAD: Duration = Duration::from_millis(50);

/// What a driver waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    Deadline(SystemTime),
    Life,
    Retry,
    Over,
}

/// One execution, on one machine.
#[derive(Clone)]
struct Watched {
    sandbox: Arc<Sandbox>,
    execution: ExecutionId,
    machine: Arc<dyn Machine>,
}

impl Watched {
    fn watch(&self) -> Watch {
        let now = self.sandbox.now();
        let is_its = now
            .machine
            .as_ref()
            .is_some_and(|machine| Arc::ptr_eq(machine, &self.machine));
        if !is_its || now.entry.order.execution != self.execution {
            return Watch::Over;
        }
        match now.entry.state {
            HeldState::Running => Watch::Deadline(now.entry.order.deadline),
            HeldState::Stopping | HeldState::Paused(_, PauseMode::Filesystem) => Watch::Retry,
            HeldState::Paused(..) if self.machine.ended().borrow().is_some() => Watch::Retry,
            HeldState::Starting | HeldState::Pausing(..) | HeldState::Paused(..) => Watch::Life,
        }
    }
}

impl LocalNode {
    /// Watches over the present execution until it is over.
    pub(crate) fn drive(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let (execution, machine) = {
            let now = sandbox.now();
            (now.entry.order.execution, now.machine.clone())
        };
        let Some(machine) = machine else { return };
        let (node, sandbox) = (Arc::downgrade(self), Arc::clone(sandbox));
        let watched = Watched {
            sandbox,
            execution,
            machine,
        };
        tokio::spawn(async move {
            let mut ended = watched.machine.ended();
            let (mut is_dead, mut retry_after) = (false, RETRY_FIRST);
            loop {
                // From before the look, so that no change in between is missed.
                let nudged = watched.sandbox.nudge.notified();
                let Some(now) = node.upgrade().map(|node| node.clock.now()) else {
                    return;
                };
                let watch = watched.watch();
                let wait = match watch {
                    Watch::Over => return,
                    Watch::Life => None,
                    Watch::Deadline(at) => Some(at.duration_since(now).unwrap_or_default()),
                    Watch::Retry => Some(retry_after),
                };
                let how = tokio::select! {
                    () = nudged => continue,
                    () = after(wait) => None,
                    how = ended.wait_for(Option::is_some), if !is_dead => {
                        is_dead = true;
                        Some(how.ok().and_then(|how| *how))
                    }
                };
                let Some(node) = node.upgrade() else { return };
                match (how, watch) {
                    (Some(Some(Ended::Died)), _) => node.machine_died(&watched).await,
                    (Some(_), _) => {}
                    (None, Watch::Retry) => {
                        retry_after = RETRY_MAX.min(retry_after * 2);
                        node.try_again(&watched).await;
                    }
                    (None, _) => node.time_is_over(&watched).await,
                }
            }
        });
    }

    async fn time_is_over(self: &Arc<Self>, watched: &Watched) {
        let (sandbox, execution) = (&watched.sandbox, watched.execution);
        let _turn = sandbox.turn.lock().await;
        let now = self.clock.now();
        if !matches!(watched.watch(), Watch::Deadline(at) if at <= now) {
            return;
        }
        let order = sandbox.held().order;
        let id = order.sandbox;
        let mode = match order.lifecycle.on_timeout {
            OnTimeout::Kill => return self.end_unasked(watched, KillReason::Timeout).await,
            OnTimeout::Pause(mode) => mode,
        };
        let into = BuildId::random();
        self.tell(NodeEvent::Pausing(id, execution, into, mode));
        // A machine that is only frozen keeps its connections.
        if mode == PauseMode::Filesystem || self.runtime.capabilities().durable_memory {
            tokio::time::sleep(LEAD).await;
        }
        let paused = self.pause_in_turn(sandbox, execution, into, mode).await;
        let event = match (paused, sandbox.state()) {
            (Ok(outcome), _) => NodeEvent::Paused(id, execution, into, outcome),
            (Err(error), HeldState::Running) => {
                tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox whose time is over could not be paused; it is tried again");
                self.postpone(sandbox);
                NodeEvent::PauseFailed(id, execution, into)
            }
            // Its machine is dead, and its disk is what there is.
            (Err(_), _) => {
                let outcome = sandbox.held().pause.unwrap_or(PauseOutcome {
                    mode,
                    memory: Memory::None,
                    envd_unresponsive: false,
                });
                NodeEvent::Paused(id, execution, into, outcome)
            }
        };
        self.tell(event);
    }

    /// Gives a running sandbox more time, also where that cannot be written.
    fn postpone(&self, sandbox: &Sandbox) {
        sandbox.now().entry.order.deadline = self.clock.now() + TRY_AGAIN_AFTER;
        self.set_state_anyway(sandbox, HeldState::Running);
    }

    async fn machine_died(self: &Arc<Self>, watched: &Watched) {
        let _turn = watched.sandbox.turn.lock().await;
        // Whoever had the turn before may have paused or ended it, dead or not.
        if watched.watch() == Watch::Over {
            return;
        }
        let (id, execution) = (watched.sandbox.id(), watched.execution);
        tracing::warn!(sandbox = %id, %execution, "the first process of a sandbox ended");
        match watched.sandbox.state() {
            // If its memory was kept, that is gone; its disk is worth keeping, and a resume says what happened.
            HeldState::Paused(..) => self.keep_disk_of_dead(watched).await,
            HeldState::Stopping => {}
            HeldState::Starting | HeldState::Running | HeldState::Pausing(..) => {
                self.end_unasked(watched, KillReason::Crashed).await;
            }
        }
    }

    /// Clears away what could not be cleared away before.
    async fn try_again(self: &Arc<Self>, watched: &Watched) {
        let _turn = watched.sandbox.turn.lock().await;
        if watched.watch() != Watch::Retry {
            return;
        }
        if watched.sandbox.state() == HeldState::Stopping {
            let why = watched.sandbox.now().ending;
            self.end_and_tell(watched, why.unwrap_or(KillReason::Crashed))
                .await;
        } else {
            self.keep_disk_of_dead(watched).await;
        }
    }

    async fn keep_disk_of_dead(&self, watched: &Watched) {
        match watched.machine.stop(Disk::Keep).await {
            Ok(()) => watched.sandbox.let_go(),
            Err(error) => {
                let id = watched.sandbox.id();
                tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "the disk of a paused sandbox could not be put away; it is tried again");
            }
        }
    }

    /// Ends an execution that nobody asked to end: unreachable first.
    async fn end_unasked(self: &Arc<Self>, watched: &Watched, why: KillReason) {
        let id = {
            let mut now = watched.sandbox.now();
            now.entry.state = HeldState::Stopping;
            now.ending.get_or_insert(why);
            now.entry.order.sandbox
        };
        self.tell(NodeEvent::Ending(id, watched.execution, why));
        tokio::time::sleep(LEAD).await;
        self.end_and_tell(watched, why).await;
    }

    async fn end_and_tell(self: &Arc<Self>, watched: &Watched, why: KillReason) {
        let id = watched.sandbox.id();
        match self.end_in_turn(&watched.sandbox, why).await {
            Ok(()) => self.tell(NodeEvent::Ended(id, watched.execution, why)),
            Err(error) => {
                tracing::error!(sandbox = %id, %why, error = &error as &dyn std::error::Error, "a sandbox could not be ended; it is tried again");
            }
        }
    }
}

async fn after(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
