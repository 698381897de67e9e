//! What sandboxes that are virtual machines have in common, whichever virtual machine monitor (VMM) runs them.
//!
//! ```text
//! runtime ──▶ start, adopt      machines begin, and those of earlier daemons go on
//!    │          └─▶ house ──▶ record, files    what there is, written before it is made
//!    ├─▶ travel                builds go elsewhere, and come from there
//!    └─▶ machine ──▶ process    one VMM: identity, log, end; stray finds those that nobody knows
//!          └─▶ agent            the way to the agent inside
//! vmm      what each VMM does its own way               boot    what guests boot from
//! network  slots of machines   policy  what is refused   import  root disks out of directories   work  what blocks
//! processor  what memory must find again
//! ```
//!
//! A machine is named by its execution: its record, its process. A sandbox without a machine is what is kept of it: a disk, and a state
//! of memory. Whatever is done with a machine is a flow here, each step of it in the same order under every VMM; a [`Vmm`] has the
//! steps that differ: how one is started, told to stand, written down and brought back, and how disks are copied.
//!
//! **Invariants.** Nothing is made before it is on record, and nothing that a record names is removed. What others start from is
//! written to by nobody. Memory is measured before a byte of it is brought in, and what it was is another machine's before
//! anybody talks to it. Whoever talks to a guest has a deadline. A [`Vmm`] knows no other.
#![forbid(unsafe_code)]

mod adopt;
pub mod agent;
pub mod boot;
pub mod files;
mod house;
pub mod import;
pub mod log;
mod machine;
pub mod network;
pub mod policy;
pub mod process;
pub mod processor;
pub mod record;
mod runtime;
mod start;
pub mod stray;
mod travel;
mod vmm;
pub mod work;

pub use house::House;
pub use machine::{GUEST_ANSWERS_WITHIN, Handle, Vm};
pub use runtime::Microvms;
pub use start::{Plan, Started, cannot_restore};
pub use vmm::{Build, Kept, Machine, Vmm};
