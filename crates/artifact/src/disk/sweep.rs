use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use ports::Blobs;

use super::restore::load;
use super::{DiskError, disk_key, pack_key};
use crate::digest::Digest;

/// What a sweep has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Manifests and packs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes what none of the `living` manifests refers to and what is older than `grace`.
///
/// It is safe beside [`publish`](super::publish): what that brings is young until it is over, if that takes less than `grace`,
/// and what it shares with its base is referred to by the base, which whoever publishes keeps among the living.
///
/// # Errors
/// See [`DiskError`]. A living manifest that cannot be read ends it before anything is removed.
pub async fn sweep(
    blobs: &dyn Blobs,
    living: &BTreeSet<Digest>,
    now: SystemTime,
    grace: Duration,
) -> Result<Swept, DiskError> {
    let mut marked = BTreeSet::new();
    for &disk in living {
        marked.insert(disk_key(disk));
        marked.extend(load(blobs, disk).await?.packs.into_iter().map(pack_key));
    }
    let mut swept = Swept::default();
    for prefix in ["disks", "packs"] {
        for blob in blobs.list(prefix).await? {
            let is_old = now.duration_since(blob.modified).is_ok_and(|age| age > grace);
            if is_old && !marked.contains(&blob.key) {
                blobs.remove(&blob.key).await?;
                swept.blobs += 1;
                swept.bytes += blob.bytes;
            }
        }
    }
    Ok(swept)
}
