//! One sandbox on this node.
pub(crate) mod bring_up;
pub(crate) mod deadline;
pub(crate) mod pause;

use std::sync::{Arc, Mutex, MutexGuard};

use model::{KillReason, SandboxId};
use ports::Machine;
use ports::node::{Held, HeldState};
use tokio::sync::Notify;

use crate::history::History;
use crate::journal::Entry;
use crate::lines::Lines;

/// A sandbox that this node holds.
pub(crate) struct Sandbox {
    /// Whoever changes it holds this, from the decision to the journal.
    pub(crate) turn: tokio::sync::Mutex<()>,
    now: Mutex<Now>,
    /// Its deadline or its life has changed.
    pub(crate) nudge: Notify,
    pub(crate) lines: Mutex<Lines>,
    pub(crate) history: Mutex<History>,
}

/// What is true of it.
pub(crate) struct Now {
    pub(crate) entry: Entry,
    /// There while it runs, while it is frozen, and until nothing is left of it. Whoever puts one here has it driven.
    pub(crate) machine: Option<Arc<dyn Machine>>,
    /// Why it is being ended: the first reason is the one that is kept.
    pub(crate) ending: Option<KillReason>,
}

impl Sandbox {
    pub(crate) fn new(entry: Entry, machine: Option<Arc<dyn Machine>>) -> Arc<Self> {
        Arc::new(Self {
            turn: tokio::sync::Mutex::new(()),
            now: Mutex::new(Now {
                entry,
                machine,
                ending: None,
            }),
            nudge: Notify::new(),
            lines: Mutex::default(),
            history: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> SandboxId {
        self.now().entry.order.sandbox
    }

    /// What is true now. Not to be held across an await.
    pub(crate) fn now(&self) -> MutexGuard<'_, Now> {
        self.now
            .lock()
            .expect("nothing panics while it holds a sandbox's state")
    }

    pub(crate) fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("nothing panics while it holds a log")
    }

    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history
            .lock()
            .expect("nothing panics while it holds samples")
    }

    pub(crate) fn machine(&self) -> Option<Arc<dyn Machine>> {
        self.now().machine.clone()
    }

    /// Nothing of its machine is left but, perhaps, the disk.
    pub(crate) fn let_go(&self) {
        self.now().machine = None;
        self.nudge.notify_waiters();
    }

    pub(crate) fn state(&self) -> HeldState {
        self.now().entry.state
    }

    pub(crate) fn held(&self) -> Held {
        let now = self.now();
        Held {
            order: now.entry.order.clone(),
            state: now.entry.state,
        }
    }
}

/// One word for people.
pub(crate) fn name(state: HeldState) -> &'static str {
    match state {
        HeldState::Starting => "starting",
        HeldState::Running => "running",
        HeldState::Pausing(..) => "pausing",
        HeldState::Paused(..) => "paused",
        HeldState::Stopping => "being ended",
    }
}
