//! What Atoll says to the world and to its own daemons: bodies, messages, host names, statuses.
//!
//! ```text
//! rest     bodies of the public API, with their OpenAPI schemas      (feature `rest`)
//! envd     messages and services of the daemon in every sandbox     (feature `envd`)
//! node     messages and services between a cluster's processes      (feature `node`)
//! envelope     messages of a stream, cut out of its bytes            (feature `envd`)
//! host     which sandbox and port a request is for
//! status   the one place that turns a `Kind` into statuses
//! init     what the node tells envd before anybody may use it
//! host_calls   what else the node asks of envd: steps of a build, quiet for a checkpoint
//! ```
//!
//! **Invariants.** No I/O. Only this crate knows statuses. envd links neither the REST bodies nor the ports.
#![forbid(unsafe_code)]

#[cfg(feature = "envd")]
pub mod envd;
#[cfg(feature = "envd")]
pub mod envelope;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod host;
pub mod host_calls;
pub mod init;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "rest")]
pub mod rest;
pub mod status;

/// The version that envd tells clients, and that their feature gates look at (contract 5.5).
pub const ENVD_VERSION: &str = "0.6.13";
