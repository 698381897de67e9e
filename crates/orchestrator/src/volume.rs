//! Volumes, as their owners steer them (contract, section 6).
//!
//! **Invariants.**
//! - A volume is stored before its files are made, and its files are removed before it is forgotten: a crash in between
//!   leaves a volume that can be deleted, never files that nobody knows.
//! - None is deleted that a sandbox has, or is about to have: see [`mounts`].
mod create;
mod delete;
mod manager;
mod mount;
pub(crate) mod mounts;
