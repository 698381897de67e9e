//! One sandbox on this node.
pub(crate) mod bring_up;
pub(crate) mod deadline;
pub(crate) mod pause;

use std::sync::{Arc, Mutex, MutexGuard};

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
    /// There while it runs, and while it is frozen.
    pub(crate) machine: Option<Arc<dyn Machine>>,
}

impl Sandbox {
    pub(crate) fn new(entry: Entry, machine: Option<Arc<dyn Machine>>) -> Arc<Self> {
        Arc::new(Self {
            turn: tokio::sync::Mutex::new(()),
            now: Mutex::new(Now { entry, machine }),
            nudge: Notify::new(),
            lines: Mutex::default(),
            history: Mutex::default(),
        })
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
