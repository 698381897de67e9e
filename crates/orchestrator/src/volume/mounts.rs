//! Volumes that sandboxes are about to have: between reading a volume's name and storing who has it, nothing in a store
//! keeps it from being deleted.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use model::VolumeId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// So many sandboxes are on their way to it.
    Taken(usize),
    /// It is being deleted.
    Doomed,
}

/// Which volumes are held, and how. There are only as many as are.
#[derive(Default)]
pub(crate) struct Mounts(Mutex<HashMap<VolumeId, Hold>>);

/// Volumes that are not deleted while this lives.
pub(crate) struct Taken {
    mounts: Arc<Mounts>,
    volumes: Vec<VolumeId>,
}

/// A volume that nothing takes while this lives.
pub(crate) struct Doomed {
    mounts: Arc<Mounts>,
    volume: VolumeId,
}

impl Mounts {
    fn holds(&self) -> MutexGuard<'_, HashMap<VolumeId, Hold>> {
        self.0.lock().expect("nothing panics while it holds the holds")
    }

    /// Keeps volumes from being deleted; those that are being deleted already are left out.
    pub(crate) fn take_all(self: &Arc<Self>, volumes: &[VolumeId]) -> Taken {
        let mut holds = self.holds();
        let mut taken = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let hold = holds.entry(*volume).or_insert(Hold::Taken(0));
            if let Hold::Taken(count) = hold {
                *count += 1;
                taken.push(*volume);
            }
        }
        drop(holds);
        Taken {
            mounts: Arc::clone(self),
            volumes: taken,
        }
    }

    /// Begins to delete one: `None` while somebody has taken it, or deletes it too.
    pub(crate) fn doom(self: &Arc<Self>, volume: VolumeId) -> Option<Doomed> {
        let mut holds = self.holds();
        if holds.contains_key(&volume) {
            return None;
        }
        holds.insert(volume, Hold::Doomed);
        drop(holds);
        Some(Doomed {
            mounts: Arc::clone(self),
            volume,
        })
    }
}

impl Taken {
    /// Whether a volume was taken.
    pub(crate) fn has(&self, volume: VolumeId) -> bool {
        self.volumes.contains(&volume)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut holds = self.mounts.holds();
        for volume in &self.volumes {
            match holds.get_mut(volume) {
                Some(Hold::Taken(count)) if *count > 1 => *count -= 1,
                _ => drop(holds.remove(volume)),
            }
        }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        self.mounts.holds().remove(&self.volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_not_doomed_and_what_is_doomed_is_not_taken() {
        let mounts = Arc::new(Mounts::default());
        let (one, two) = (VolumeId::random(), VolumeId::random());
        let (first, again) = (mounts.take_all(&[one, one]), mounts.take_all(&[one]));
        assert!(mounts.doom(one).is_none());
        drop(first);
        assert!(mounts.doom(one).is_none());
        drop(again);
        let doomed = mounts.doom(one).unwrap();
        assert!(mounts.doom(one).is_none(), "one deletes it");
        let taken = mounts.take_all(&[one, two]);
        assert!(!taken.has(one) && taken.has(two));
        drop((doomed, taken));
        assert!(mounts.holds().is_empty());
    }
}
