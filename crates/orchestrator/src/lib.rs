//! The life of sandboxes, templates and volumes: what clients wish is stored, carried out on nodes, and kept true.
//!
//! ```text
//!  SandboxManager ──▶ create connect resume pause restart snapshot fork kill timeout network list telemetry
//!  TemplateManager ─▶ template: register upload start run tags delete snapshots
//!  VolumeManager ───▶ volume: create delete mount
//!  Wake ────────────▶ wake                │
//!                                         ▼
//!              change       one write: read, decide by the phase table, compare-and-set
//!              bring_up     Starting ─▶ node, route ─▶ Running, or undone
//!              reap         Killing ─▶ route withdrawn ─▶ node ─▶ Gone
//!                                         ▲
//!  NodeEvent ───────▶ hear                │        what nodes tell
//!  tick, nudge ─────▶ reconcile ──────────┘        what nodes hold against what is stored
//!              drain        nodes that are to be emptied
//!              capacity     blocks of a scheduler, asked for ahead of need
//!              collect      what nothing names, and nobody has in hand (uses), is removed
//! ```
//!
//! **Invariants.**
//! - A phase changes through [`model::Phase::on`] alone, and every change is a compare-and-set.
//! - Intent is stored before effect: `Starting` before a node is asked to start, `Pausing` before it is asked to pause,
//!   `Killing` before it is asked to kill. A crash at any step leaves what the reconciler finishes or undoes.
//! - A route is published before the write that makes it true, and withdrawn again where that write is refused or not made;
//!   so whoever withdraws a route after a write has withdrawn it for good.
//! - What uses a build, or makes one, takes it in hand first: what is in hand is not collected.
//! - Operations on one sandbox follow one another within this process, except for kills, which wait for nobody.
//! - An operation that has begun is carried to its end, also when its client is gone.
//! - Placement, quotas and the verdicts of the reconciler are pure functions. This crate knows no SQL and no HTTP.
#![forbid(unsafe_code)]

mod alone;
mod bring_up;
mod capacity;
mod change;
mod checkpoint;
mod collect;
mod config;
mod connect;
mod create;
mod drain;
mod failure;
mod fork;
mod hear;
mod idempotency;
mod kill;
mod list;
mod locks;
mod manager;
mod network;
mod news;
mod nodes;
mod orchestrator;
mod pause;
mod quota;
mod reconcile;
mod resolve;
mod restart;
mod resume;
mod root;
mod routes;
mod sight;
mod snapshot;
mod stow;
mod telemetry;
mod template;
mod timeout;
mod tokens;
mod uses;
mod volume;
mod wake;

pub mod bootstrap;
pub mod placement;

pub use capacity::Capacity;
pub use collect::Collected;
pub use config::Config;
pub use orchestrator::{Orchestrator, Parts};
pub use reconcile::Settled;
