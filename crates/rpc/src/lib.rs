//! What the processes of a cluster ask of one another, over mutual TLS.
//!
//! ```text
//! ca        the cluster's certificate authority: identities that are worth a day
//! identity  who a process is: cluster, role, name
//! tls       showing that, and asking it of others; files that change under way
//! access    which role may call what
//! serve     one listener for whatever a process offers
//! node      ports::Node        orchestrator ──▶ a machine that runs sandboxes
//! guest     ports::Guest       edge ──▶ the ports inside a sandbox, through its node
//! wake      ports::Wake        edge ──▶ resume on traffic
//! volumes   ports::VolumeFiles api ──▶ the files in volumes
//! channel   kept connections to one peer          breaker   whether it is worth asking it
//! call      a deadline, a repetition, and what a failure means
//! ```
//!
//! **Invariants.** Nobody is talked with who does not show a certificate of this cluster, and nobody calls what [`access::TABLE`]
//! does not give his role. What a peer says is bounded before it is allocated, and checked in `convert` before it is believed.
//! Causes of errors stay in the process where they happened.
#![forbid(unsafe_code)]

pub mod access;
mod breaker;
pub mod ca;
mod call;
mod channel;
mod convert;
pub mod guest;
pub mod identity;
pub mod node;
mod protocol;
mod serve;
mod status;
pub mod tls;
pub mod volumes;
pub mod wake;
mod words;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use guest::preface::fuzz;

pub use breaker::Open;
pub use ca::Authority;
pub use channel::{CallFailed, RefusedByPeer};
pub use convert::Malformed;
pub use guest::RemoteGuest;
pub use identity::{Certified, Identity, Role};
pub use node::RemoteNode;
pub use protocol::{Foreign, PROTOCOL, Protocol};
pub use serve::{Bounds, Services, serve};
pub use tls::{Expected, Files, PeerRefused, Tls};
pub use volumes::RemoteVolumes;
pub use wake::RemoteWake;

/// An error with its causes, for a log.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Wrappers that say what they wrap are not said twice.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
