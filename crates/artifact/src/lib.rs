//! What templates and snapshots are kept as: layers of images, disks as blocks.
//!
//! ```text
//! image     a registry's manifest, its configuration, its layers         Images: pull, import, resolve, evict
//! disk      blocks of an image, each kept once in the blobs            publish, restore, Lazy, sweep
//! layer     one archive, unpacked once into a directory that stays       Layers, by the digest of what is in it; the archive
//!           goes to the blobs and comes from there                       Images: stow, fetch
//! ```
//!
//! **Invariants.** Whatever is read from outside (archives, manifests, registries' answers, blobs) is hostile: its bytes are
//! bounded before they are allocated, and verified by digest before they are used. What is half made is never found by its name.
#![forbid(unsafe_code)]

mod archive;
/// What bytes are known by.
pub mod digest;
pub mod disk;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod images;
pub mod layer;
mod layers;
mod manifest;
mod policy;
mod reference;
mod registry;
mod tar;
#[cfg(test)]
mod testing;
mod whole;

pub use images::{
    Image, Images, Imported, LayerArchives, LayersHere, OpenError, Progress, PullError, PullEvent,
    TravelError,
};
pub use layers::{Evicted, LayerArchive};
pub use manifest::ImageConfig;
pub use policy::{Access, Policy, PolicyError, RegistryPolicy};
pub use reference::{Reference, ReferenceError};
pub use tar::TarError;
pub use whole::check_archive;
