//! The QEMU runtime: sandboxes that are virtual machines with a kernel of their own, on any machine that has
//! `qemu-system-x86_64`, with or without hardware for it, and with or without root, which their network takes.
//!
//! ```text
//! runtime    each step of a machine's life (microvm), as QEMU has it: start, adopt
//!    ├─▶ house ──▶ disk      what QEMUs share; images over one another, flatten makes one of many, flat when there is time
//!    │     └─▶ memory        states of machines, and what they fit
//!    └─▶ machine ──▶ qmp     what one QEMU is told: standing, going on, migration, images
//!          └─▶ process       how it is started and its monitor reached
//! command  QEMU's command line   probe   what this machine's QEMU can do
//! users    whom QEMUs run as     record  what is its own of a machine's record
//! import   root disks out of layers
//! ```
//!
//! A machine is named by its execution: its directory of sockets, its process. Each start lays an image of its own over what it starts from, so what
//! that was stays as it was until the machine is up, and for as long as others start from it.
//!
//! **Invariants.** Nothing is made before it is on record, and nothing that a record names is removed. An image that
//! another lies on is not written to. Nothing that a user chose is on a command line. Memory is measured before a byte of it
//! is brought in, and what it was is another machine's before anybody talks to it. What a policy denies is denied on the
//! host. Whoever talks to QEMU or a guest has a deadline. A QEMU opens nothing: what it reads, writes and listens on it is given
//! open, and where the daemon is root it runs as a user that nobody else is.
#![forbid(unsafe_code)]

mod command;
mod disk;
mod flat;
mod house;
mod import;
mod machine;
mod memory;
mod probe;
mod process;
mod qmp;
mod record;
mod runtime;
mod users;

pub use command::Accel;
pub use house::Qemu;
pub use microvm::boot::Guest;
pub use probe::{Probed, probe};
pub use runtime::{Config, Qemus, capabilities};

#[cfg(test)]
mod tests;
