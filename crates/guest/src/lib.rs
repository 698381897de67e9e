//! The guest side of microVMs, as the host has it: what a machine boots from, and how it is talked to.
//!
//! ```text
//! bundle   a kernel and an initramfs with our init, envd and sudo, named by their content
//! cpio     how an initramfs is written          module   which kernel modules, in which order
//! fetch    a kernel from the distribution's packages
//! disk     a root disk, made of a directory or an archive
//! boot     what the kernel's command line tells the agent
//! line     the only way in: streams over a serial port or vsock, each opened by one header
//! volumes  the volumes that a machine is given, by streams of its line
//! ```
//!
//! **Invariants.** Whatever a guest says is bounded before it is kept. Nothing here runs a machine: `qemu` and its like do.
#![forbid(unsafe_code)]

pub mod boot;
#[cfg(feature = "host")]
pub mod bundle;
#[cfg(feature = "host")]
mod cpio;
#[cfg(feature = "host")]
pub mod disk;
#[cfg(feature = "host")]
pub mod fetch;
#[cfg(all(feature = "host", any(test, fuzzing)))]
#[doc(hidden)]
pub mod fuzz;
pub mod line;
#[cfg(feature = "host")]
mod module;
#[cfg(feature = "host")]
mod program;
#[cfg(feature = "host")]
pub mod volumes;

#[cfg(feature = "host")]
pub use self::bundle::{Bundle, BundleError};
#[cfg(feature = "host")]
pub use self::line::{Line, LineError};
