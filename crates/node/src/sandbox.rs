//! One sandbox on this node.
pub(crate) mod bring_up;
mod checkpoint;
pub(crate) mod deadline;
pub(crate) mod pause;
mod root;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{BuildId, KillReason, SandboxId};
use ports::Machine;
use ports::node::{Held, HeldState};
use tokio::sync::{Notify, RwLockReadGuard, RwLockWriteGuard};

use crate::history::History;
use crate::journal::Entry;
use crate::lines::Lines;

/// Dialling takes less than a millisecond; envd's log and its health are asked for within two seconds.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// A sandbox that this node holds.
pub(crate) struct Sandbox {
    /// Whoever changes it holds this, from the decision to the journal.
    pub(crate) turn: tokio::sync::Mutex<()>,
    now: Mutex<Now>,
    /// Whoever speaks to its envd passes here; closed while its memory is written down, for connections cannot be.
    door: tokio::sync::RwLock<()>,
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
            door: tokio::sync::RwLock::new(()),
            nudge: Notify::new(),
            lines: Mutex::default(),
            history: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> SandboxId {
        self.now().entry.order.sandbox
    }

    /// Goes through the door to its envd and its ports, as soon as that is open.
    pub(crate) async fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.door.read().await
    }

    /// Closes the door until the guard is gone. Who is in it has a moment to leave: a guest that keeps somebody waiting
    /// keeps nobody from trying a copy, which says itself whether it can be taken.
    pub(crate) async fn close_door(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        tokio::time::timeout(LEAVE_WITHIN, self.door.write()).await.ok()
    }

    /// What it started from.
    pub(crate) fn build(&self) -> BuildId {
        self.now().entry.order.build
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

    /// Whether its memory lies on the disk, and in no machine.
    pub(crate) fn is_on_disk(&self) -> bool {
        let now = self.now();
        now.machine.is_none() && now.entry.is_on_disk()
    }

    pub(crate) fn state(&self) -> HeldState {
        self.now().entry.state
    }

    pub(crate) fn held(&self) -> Held {
        let now = self.now();
        Held {
            order: now.entry.order.clone(),
            state: now.entry.state,
            pause: now.entry.outcome(),
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
