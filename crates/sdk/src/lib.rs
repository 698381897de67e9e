//! Atoll's own client: the public API, and the daemon in every sandbox, for Rust programs.
//!
//! ```text
//! Client          sandboxes, keys, templates                       ──▶ the API
//! SandboxClient   files and programs of one sandbox                ──▶ the edge ──▶ envd
//! Process         a program that runs: what it says, how it ends; Control speaks to it
//! CallError       every way in which a call fails, with the server's own words
//! ```
//!
//! Underneath: `transport` carries HTTP/1.1 requests, `rpc` speaks the Connect protocol over it, `envelope` cuts its
//! streams into messages.
//!
//! **Invariants.** Every call ends: it lives under a deadline, or hears a sign of life from the other side. What a server
//! sends is bounded before it is kept. It reads no environment and no files but the machine's certificate authorities.
#![forbid(unsafe_code)]

mod base;
mod client;
mod envelope;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod process;
mod rpc;
mod sandbox;
mod transport;

pub use base::BaseUrl;
pub use client::{Client, Connected, ListQuery, LogsQuery, Page};
pub use error::CallError;
pub use files::FileReader;
pub use process::{Control, Event, Exit, Process, Program, Signal, TerminalSize};
pub use sandbox::SandboxClient;
