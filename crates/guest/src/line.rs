//! The line: the host opens streams, and the guest serves them. Nothing goes the other way but the word that it is ready.
//!
//! ```text
//! serial   host ══ virtio-serial port `atoll.line` ══ guest     escape: who hangs up, whoever is restored, is told
//!                                                                apart from bytes
//! vsock    host ── CONNECT 1024 ══▶ guest                        a connection is a conversation
//!          host ◀── 9000 ── guest                                once, when the machine is ready
//!
//! mux      many streams (yamux) on either: a device may have but one, and Firecracker's vsock ends both halves at once
//! stream   {"to":"envd"}\n  ──▶     one line of JSON, at most HEADER_BYTES_MAX
//!          {"ok":true}\n    ◀──     one line of JSON, at most ANSWER_BYTES_MAX; then bytes, both ways, half-closed apart
//! ```
mod answer;
pub mod escape;
pub mod frame;
mod header;
#[cfg(feature = "host")]
mod host;
pub mod mux;
#[cfg(feature = "host")]
mod serial;
#[cfg(feature = "host")]
pub mod vsock;

pub use self::answer::{Answer, Done, Hello, Nothing, Reason, Refusal, Usage, read_line};
pub use self::header::{Header, Order, Resume};
#[cfg(feature = "host")]
pub use self::host::{Line, LineError, LineStream};

/// Name of the virtio-serial port.
pub const SERIAL_NAME: &str = "atoll.line";
/// The vsock port on which the agent listens.
pub const VSOCK_PORT: u32 = 1024;
/// The vsock port of the host (CID 2) to which the agent connects, once, when the machine is ready: it sends the answer
/// to [`Order::Hello`], and hangs up.
pub const READY_PORT: u32 = 9000;
/// A header is longer than this only if it is none.
pub const HEADER_BYTES_MAX: usize = 4096;
/// So is an answer.
pub const ANSWER_BYTES_MAX: usize = 4096;
