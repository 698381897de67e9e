//! What roots of sandboxes are made of: this machine's own programs, and what Atoll adds to a root that somebody made, so that
//! it is a sandbox's.
//!
//! ```text
//! host    this machine's own /usr under a fresh root, as layers        image   what goes over an image
//! lean    a whole root of some of this machine's packages              packages   which, as dpkg knows them
//! tree    files that are taken from one tree into another
//! ```
//!
//! **Invariant.** What others than root may not read on this machine is in no root: root of a sandbox is root of what it has.
#![forbid(unsafe_code)]

mod host;
mod image;
mod lean;
mod packages;
mod tree;

pub use host::{WANTED, lacks, layer_over, layers_of_host};
pub use image::layer_over_image;
pub use lean::lean_host;
pub use tree::{dress, put};
