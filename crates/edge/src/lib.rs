//! The edge: the way from the world into sandboxes.
//!
//! ```text
//! Door         a listener: clear text or TLS, HTTP/1.1 or HTTP/2
//!  │ Target   host name, routing headers, or the signature of a file URL      (wire::host, signed, signers)
//!  │ Route    the catalog's, or a paused sandbox's after it has been woken
//!  ▼
//! Exchange     one request, one response: over an idle Line, or a fresh one
//!  │ Lines    the connections into one execution, cut when its route is withdrawn
//!  ▼
//! Guest        byte streams into sandboxes (a port; the node's)
//! ```
//!
//! **Invariants.**
//! - A withdrawn execution gets no request more, and its streams end in an error, never as if they were complete.
//! - envd's control paths are answered here, whatever their spelling; no protocol but HTTP/1.1 reaches envd.
//! - Nothing is buffered beyond one chunk for each direction, and no stream has a deadline.
//! - A request is sent twice only if it is idempotent, has no body, and got no byte of a response.
//! - What a client presents is compared, counted and passed on, never logged.
#![forbid(unsafe_code)]

mod body;
mod cut;
mod door;
mod exchange;
mod executions;
mod forward;
mod line;
mod lines;
mod meters;
mod pace;
mod path;
mod refusal;
mod serve;
mod signed;
mod signers;
pub mod tls;
mod tunnel;

mod edge;

pub use edge::{Edge, EdgeParts};
