//! The node agent: everything of one machine that runs sandboxes.
//!
//! ```text
//! node ──▶ sandbox ──▶ envd        one driver for each sandbox: its state, its machine, its deadline
//!   │         ├─▶ journal          what must survive a restart of the daemon, written before it is true for others
//!   │         ├─▶ history, lines   metrics and log, bounded
//!   ├─▶ build                      templates, each built in a sandbox of its own that nobody else knows of
//!   ├─▶ stow                       builds in the blobs, where they outlive the node
//!   ├─▶ admission                  whether new sandboxes are taken, as an operator wants it
//!   ├─▶ offer                      what of the machine is to be used, as a scheduler gives it
//!   └─▶ recover                    adopting what earlier daemons left
//! guest                            connections into sandboxes, for the edge
//! ```
//!
//! **Invariants.** Operations on one sandbox come one after another. Nobody is told that a sandbox runs before its
//! journal says so. Deadlines are enforced here, with nobody's help. A connection never reaches another execution than
//! the one it was meant for.
#![forbid(unsafe_code)]

mod admission;
mod build;
mod envd;
mod guest;
mod history;
mod journal;
mod lines;
mod node;
mod offer;
mod recover;
mod sandbox;
mod stow;

pub use build::{HeldLayers, Image, ImageError, ImageSource, Resolved, Says, warm};
pub use node::{Config, LocalNode};
pub use offer::Offer;
pub use recover::Found;
