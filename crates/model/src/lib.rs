//! The nouns of Atoll and the rules they obey, as plain values.
//!
//! ```text
//! id ── Secret ── units (MiB)           names, parsed once at the edge
//! Phase ── Event ── Refused             the life of a sandbox, one pure table
//! NetworkPolicy ── Lifecycle ── Resources   what a user asks of a sandbox
//! Sandbox ── Template ── Build ── Volume ── Team ── ApiKey   what is stored
//! Recipe ──plan──▶ Planned                  what a template is built from
//! Kind                                  the closed list of ways to fail
//! ```
//!
//! **Invariants.** This crate performs no I/O, reads no clock and knows no async runtime. Everything in it can
//! be compared, cloned and tested by value.
#![forbid(unsafe_code)]

mod build;
mod cluster;
mod id;
mod kind;
mod lifecycle;
mod network;
mod phase;
pub mod recipe;
mod resources;
mod sandbox;
mod secret;
mod team;
mod template;
mod volume;

pub use build::{Build, BuildFailure, BuildStatus, BuildStep, Runner};
pub use cluster::{ClusterName, ClusterNameError};
pub use id::{
    BuildId, ExecutionId, IdError, KeyId, NodeId, ProcessId, SandboxId, TeamId, TemplateId, UserId, VolumeId,
};
pub use kind::Kind;
pub use lifecycle::{Lifecycle, OnTimeout, PauseMode};
pub use network::{Cidr, CidrError, MaskHost, MaskHostError, NetworkPolicy};
pub use phase::{Event, KillReason, Origin, Phase, Refused, Seat, State};
pub use resources::{MiB, Quota, Resources};
pub use sandbox::Sandbox;
pub use secret::Secret;
pub use team::{ApiKey, Team};
pub use template::{Memory, Settings, StartCommand, Template, TemplateOrigin, TemplateRef, TemplateRefError};
pub use volume::{Volume, VolumeMount, VolumeState};
