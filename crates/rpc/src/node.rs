//! [`ports::Node`] over the network.
//!
//! ```text
//! client    a node on another machine: deadlines, repetitions, what failures mean
//! server    a node behind its listener
//! building  a build, both sides          hearing / ring   events, both sides
//! told      events, reports, logs as messages             failure   errors as messages
//! ```
mod building;
mod client;
mod failure;
mod hearing;
mod ring;
mod server;
mod told;

pub use client::RemoteNode;
pub(crate) use client::config;
pub(crate) use failure::REACHING;
pub(crate) use server::{CHUNK_BYTES_MAX, NodeService, chunks, malformed};
