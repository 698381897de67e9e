//! The life of a sandbox, as one table.
//!
//! ```text
//!                  Failed                      Failed (the snapshot is still there)
//!   Starting ───────────────▶ Killing    Starting(snapshot) ──▶ Paused
//!      │ Ready                   ▲              ▲ Resume          │ Kill
//!      ▼          Kill           │              └────────────────┤
//!   Running ─────────────────────┤                               ▼
//!    │  ▲ │ Pause                │ Reaped                        Gone
//!    │  │ └──────▶ Pausing ──────┼──▶ Gone       Sealed: Pausing ──▶ Paused
//!    ▼  │ Snapshotted            │
//!   Snapshotting ────────────────┘
//! ```
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{BuildId, ExecutionId, NodeId, PauseMode};

/// One incarnation on one node. Every start mints a new one, so a late message about an old execution is told
/// from news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seat {
    /// Where.
    pub node: NodeId,
    /// Which incarnation.
    pub execution: ExecutionId,
}

/// What an incarnation starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A fresh disk over a template.
    Template(BuildId),
    /// What a pause left.
    Snapshot {
        /// Names the pause.
        build: BuildId,
        /// What it kept.
        mode: PauseMode,
        /// The node that holds it.
        home: NodeId,
    },
}

/// Why a sandbox ended. The first reason is the one that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// A client asked for it.
    Requested,
    /// Its time was over.
    Timeout,
    /// It did not come up.
    StartFailed,
    /// Its first process ended by itself.
    Crashed,
    /// Its node is gone, or no longer knows it.
    NodeLost,
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KillReason::Requested => "it was killed on request",
            KillReason::Timeout => "it reached its end of life",
            KillReason::StartFailed => "it did not start",
            KillReason::Crashed => "its first process ended",
            KillReason::NodeLost => "its node no longer has it",
        })
    }
}

/// Where a sandbox is in its life; a phase holds exactly what is true in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Intent is stored, the node is at work.
    Starting {
        /// Where it will run.
        at: Seat,
        /// From what.
        from: Origin,
    },
    /// Usable.
    Running {
        /// Where it runs.
        at: Seat,
    },
    /// Usable after a moment; a copy is being taken.
    Snapshotting {
        /// Where it runs.
        at: Seat,
        /// The copy's name.
        into: BuildId,
    },
    /// On its way to [`Phase::Paused`]; commits only when what it keeps is kept.
    Pausing {
        /// Where it runs.
        at: Seat,
        /// The pause's name.
        into: BuildId,
        /// What is kept.
        mode: PauseMode,
    },
    /// No seat: nothing to route to, nothing that runs.
    Paused {
        /// The pause's name.
        snapshot: BuildId,
        /// What was kept.
        mode: PauseMode,
        /// Who holds it.
        home: NodeId,
    },
    /// On its way to [`Phase::Gone`]; unreachable already.
    Killing {
        /// Where its remains are.
        at: Seat,
        /// Why.
        why: KillReason,
    },
    /// Over; kept for a while so that answers can say why.
    Gone {
        /// Why.
        why: KillReason,
    },
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The node says that it is usable.
    Ready,
    /// The step under way failed, and left what was there before it.
    Failed,
    /// A pause begins.
    Pause(BuildId, PauseMode),
    /// What the pause keeps is kept.
    Sealed,
    /// A snapshot begins.
    Snapshot(BuildId),
    /// The snapshot is taken.
    Snapshotted,
    /// A resume begins, with what is to be kept of the pause.
    Resume(Seat, PauseMode),
    /// A reboot from the same disk begins.
    Restart(Seat),
    /// The end begins.
    Kill(KillReason),
    /// Nothing of it is left on its node.
    Reaped,
}

/// The event does not fit the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {} does not take {event:?}", phase.name())]
pub struct Refused {
    /// The phase, unchanged.
    pub phase: Phase,
    /// What did not fit.
    pub event: Event,
}

/// What clients are told of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Usable, or on its way to be.
    Running,
    /// Paused, or on its way to be or from it.
    Paused,
}

