use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use ports::Blobs;
use ports::blobs::BlobInfo;

use super::restore::load;
use super::{Description, DiskError, description_key, disk_key, layer_key, pack_key};
use crate::digest::Digest;

/// What a sweep has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Descriptions, manifests, packs and archives of layers.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes what none of the `living` descriptions of builds refers to and what is older than `grace`.
///
/// It is safe beside [`publish`](super::publish): what that brings is young until it is over, if that takes less than `grace`,
/// and what it shares with its base is referred to by the base, which whoever publishes keeps among the living. So it is with
/// archives of layers ([`Images::stow`](crate::Images::stow)): what is old and named by nobody is brought again, and so is young.
///
/// # Errors
/// See [`DiskError`]. A living description or manifest that cannot be read ends it before anything is removed.
pub async fn sweep(
    blobs: &dyn Blobs,
    living: &BTreeSet<Digest>,
    now: SystemTime,
    grace: Duration,
) -> Result<Swept, DiskError> {
    let is_old = |blob: &BlobInfo| now.duration_since(blob.modified).is_ok_and(|age| age > grace);
    let mut marked = BTreeSet::new();
    let mut disks = BTreeSet::new();
    let mut mark = |description: &Description, marked: &mut BTreeSet<String>| {
        disks.extend(description.disks());
        marked.extend(
            description
                .archives
                .values()
                .map(|archive| layer_key(archive.blob)),
        );
    };
    for &build in living {
        marked.insert(description_key(build));
        mark(&Description::load(blobs, build).await?, &mut marked);
    }
    // Whoever has just brought one may not have noted it yet, and it may stand on disks that were there.
    for blob in blobs.list("builds").await? {
        let name = blob.key.trim_start_matches("builds/");
        if let Ok(build) = format!("sha256:{name}").parse()
            && !is_old(&blob)
        {
            match Description::load(blobs, build).await {
                Ok(description) => mark(&description, &mut marked),
                Err(DiskError::Blobs(error)) => return Err(error.into()),
                Err(_) => {}
            }
        }
    }
    for disk in disks {
        marked.insert(disk_key(disk));
        marked.extend(load(blobs, disk).await?.packs.into_iter().map(pack_key));
    }
    let mut swept = Swept::default();
    // What refers to others goes first: what is left by a death in between refers to what is there.
    for prefix in ["builds", "disks", "packs", "layers"] {
        for blob in blobs.list(prefix).await? {
            if !is_old(&blob) || marked.contains(&blob.key) {
                continue;
            }
            // Looked at again: somebody may have brought it anew since all of them were listed.
            if blobs.find(&blob.key).await?.is_some_and(|blob| is_old(&blob)) {
                blobs.remove(&blob.key).await?;
                swept.blobs += 1;
                swept.bytes += blob.bytes;
            }
        }
    }
    Ok(swept)
}
