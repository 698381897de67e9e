//! Atoll's own client: the public API, and the daemon in every sandbox, for Rust programs.
//!
//! ```text
//! Client          sandboxes, keys, templates and their builds, snapshots, volumes, nodes  ──▶ the API
//! VolumeClient    the files of one volume                          ──▶ the API
//! SandboxClient   files and programs of one sandbox                ──▶ the edge ──▶ envd
//! Process         a program that runs: what it says, how it ends; Control speaks to it
//! CallError       every way in which a call fails, with the server's own words
//! ```
//!
//! Underneath: `transport` carries HTTP/1.1 requests, whose bodies `body` reads as the server takes them; `rpc` speaks the
//! Connect protocol over it.
//!
//! **Invariants.** Every call ends: it lives under a deadline, or hears a sign of life from the other side. What a server
//! sends is bounded before it is kept, and what is uploaded is never in memory whole. It reads no environment and no files but
//! the machine's certificate authorities.
#![forbid(unsafe_code)]

mod base;
mod body;
mod client;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod process;
mod rpc;
mod sandbox;
#[cfg(test)]
mod testing;
mod transport;
mod volume;

pub use base::BaseUrl;
pub use body::Upload;
pub use client::{Client, Connected, ListQuery, LogsQuery, Page, SnapshotsQuery, StatusQuery};
pub use error::CallError;
pub use files::{Entry, EntryKind, FileReader};
pub use process::{Control, Event, Exit, Process, Program, Signal, TerminalSize};
pub use sandbox::SandboxClient;
pub use volume::VolumeClient;
