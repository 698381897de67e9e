//! One operation at a time on one sandbox, or one template, within this process.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use model::SandboxId;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

type Table<K> = Arc<Mutex<HashMap<K, Arc<AsyncMutex<()>>>>>;

/// Locks by id. There are only as many as are held or waited for.
pub(crate) struct Locks<K = SandboxId>(Table<K>);

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self(Table::default())
    }
}

/// A held lock.
pub(crate) struct Locked<K: Copy + Eq + Hash = SandboxId> {
    // Dropped before the place, which then sees that nobody holds it.
    _guard: OwnedMutexGuard<()>,
    _place: Place<K>,
}

/// Somebody who holds the lock or waits for it; the last one to leave removes it.
struct Place<K: Copy + Eq + Hash> {
    table: Table<K>,
    id: K,
    lock: Option<Arc<AsyncMutex<()>>>,
}

fn entries<K>(table: &Table<K>) -> MutexGuard<'_, HashMap<K, Arc<AsyncMutex<()>>>> {
    table.lock().expect("nothing panics while it holds the table")
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut entries = entries(&self.table);
        drop(self.lock.take());
        // Clones are made under the table's lock, so one reference is the table's own.
        if entries
            .get(&self.id)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            entries.remove(&self.id);
        }
    }
}

impl<K: Copy + Eq + Hash> Locks<K> {
    fn place(&self, id: K) -> (Place<K>, Arc<AsyncMutex<()>>) {
        let lock = Arc::clone(entries(&self.0).entry(id).or_default());
        (
            Place {
                table: Arc::clone(&self.0),
                id,
                lock: Some(Arc::clone(&lock)),
            },
            lock,
        )
    }

    /// Waits until it is free. Whoever came first goes first.
    pub(crate) async fn lock(&self, id: K) -> Locked<K> {
        let (place, lock) = self.place(id);
        Locked {
            _guard: lock.lock_owned().await,
            _place: place,
        }
    }

    /// Takes it if it is free.
    pub(crate) fn try_lock(&self, id: K) -> Option<Locked<K>> {
        let (place, lock) = self.place(id);
        let guard = lock.try_lock_owned().ok()?;
        Some(Locked {
            _guard: guard,
            _place: place,
        })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        entries(&self.0).len()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_lock_is_held_by_one_and_another_id_is_another_lock() {
        let locks = Locks::<SandboxId>::default();
        let (one, two) = (SandboxId::random(), SandboxId::random());
        let held = locks.lock(one).await;
        assert!(locks.try_lock(one).is_none());
        assert!(locks.lock(one).now_or_never().is_none());
        assert!(locks.try_lock(two).is_some());
        drop(held);
        assert!(locks.try_lock(one).is_some());
    }

    #[tokio::test]
    async fn nothing_is_kept_of_locks_that_nobody_holds() {
        let locks = Locks::<SandboxId>::default();
        let id = SandboxId::random();
        let held = locks.lock(id).await;
        let mut waiter = Box::pin(locks.lock(id));
        assert!(waiter.as_mut().now_or_never().is_none());
        drop(held);
        assert_eq!(locks.len(), 1);
        drop(waiter.await);
        assert_eq!(locks.len(), 0);
        // A waiter that gives up leaves nothing either.
        let held = locks.lock(id).await;
        assert!(locks.lock(id).now_or_never().is_none());
        drop(held);
        assert_eq!(locks.len(), 0);
    }
}
