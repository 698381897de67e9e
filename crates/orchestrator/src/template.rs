//! Templates and their builds, as their owners steer them (contract, section 4).
//!
//! ```text
//! register ──▶ Waiting ──start──▶ Building ──▶ run: a task ──▶ node
//!                 │                  ▲            │ lines ──▶ log ──▶ BuildStore
//!    upload ──▶ Blobs ◀──shelf───────┼────────────┤
//!                 │                  │            ▼
//!                 └─ too old ──▶ Failed ◀── tags of the template, then Ready
//!                         recover: what has no task is run again
//! ```
//!
//! **Invariants.**
//! - A build is stored as building before anything is built, and a template names a build before that is ready: a crash
//!   at any step leaves what [`recover`] finishes or runs again.
//! - What changes the builds of one template follows one another within this process.
//! - Nothing of a registry's credentials is stored of a build that is over.
pub(crate) mod building;
mod change;
pub(crate) mod claim;
mod delete;
mod log;
mod manager;
pub(crate) mod names;
mod own;
mod recover;
mod register;
mod run;
mod shelf;
mod snapshots;
mod start;
mod tags;
pub(crate) mod upload;
