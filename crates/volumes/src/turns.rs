//! Turns of those who look into volumes. Each look keeps a thread of the daemon for as long as it takes, and how long that
//! is may be up to a sandbox that has the volume too: so that one volume takes few of them, and all together not all.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use model::VolumeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Looks into one volume at a time; others wait.
const OWN_MAX: usize = 8;
/// Looks into all volumes at a time: a quarter of the threads that there are for what blocks.
const ALL_MAX: usize = 128;

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    /// Of volumes into which somebody looks, or waits to.
    own: Mutex<BTreeMap<VolumeId, Weak<Semaphore>>>,
}

/// A turn. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL_MAX)),
            own: Mutex::default(),
        }
    }
}

impl Turns {
    /// Waits for a turn at a volume.
    pub(crate) async fn wait(&self, id: VolumeId) -> Turn {
        let own = self.of(id);
        Turn {
            _own: own.acquire_owned().await.expect("never closed"),
            _all: Arc::clone(&self.all).acquire_owned().await.expect("never closed"),
        }
    }

    fn of(&self, id: VolumeId) -> Arc<Semaphore> {
        let mut all = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get(&id).and_then(Weak::upgrade) {
            return own;
        }
        all.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(OWN_MAX));
        all.insert(id, Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn now(turns: &Turns, id: VolumeId) -> Option<Turn> {
        tokio::time::timeout(Duration::from_millis(20), turns.wait(id))
            .await
            .ok()
    }

    #[tokio::test]
    async fn looks_into_one_volume_that_do_not_end_leave_threads_for_others() {
        let turns = Turns::default();
        let (stuck, other) = (VolumeId::random(), VolumeId::random());
        let mut held = Vec::new();
        while let Some(turn) = now(&turns, stuck).await {
            held.push(turn);
        }
        assert_eq!(held.len(), OWN_MAX);
        assert!(now(&turns, other).await.is_some());
        held.pop();
        assert!(now(&turns, stuck).await.is_some());
        drop(held);
        assert!(now(&turns, other).await.is_some());
        assert_eq!(
            turns.own.lock().unwrap().len(),
            1,
            "what nobody looks into is forgotten"
        );
    }
}
