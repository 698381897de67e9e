//! What the parts of Atoll need from one another, in the model's words.
//!
//! ```text
//! SandboxManager   api ──▶ orchestrator      what clients may do with sandboxes
//! TemplateManager, VolumeManager   api ──▶ orchestrator   what clients may do with templates and volumes
//! Wake             edge ──▶ orchestrator     resume on traffic
//! SandboxStore, TemplateStore, BuildStore, VolumeStore, TeamStore   what must not be lost   (SQLite; PostgreSQL)
//! Blobs            bytes under names         (local disk; S3)
//! Catalog          who serves which sandbox  (memory; Redis)
//! Limits           rates of each team        (memory; Redis)
//! Shares           what teams hold of their quotas (memory; Redis)
//! Idempotency      what was answered to which key (memory; Redis)
//! Bus              what has happened         (memory; Redis Streams)
//! Queue            what is to be done later  (memory; Redis Streams)
//! Fleet ── Node    orchestrator ──▶ a machine that runs sandboxes (in-process; RPC)
//! ServiceDiscovery, Elections, Settings   who is there, who leads, what is set   (memory, a list; Consul)
//! ResourceScheduler   who gets which resources where   (the machine; Nomad)
//! Guest            edge ──▶ the ports inside a sandbox, through its node
//! VolumeNodes ── VolumeFiles   orchestrator, api ──▶ node   which node has the files of volumes, and those (in-process; RPC)
//! Runtime ── Machine   node ──▶ containers or microVMs
//! step             what of a runtime's work failed, and how that is told
//! ```
//!
//! Each port states its laws in its methods' docs. It is object-safe and held as `Arc<dyn Port>`. Each ships a
//! memory adapter, which is both the reference model and the embedded mode's adapter, and a contract: one
//! function per law, which every adapter's tests run.
//!
//! **Invariants.** This crate knows no SQL, no HTTP, no socket and no kernel object beyond byte streams.
#![forbid(unsafe_code)]

pub mod blobs;
pub mod builds;
pub mod bus;
pub mod catalog;
pub mod clock;
pub mod discovery;
pub mod fleet;
pub mod guest;
pub mod idempotency;
pub mod limits;
pub mod logs;
pub mod manager;
pub mod node;
pub mod queue;
pub mod root;
pub mod runtime;
pub mod scheduler;
pub mod shares;
pub mod step;
pub mod store;
pub mod templates;
pub mod trace;
pub mod volumes;
pub mod wake;

pub use blobs::{BlobError, Blobs};
pub use builds::BuildStore;
pub use bus::{Bus, Happening};
pub use catalog::{Catalog, CatalogError, Route, RouteChange};
pub use clock::Clock;
pub use discovery::{DiscoveryError, Elections, ServiceDiscovery, Settings};
pub use fleet::Fleet;
pub use guest::{DialError, Guest, Stream};
pub use idempotency::{Idempotency, IdempotencyError};
pub use limits::Limits;
pub use logs::{Level, LogLine, LogQuery, MetricSample};
pub use manager::{CreateSandbox, ManagerError, SandboxManager};
pub use node::{Node, NodeError, NodeEvent};
pub use queue::{Queue, QueueError};
pub use runtime::{Machine, MachineSpec, Runtime, RuntimeError};
pub use scheduler::{ResourceScheduler, ScheduleError};
pub use shares::{Share, Shares};
pub use store::{SandboxStore, StoreError, TeamStore, TemplateStore};
pub use templates::{TemplateError, TemplateManager, VolumeError, VolumeManager};
pub use volumes::{VolumeFiles, VolumeNodes, VolumeStore};
pub use wake::{Presented, Wake, WakeRefused};
