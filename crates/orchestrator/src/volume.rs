//! Volumes, as their owners steer them (contract, section 6).
//!
//! ```text
//! create   stored with its home ─▶ made there ─▶ ready
//! mount    what a sandbox asks for ─▶ where it must run
//! delete   marked ─▶ given up ─▶ removed from its home, now or when that is back
//! settle   what was begun and not brought to its end        homes   what nodes hold against what is stored
//! files    the files of all, each on its home
//! ```
//!
//! **Invariants.**
//! - A volume is stored, with its home, before its files are made, and is noted among the remains until they are removed: a crash
//!   in between leaves a volume that can be deleted, or one that is removed by itself; never files that nobody knows.
//! - None is deleted that a sandbox has, or is about to have: see [`mounts`] for one process, `delete` for several.
//! - Its files are asked of its home alone, and what has it runs there alone.
mod create;
mod delete;
mod files;
pub(crate) mod homes;
mod manager;
mod mount;
pub(crate) mod mounts;
pub(crate) mod settle;

pub(crate) use self::mount::lies;
