//! What of the machine is to be used, where somebody else gives it out: a scheduler, in blocks. It is on no file: whoever gives it out
//! says it again after a restart.
use std::sync::{Mutex, MutexGuard};

use model::MiB;
use ports::node::{Draining, NodeError, Own};
use ports::scheduler::Size;

/// What of the machine is to be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    /// At the most.
    pub size: Size,
    /// What of that is for one sandbox alone.
    pub own: Vec<Own>,
    /// How the node is to be emptied, where what runs is more than that.
    pub draining: Option<Draining>,
}

impl Offer {
    fn takes(&self) -> bool {
        self.draining.is_none() && self.size != Size::default()
    }
}

/// What is offered now; all of the machine where nobody said anything.
#[derive(Debug, Default)]
pub(crate) struct Offered(Mutex<Option<Offer>>);

impl Offered {
    fn now(&self) -> MutexGuard<'_, Option<Offer>> {
        self.0.lock().expect("nothing panics while it holds the offer")
    }

    pub(crate) fn set(&self, offer: Offer) {
        let mut now = self.now();
        if now.as_ref() != Some(&offer) {
            tracing::info!(size = %offer.size, draining = offer.draining.is_some(), "what of the machine may be used is set");
        }
        *now = Some(offer);
    }

    /// Whether new sandboxes are taken.
    pub(crate) fn takes(&self) -> bool {
        self.now().as_ref().is_none_or(Offer::takes)
    }

    /// How the node is to be emptied, if it is.
    pub(crate) fn draining(&self) -> Option<Draining> {
        self.now().as_ref().and_then(|offer| offer.draining)
    }

    /// What of it is for one sandbox alone.
    pub(crate) fn own(&self) -> Vec<Own> {
        self.now()
            .as_ref()
            .map(|offer| offer.own.clone())
            .unwrap_or_default()
    }

    /// CPUs and memory, of those that there are.
    pub(crate) fn of(&self, cpu: u32, memory: MiB) -> (u32, MiB) {
        match &*self.now() {
            Some(offer) => (cpu.min(offer.size.cpu), memory.min(offer.size.memory)),
            None => (cpu, memory),
        }
    }

    /// Why a new sandbox is not taken.
    pub(crate) fn refusal() -> NodeError {
        NodeError::Full {
            what: "capacity: its scheduler gives it none, or takes some back",
            retry_after: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn no_more_is_offered_than_there_is_and_nothing_while_it_is_taken_back() {
        let offered = Offered::default();
        assert!(offered.takes());
        assert_eq!(offered.of(8, MiB(1000)), (8, MiB(1000)));
        let size = Size {
            cpu: 16,
            memory: MiB(500),
        };
        offered.set(Offer {
            size,
            ..Offer::default()
        });
        assert!(offered.takes());
        assert_eq!(offered.of(8, MiB(1000)), (8, MiB(500)));
        let draining = Draining {
            deadline: SystemTime::UNIX_EPOCH,
            kills: false,
        };
        offered.set(Offer {
            size,
            draining: Some(draining),
            own: Vec::new(),
        });
        assert!(!offered.takes());
        assert_eq!(offered.draining(), Some(draining));
        offered.set(Offer::default());
        assert!(!offered.takes(), "nothing is not some");
    }
}
