//! Volumes of a node: file systems in images, each mounted once by the host, for sandboxes of every runtime and for the
//! content API.
//!
//! ```text
//! store      which there are, who has them, when they are mounted        places   images mounted on the host
//! files      what the content API does in them                           within, list, remove, turns   how
//! mounts     where a sandbox may have them
//! fuse       what a kernel of its own asks of a file system, as bytes    export   a volume that answers it
//! ```
//!
//! **Invariants.** One image is mounted once. Nobody but root of the host can enter the host's mount. No link is followed
//! on the host out of a volume. What a guest says is looked at before anything is done, and bounded before it is kept.
#![forbid(unsafe_code)]

mod export;
mod files;
mod fuse;
mod list;
mod mounts;
mod places;
mod remove;
mod store;
mod turns;
mod within;

pub use self::export::Export;
pub use self::files::Files;
pub use self::fuse::{Malformed, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};
pub use self::mounts::{BadMount, checked};
pub use self::places::{How, Places, attached, is_mounted};
pub use self::store::{OWNER, Volumes};

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
