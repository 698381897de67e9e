//! The stores of Atoll over SQL; the only crate that says SQL.
//!
//! ```text
//! Sqlite ── Writer      one connection that writes, in groups
//!    │   ├─ readers     a few connections that only read
//!    │   └─ Checkpoints one that copies the log into the database, so that no writer waits for the disk
//!    ├── SandboxStore   sandbox.rs
//!    ├── TemplateStore  template.rs
//!    ├── BuildStore     build.rs
//!    ├── VolumeStore    volume.rs
//!    └── TeamStore      team.rs
//! ```
//!
//! **Invariants.** A write that was answered survives the death of the process, and is seen by every read that begins
//! after the answer. After a power failure the database is whole, and at most the last moments of writes are missing
//! (`synchronous=NORMAL` over a write-ahead log: no fsync for each commit). Writes that arrive together are committed
//! together. Migrations are numbered and go forward only.
#![forbid(unsafe_code)]

mod build;
mod checkpoint;
mod micros;
mod sandbox;
mod sqlite;
mod team;
mod template;
mod volume;
mod writer;

pub use sqlite::Sqlite;
