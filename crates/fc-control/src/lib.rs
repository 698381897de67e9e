//! FC-Control: sandboxes that are microVMs with a kernel of their own, under Firecracker, each in a jail.
//!
//! ```text
//! runtime    each step of a machine's life (microvm), as Firecracker has it: start, adopt
//!    ├─▶ house ──▶ disk      what Firecrackers share; copies of images that share their blocks
//!    │     ├─▶ memory        states of machines, and what they fit; differences are made whole when there is time
//!    │     └─▶ network       a user for each, and a network namespace
//!    └─▶ machine ──▶ api     what one Firecracker is told, over its socket: machines, standing, going on, snapshots
//!          ├─▶ process       how it is started by the jailer
//!          └─▶ jail, cgroup  what it sees, and what it may use
//! probe    whether this host's Firecracker can be trusted: version, filter
//! kernel   what it boots         record   what is its own of a machine's record       import   root disks out of layers
//! ```
//!
//! A machine is named by its execution: its record, its jail, its cgroup, its process. A sandbox without a machine is what is kept
//! of it: an image, and a state of memory. Each start copies the image that it starts from, so what that was stays as it was, and as
//! many as anybody likes start from it. Names in all jails are the same, and so are guests' addresses: memory that was written down in
//! one goes on in another without a word about it. Diffs and balloons, page handlers and huge pages: of these only differences are
//! made. A balloon would let guests reach for what is not theirs in all versions before 1.16.2, and serves nobody as long as
//! memory is not promised twice.
//!
//! **Invariants.** Nothing is made before it is on record, and nothing that a record names is removed. An image or a memory that
//! others start from is written to by nobody. Firecracker is asked for nothing but what its API has, and is believed nothing that was
//! not bounded. Memory is measured before a byte of it is mapped, and what it was is another machine's before anybody talks to it.
//! Whoever talks to Firecracker or a guest has a deadline.
#![forbid(unsafe_code)]

mod api;
mod cgroup;
mod disk;
mod filter;
mod house;
mod import;
mod jail;
mod kernel;
mod machine;
mod memory;
mod network;
mod probe;
mod process;
mod record;
mod runtime;
mod version;
mod whole;

pub use filter::Toothless;
pub use house::Firecracker;
pub use microvm::boot::Guest;
pub use probe::{Probed, Unusable, probe};
pub use runtime::{Config, Firecrackers, capabilities};
pub use version::{Fault, Unfit, Version};

#[cfg(test)]
mod tests;
