//! [`ports::Guest`] over the network: byte streams into sandboxes, each over a connection of its own.
//!
//! ```text
//! edge: RemoteGuest ── TLS, preface, verdict, then bytes ──▶ node: a Guest ──▶ sandbox
//!              └────── a pulse to each node ───────────────▶ sent back
//! ```
//!
//! What one side ends the other side sees end, each direction by itself; who does not read stops who writes; and when a node dies
//! its streams break off: by the kernel where its process is gone, by keep-alive and pulse where it is silent.
mod client;
pub mod preface;
mod server;

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use tokio::net::TcpStream;

pub use client::{Addresses, RemoteGuest};
pub(crate) use server::GuestService;

/// This, as it is named in handshakes.
pub(crate) const ALPN_DIAL: &[u8] = b"atoll-dial/1";
/// A connection that was made ahead is used within this time, or not at all.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(60);
/// What is under way in each direction of a stream, beside what the kernel holds: four TLS records.
pub(crate) const COPY_BYTES: usize = 64 * 1024;

/// A connection whose other end is silent is asked after this time,
const ASKED_AFTER: Duration = Duration::from_secs(5);
/// so often,
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// and is gone if it has not answered so many times.
const ASKED_MAX: u32 = 4;
/// As it is when what was sent is not acknowledged for so long.
const UNHEARD_MAX_MILLIS: u32 = 10_000;

/// Has the kernel find out when the other machine is gone.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, ASKED_AFTER)?;
    sockopt::set_tcp_keepintvl(socket, ASKED_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, ASKED_MAX)?;
    sockopt::set_tcp_user_timeout(socket, UNHEARD_MAX_MILLIS)?;
    Ok(())
}
