//! The container runtime: sandboxes out of namespaces, cgroups, overlays, a system call filter and a disk of their own.
//!
//! ```text
//! runtime ──▶ pool ──▶ house ──▶ launcher ══▶ boot      a skeleton becomes a machine
//!    │                  ├─▶ cgroup  disk  root  net      what it holds on the host
//!    └──▶ machine       └─▶ record                       written before any of it is made
//! volume   where disks are copied by reference      build, import   what roots are made of
//! users    those of each slot                        agent           envd and sudo, as they come inside
//! checkpoint, seal   builds made of machines        clear           builds that nobody needs any more
//! assemble builds that go elsewhere and come from there
//! changes  roots looked at from outside
//! sealed   layers that are images, mounted           lend     volumes among them
//! ```
//!
//! A sandbox is a [`slot`]: a number that names all of its resources (`atoll<instance>/<slot>` among cgroups,
//! `at<instance>-<slot>` among links, `<slot>.img` among disks). A slot is prepared up to an envd that listens, claimed
//! once, and given back when its last process is gone.
//!
//! **Invariants.** Nothing is made before it is on record. The daemon never forks: the launcher does. No path below a
//! machine's root is followed from outside but by `openat2(2)` without links. A number is used again only when its
//! network is gone.
#![forbid(unsafe_code)]

mod agent;
mod assemble;
mod boot;
mod build;
mod cgroup;
mod changes;
mod checkpoint;
mod clear;
mod criu;
mod disk;
mod house;
mod import;
pub mod launcher;
mod lend;
mod machine;
mod pool;
pub mod probe;
mod record;
mod root;
mod runtime;
mod seal;
mod sealed;
mod slot;
mod syscalls;
mod users;
mod volume;

use ports::step;

pub use runtime::{Config, Containers, capabilities};
