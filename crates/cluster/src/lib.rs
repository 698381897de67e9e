//! Adapters of what a fleet shares: one module for each.
//!
//! ```text
//! blobs    ports::Blobs over object_store: a directory, or an S3 bucket
//! consul   ports::{ServiceDiscovery, Elections, Settings} over Consul
//! nomad    ports::ResourceScheduler over Nomad, and the jobs that deploy Atoll
//! redis    ports::{Catalog, Limits, Shares, Idempotency, Bus, Queue} over Redis
//! ```
//!
//! **Invariants.** An adapter translates, retries what is safe to repeat, and does nothing else. It knows one backend and no other
//! adapter.
#![forbid(unsafe_code)]

pub mod blobs;
#[cfg(feature = "consul")]
pub mod consul;
#[cfg(feature = "nomad")]
pub mod nomad;
#[cfg(any(feature = "consul", feature = "nomad"))]
pub mod peer;
#[cfg(feature = "redis")]
pub mod redis;