impl Phase {
    /// The phase after `event`.
    ///
    /// # Errors
    /// [`Refused`] where no arrow of the table fits; the phase stays as it is.
    pub fn on(self, event: Event) -> Result<Phase, Refused> {
        use Event as E;
        use Phase::{Gone, Killing, Paused, Pausing, Running, Snapshotting, Starting};
        Ok(match (self, event) {
            (Starting { at, .. }, E::Ready) => Running { at },
            // A failed resume costs nothing: what was paused is still there.
            (
                Starting {
                    from: Origin::Snapshot { build, mode, home },
                    ..
                },
                E::Failed,
            ) => Paused {
                snapshot: build,
                mode,
                home,
            },
            (Starting { at, .. }, E::Failed) => Killing {
                at,
                why: KillReason::StartFailed,
            },
            (Running { at }, E::Pause(into, mode)) => Pausing { at, into, mode },
            (Running { at }, E::Snapshot(into)) => Snapshotting { at, into },
            (Running { at: old }, E::Restart(at)) => {
                let from = Origin::Snapshot {
                    build: BuildId(at.execution.0),
                    mode: PauseMode::Filesystem,
                    home: old.node,
                };
                Starting { at, from }
            }
            (Snapshotting { at, .. }, E::Snapshotted | E::Failed) => Running { at },
            (Pausing { at, into, mode }, E::Sealed) => Paused {
                snapshot: into,
                mode,
                home: at.node,
            },
            // Until a pause commits, the sandbox is running.
            (Pausing { at, .. }, E::Failed) => Running { at },
            (Paused { snapshot, mode, home }, E::Resume(at, keep)) => {
                let mode = if keep == PauseMode::Filesystem { keep } else { mode };
                Starting {
                    at,
                    from: Origin::Snapshot {
                        build: snapshot,
                        mode,
                        home,
                    },
                }
            }
            // A paused sandbox has remains on its home node: they are reaped like any other's.
            (Paused { snapshot, home, .. }, E::Kill(why)) => Killing {
                at: Seat {
                    node: home,
                    execution: ExecutionId(snapshot.0),
                },
                why,
            },
            // Killing is idempotent, and the first reason is the one that is kept.
            (done @ (Killing { .. } | Gone { .. }), E::Kill(_)) => done,
            (
                Starting { at, .. } | Running { at } | Snapshotting { at, .. } | Pausing { at, .. },
                E::Kill(why),
            ) => Killing { at, why },
            (Killing { why, .. } | Gone { why }, E::Reaped) => Gone { why },
            (phase, event) => return Err(Refused { phase, event }),
        })
    }

    /// What clients see; `None` for a sandbox that is not there for them (yet, or any more).
    #[must_use]
    pub fn state(&self) -> Option<State> {
        match self {
            Phase::Running { .. } | Phase::Snapshotting { .. } => Some(State::Running),
            Phase::Pausing { .. }
            | Phase::Paused { .. }
            | Phase::Starting {
                from: Origin::Snapshot { .. },
                ..
            } => Some(State::Paused),
            Phase::Starting { .. } | Phase::Killing { .. } | Phase::Gone { .. } => None,
        }
    }

    /// The incarnation that holds resources of a node now, if any.
    #[must_use]
    pub fn seat(&self) -> Option<Seat> {
        match *self {
            Phase::Starting { at, .. }
            | Phase::Running { at }
            | Phase::Snapshotting { at, .. }
            | Phase::Pausing { at, .. }
            | Phase::Killing { at, .. } => Some(at),
            Phase::Paused { .. } | Phase::Gone { .. } => None,
        }
    }

    /// Whether traffic may be sent to it.
    #[must_use]
    pub fn is_routable(&self) -> bool {
        matches!(self, Phase::Running { .. } | Phase::Snapshotting { .. })
    }

    /// Whether an operation is under way that ends by itself.
    #[must_use]
    pub fn is_in_transition(&self) -> bool {
        matches!(
            self,
            Phase::Starting { .. }
                | Phase::Snapshotting { .. }
                | Phase::Pausing { .. }
                | Phase::Killing { .. }
        )
    }

    /// One lower-case word, for logs, metrics and messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Phase::Starting { .. } => "starting",
            Phase::Running { .. } => "running",
            Phase::Snapshotting { .. } => "snapshotting",
            Phase::Pausing { .. } => "pausing",
            Phase::Paused { .. } => "paused",
            Phase::Killing { .. } => "killing",
            Phase::Gone { .. } => "gone",
        }
    }
}

#[cfg(test)]
mod tests;
