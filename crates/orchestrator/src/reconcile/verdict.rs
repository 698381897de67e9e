//! What a node holds against what is stored, as one pure table.
use std::time::SystemTime;

use model::{BuildId, Event, ExecutionId, KillReason, Origin, PauseMode, Phase, Sandbox};
use ports::node::{Held, HeldState};

/// What is to be done about one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Both say the same.
    Agreed,
    /// Its node is at work.
    Wait,
    /// It runs: it came up, or a pause or snapshot did not happen.
    Runs(Event),
    /// It did not come up.
    NotStarted,
    /// A reboot was stored and not begun: this execution still runs.
    Reboot(ExecutionId),
    /// It came up after it was given up.
    Adopt(ExecutionId),
    /// Its node has begun to pause it.
    Pausing(BuildId, PauseMode),
    /// Its node has paused it.
    Paused(BuildId, PauseMode),
    /// A kill is to be finished.
    Reap,
    /// Its node does not have it.
    Lost(KillReason),
}

/// What is to be done about `sandbox`, of which its node holds `held`. Both must be of the same moment.
pub(crate) fn verdict(sandbox: &Sandbox, held: Option<&Held>, now: SystemTime) -> Verdict {
    let held = held.map(|held| (held.order.execution, held.state));
    match sandbox.phase {
        Phase::Starting { at, from } => starting(at.execution, from, held),
        Phase::Running { at } => running(at.execution, held, lost(sandbox, now)),
        Phase::Snapshotting { at, .. } => match held {
            Some((execution, HeldState::Running)) if execution == at.execution => {
                Verdict::Runs(Event::Failed)
            }
            held => running(at.execution, held, lost(sandbox, now)),
        },
        Phase::Pausing { at, .. } => match held {
            // It was not asked, or it failed.
            Some((execution, HeldState::Running)) if execution == at.execution => {
                Verdict::Runs(Event::Failed)
            }
            Some((execution, HeldState::Pausing(..))) if execution == at.execution => Verdict::Wait,
            held => running(at.execution, held, lost(sandbox, now)),
        },
        Phase::Paused { snapshot, .. } => paused(snapshot, held),
        Phase::Killing { .. } => Verdict::Reap,
        Phase::Gone { .. } => Verdict::Agreed,
    }
}

/// Why a sandbox is not on its node any more. Nodes enforce deadlines while nobody listens.
fn lost(sandbox: &Sandbox, now: SystemTime) -> KillReason {
    if sandbox.end_at <= now {
        KillReason::Timeout
    } else {
        KillReason::NodeLost
    }
}

fn starting(execution: ExecutionId, from: Origin, held: Option<(ExecutionId, HeldState)>) -> Verdict {
    match (held, from) {
        (Some((present, HeldState::Running)), _) if present == execution => Verdict::Runs(Event::Ready),
        (Some((present, HeldState::Pausing(into, mode))), _) if present == execution => {
            Verdict::Pausing(into, mode)
        }
        (Some((_, HeldState::Starting | HeldState::Stopping)), _) => Verdict::Wait,
        // Only a restart begins from a sandbox that runs; the phase table names it after its own execution.
        (Some((old, HeldState::Running)), Origin::Snapshot { build, .. }) if build.0 == execution.0 => {
            Verdict::Reboot(old)
        }
        // Its time came before its node heard of the restart or the resume, or right after it came up.
        (Some((_, HeldState::Pausing(..))), Origin::Snapshot { .. }) => Verdict::Wait,
        (Some((_, HeldState::Paused(into, mode))), Origin::Snapshot { build, .. }) if into != build => {
            Verdict::Paused(into, mode)
        }
        _ => Verdict::NotStarted,
    }
}

fn running(execution: ExecutionId, held: Option<(ExecutionId, HeldState)>, lost: KillReason) -> Verdict {
    match held {
        Some((present, state)) if present == execution => match state {
            HeldState::Running => Verdict::Agreed,
            // Its node ends it by itself at its time, and where that fails it is not tried again.
            HeldState::Stopping if lost == KillReason::Timeout => Verdict::Lost(lost),
            HeldState::Starting | HeldState::Stopping => Verdict::Wait,
            HeldState::Pausing(into, mode) => Verdict::Pausing(into, mode),
            HeldState::Paused(into, mode) => Verdict::Paused(into, mode),
        },
        Some((_, HeldState::Stopping)) => Verdict::Wait,
        Some(_) | None => Verdict::Lost(lost),
    }
}

fn paused(snapshot: BuildId, held: Option<(ExecutionId, HeldState)>) -> Verdict {
    match held {
        Some((_, HeldState::Paused(into, _) | HeldState::Pausing(into, _))) if into == snapshot => {
            Verdict::Agreed
        }
        // A resume that took too long, and came up after all. It holds what the user made: it is not thrown away.
        Some((execution, HeldState::Running)) => Verdict::Adopt(execution),
        Some((_, HeldState::Starting | HeldState::Stopping | HeldState::Pausing(..))) => Verdict::Wait,
        // It was paused again, and nobody was told. It holds what the user made, whatever it is called.
        Some((_, HeldState::Paused(into, mode))) => Verdict::Paused(into, mode),
        None => Verdict::Lost(KillReason::NodeLost),
    }
}

#[cfg(test)]
mod tests;
