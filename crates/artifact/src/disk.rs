//! Disks as blobs: the blocks that hold something, each kept once, compressed and verified.
//!
//! ```text
//! image ──publish──▶ packs/<digest>   compressed blocks, one behind the other, up to 16 MiB
//!                    disks/<digest>   the manifest: which block lies where, and its digest
//!                    builds/<digest>  what a build consists of: which disks, over which layers
//!                    layers/<digest>  the archive of such a layer (`images/travel.rs`)
//! manifest ──restore──▶ image         whole, with its holes
//! manifest ──Lazy────▶ blocks         one by one, as they are wanted
//! ```
//!
//! A disk refers to the packs of those that it shares blocks with. [`sweep`] removes what no living description refers to.
mod description;
mod lazy;
mod manifest;
mod publish;
mod restore;
mod sweep;

pub use description::Description;
pub use lazy::Lazy;
pub use manifest::{Manifest, ManifestError};
pub use publish::{is_whole, publish};
pub use restore::{load, restore};
pub use sweep::{Swept, sweep};

use ports::BlobError;

use crate::digest::Digest;

/// A disk could not be brought to the blobs, or back.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The blobs do not hold it, or are away.
    #[error("the blobs of the disk are not to be had")]
    Blobs(#[from] BlobError),
    /// The image cannot be read or written.
    #[error("the disk's image cannot be {0}")]
    Image(&'static str, #[source] std::io::Error),
    /// A manifest does not make sense.
    #[error("the manifest {0} is broken")]
    Manifest(Digest, #[source] ManifestError),
    /// What describes a build does not make sense.
    #[error("what describes the build is {0}")]
    Description(&'static str),
    /// What is stored under a name is not what was stored there.
    #[error("{0} is not what it was: its digest differs")]
    Forged(String),
    /// A step of ours panicked.
    #[error("a step ended early")]
    Panicked(#[from] tokio::task::JoinError),
}

pub(crate) fn pack_key(pack: Digest) -> String {
    format!("packs/{}", pack.hex())
}

pub(crate) fn layer_key(archive: Digest) -> String {
    format!("layers/{}", archive.hex())
}

pub(crate) fn description_key(description: Digest) -> String {
    format!("builds/{}", description.hex())
}

pub(crate) fn disk_key(disk: Digest) -> String {
    format!("disks/{}", disk.hex())
}

#[cfg(test)]
mod tests;
