//! Streams that end together.
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Everything that must stop at once when its reason to be is gone: the streams of an execution, the connections
/// of a listener. A [`Ticket`] costs one atomic exchange per poll, so that it can sit on the hot path.
#[derive(Default)]
pub(crate) struct Cuts {
    fired: AtomicBool,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    next: u64,
    wakers: HashMap<u64, Arc<AtomicWaker>>,
}

/// One stream's place among [`Cuts`].
pub(crate) struct Ticket {
    cuts: Arc<Cuts>,
    waker: Arc<AtomicWaker>,
    key: u64,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The cut has come.
    Cut,
    /// All are taken.
    Taken,
}

const UNPOISONED: &str = "nothing panics while it holds the tickets";

impl Cuts {
    /// A place, unless it is too late for one.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Ticket> {
        self.enter_within(usize::MAX).ok()
    }

    /// One of `places`, unless it is too late for one.
    pub(crate) fn enter_within(self: &Arc<Self>, places: usize) -> Result<Ticket, NoPlace> {
        let waker = Arc::new(AtomicWaker::new());
        let key = {
            let mut live = self.live.lock().expect(UNPOISONED);
            // Read under the lock under which `fire` looks for whom to wake.
            if self.fired() {
                return Err(NoPlace::Cut);
            }
            if live.wakers.len() >= places {
                return Err(NoPlace::Taken);
            }
            live.next += 1;
            let key = live.next;
            live.wakers.insert(key, Arc::clone(&waker));
            key
        };
        Ok(Ticket {
            cuts: Arc::clone(self),
            waker,
            key,
        })
    }

    /// Cuts everybody, for good. Returns how many there were.
    pub(crate) fn fire(&self) -> usize {
        let wakers: Vec<_> = {
            let live = self.live.lock().expect(UNPOISONED);
            self.fired.store(true, Ordering::SeqCst);
            live.wakers.values().cloned().collect()
        };
        for waker in &wakers {
            waker.wake();
        }
        wakers.len()
    }

    pub(crate) fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }
}

impl Ticket {
    /// Ready once the cut has come; wakes the task then.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_cut() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // Again: the cut may have come before the waker was there to be woken.
        if self.is_cut() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cuts.fired()
    }

    /// Waits for the cut.
    pub(crate) async fn cut(&self) {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cuts.live.lock().expect(UNPOISONED).wakers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cut_reaches_everybody_who_entered_and_nobody_enters_after() {
        let cuts = Arc::new(Cuts::default());
        let tickets: Vec<_> = (0..3).map(|_| cuts.enter().expect("not fired")).collect();
        let waiting = tokio::spawn(async move {
            for ticket in &tickets {
                ticket.cut().await;
            }
        });
        assert_eq!(cuts.fire(), 3);
        waiting.await.expect("all three were cut");
        assert!(cuts.enter().is_none());
    }

    #[test]
    fn a_ticket_that_is_dropped_leaves_nothing() {
        let cuts = Arc::new(Cuts::default());
        drop(cuts.enter());
        assert_eq!(cuts.fire(), 0);
    }
}
