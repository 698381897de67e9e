//! The last events of a node, numbered, so that who lost his connection hears on where he was.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ports::{Node, NodeEvent};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a busy node tells in some minutes. Who was away for longer is told that he missed something.
pub(crate) const KEPT_MAX: usize = 4096;

/// The last events of a node.
pub(crate) struct Ring {
    /// Drawn at the start of this process: numbers of another life say nothing.
    pub(crate) life: u64,
    inner: Mutex<Inner>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    /// The number of the event before the oldest that is kept.
    before: u64,
    kept: VecDeque<NodeEvent>,
}

impl Inner {
    fn newest(&self) -> u64 {
        self.before + self.kept.len() as u64
    }
}

impl Ring {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            life: rand::random(),
            inner: Mutex::default(),
            newest: watch::channel(0).0,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what the node tells, until `stop`, or the node is gone.
    pub(crate) async fn fill(self: Arc<Self>, node: Arc<dyn Node>, stop: CancellationToken) {
        let mut events = node.events();
        drop(node);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Ok(event) => self.push(event),
                Err(RecvError::Lagged(missed)) => self.skip(missed),
                Err(RecvError::Closed) => return,
            }
        }
    }

    pub(crate) fn push(&self, event: NodeEvent) {
        let mut inner = self.inner();
        if inner.kept.len() == KEPT_MAX {
            inner.kept.pop_front();
            inner.before += 1;
        }
        inner.kept.push_back(event);
        self.newest.send_replace(inner.newest());
    }

    /// Events were lost on the way here: those who listen are told, as everything before them is forgotten.
    pub(crate) fn skip(&self, missed: u64) {
        let mut inner = self.inner();
        inner.before = inner.newest() + missed;
        inner.kept.clear();
        self.newest.send_replace(inner.newest());
    }

    /// The number of the newest event.
    pub(crate) fn newest(&self) -> u64 {
        self.inner().newest()
    }

    /// Changes when there is another event.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// The event after this number, with its own: or, where it is not to be had, the number from which on they are.
    pub(crate) fn after(&self, number: u64) -> After {
        let inner = self.inner();
        if number > inner.newest() || number < inner.before {
            return After::Gap(inner.newest());
        }
        let index = usize::try_from(number - inner.before).unwrap_or(usize::MAX);
        match inner.kept.get(index) {
            Some(event) => After::Event(number + 1, event.clone()),
            None => After::Nothing,
        }
    }
}

/// What comes after an event.
#[derive(Debug, PartialEq)]
pub(crate) enum After {
    /// This one, with its number.
    Event(u64, NodeEvent),
    /// Nothing yet.
    Nothing,
    /// What came after it is not kept; the newest is of this number.
    Gap(u64),
}

#[cfg(test)]
mod tests {
    use model::{ExecutionId, KillReason, SandboxId};

    use super::*;

    fn event() -> NodeEvent {
        NodeEvent::Ended(SandboxId::random(), ExecutionId::random(), KillReason::Timeout)
    }

    #[test]
    fn who_comes_back_hears_on_where_he_was() {
        let ring = Ring::new();
        let events = [event(), event(), event()];
        events.iter().for_each(|event| ring.push(event.clone()));
        assert_eq!(ring.after(0), After::Event(1, events[0].clone()));
        assert_eq!(ring.after(2), After::Event(3, events[2].clone()));
        assert_eq!(ring.after(3), After::Nothing);
        assert_eq!(ring.newest(), 3);
    }

    #[test]
    fn who_was_away_for_too_long_is_told() {
        let ring = Ring::new();
        (0..KEPT_MAX + 2).for_each(|_| ring.push(event()));
        let newest = KEPT_MAX as u64 + 2;
        assert_eq!(ring.after(0), After::Gap(newest));
        assert_eq!(ring.after(1), After::Gap(newest));
        assert!(matches!(ring.after(2), After::Event(3, _)));
        assert_eq!(ring.after(newest + 1), After::Gap(newest));
    }

    #[test]
    fn what_was_lost_on_the_way_is_a_gap_for_all() {
        let ring = Ring::new();
        ring.push(event());
        ring.skip(7);
        assert_eq!(ring.newest(), 8);
        assert_eq!(ring.after(1), After::Gap(8));
        let next = event();
        ring.push(next.clone());
        assert_eq!(ring.after(8), After::Event(9, next));
    }
}
