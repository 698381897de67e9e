//! Adapters of what a fleet shares: one module for each.
//!
//! ```text
//! blobs    ports::Blobs over object_store: a directory, or an S3 bucket
//! ```
//!
//! **Invariants.** An adapter translates, retries what is safe to repeat, and does nothing else. It knows one backend and no other
//! adapter.
#![forbid(unsafe_code)]

pub mod blobs;
