//! The stores of Atoll over SQL; the only crate that says SQL.
//!
//! ```text
//! Stores ── what callers hold: five ports over one database
//!
//! Sqlite ── Writer      one connection that writes, in groups
//!    │   ├─ readers     a few connections that only read
//!    │   └─ Checkpoints one that copies the log into the database, so that no writer waits for the disk
//!    ├── SandboxStore   sandbox.rs
//!    ├── TemplateStore  template.rs
//!    ├── BuildStore     build.rs
//!    ├── VolumeStore    volume.rs
//!    └── TeamStore      team.rs
//!
//! Postgres ── Pool      connections, as many as are needed
//!    │   ├─ schema      which schema a database has, and which programs may run over it: expand and contract
//!    │   └─ Fault       what it means that the database is away
//!    └── the same five  postgres/
//! ```
//!
//! **Invariants.** A write that was answered survives the death of the process, and is seen by every read that begins
//! after the answer, in any process. Migrations are numbered and go forward only.
//!
//! SQLite: after a power failure the database is whole, and at most the last moments of writes are missing
//! (`synchronous=NORMAL` over a write-ahead log: no fsync for each commit). Writes that arrive together are committed
//! together.
//!
//! PostgreSQL: a write that was answered survives a power failure as well, as far as the server is told to
//! (`synchronous_commit`), but for counters of use (spawns of templates, last uses of keys): a crash may cost their last moments.
#![forbid(unsafe_code)]

mod build;
mod checkpoint;
mod micros;
mod migrate;
mod postgres;
mod sandbox;
mod sqlite;
mod stores;
mod team;
mod template;
mod volume;
mod writer;

pub use migrate::{Applied, MigrateError, Migrated, migrate};
pub use postgres::{Fault, OpenError, Postgres, PostgresConfig, PostgresConfigError, SchemaError};
pub use sqlite::Sqlite;
pub use stores::{Database, OpenStoresError, Stores};
