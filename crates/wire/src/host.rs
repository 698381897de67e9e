//! Which sandbox and port a request is for (contract 1.3).
//!
//! ```text
//! 8000-i0123456789abcdefghij.example.com     the host names the target
//! anything else + two routing headers        the headers do
//! anything else                              refused by name
//! ```
use std::fmt;

use model::SandboxId;

/// Names the sandbox, on hosts that do not.
pub const SANDBOX_ID_HEADER: &str = "e2b-sandbox-id";
/// Names the port inside the sandbox, on hosts that do not.
pub const SANDBOX_PORT_HEADER: &str = "e2b-sandbox-port";

/// Bytes of a `Host` that are looked at: a DNS name of 253, a colon and a port.
const HOST_BYTES_MAX: usize = 253 + 1 + 5;

/// What a request says about its destination, as it came off the wire.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// The authority of the request target, or `Host`.
    pub host: Option<&'a [u8]>,
    /// [`SANDBOX_ID_HEADER`].
    pub id: Option<&'a [u8]>,
    /// [`SANDBOX_PORT_HEADER`].
    pub port: Option<&'a [u8]>,
}

/// A port inside a sandbox. Displays as the left-most label of its host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The port, never 0.
    pub port: u16,
}

/// Why a request is for no sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostRefused {
    /// The host has no label of the form `{port}-{id}`, and no header says more.
    #[error("Invalid host")]
    Host,
    /// One routing header came without the other.
    #[error("missing header {0}")]
    MissingHeader(&'static str),
    /// The id is not of `[a-z0-9]`.
    #[error("Invalid sandbox ID")]
    Id,
    /// The port is not within 1–65535.
    #[error("Invalid sandbox port")]
    Port,
    /// The id is well formed, and not one that Atoll has ever given out.
    #[error("The sandbox was not found")]
    Foreign(String),
}

impl HostRefused {
    /// The HTTP status (contract 1.3, 1.5): an unknown sandbox is 502 at the edge.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            HostRefused::Host | HostRefused::MissingHeader(_) | HostRefused::Id | HostRefused::Port => 400,
            HostRefused::Foreign(_) => 502,
        }
    }
}

impl Target {
    /// The target of a request: its host, where that names one; else its routing headers.
    pub fn of(asked: Asked<'_>) -> Result<Self, HostRefused> {
        let refused = match Self::of_host(asked.host.unwrap_or_default()) {
            Ok(target) => return Ok(target),
            Err(refused) => refused,
        };
        match (asked.id, asked.port) {
            (None, None) => Err(refused),
            (Some(id), Some(port)) => {
                let id = id.split(|&byte| byte == b'-').next().unwrap_or_default();
                Self::of_parts(port, id)
            }
            (Some(_), None) => Err(HostRefused::MissingHeader(SANDBOX_PORT_HEADER)),
            (None, Some(_)) => Err(HostRefused::MissingHeader(SANDBOX_ID_HEADER)),
        }
    }

    /// The target that a host name names by itself.
    pub fn of_host(host: &[u8]) -> Result<Self, HostRefused> {
        if host.len() > HOST_BYTES_MAX {
            return Err(HostRefused::Host);
        }
        let dot = host
            .iter()
            .position(|&byte| byte == b'.')
            .ok_or(HostRefused::Host)?;
        // What follows a second dash is the client id of earlier clients.
        let mut parts = host[..dot].split(|&byte| byte == b'-');
        match (parts.next(), parts.next()) {
            (Some(port), Some(id)) => Self::of_parts(port, id),
            _ => Err(HostRefused::Host),
        }
    }

    fn of_parts(port: &[u8], id: &[u8]) -> Result<Self, HostRefused> {
        let well_formed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if id.is_empty() || id.len() > HOST_BYTES_MAX || !id.iter().all(well_formed) {
            return Err(HostRefused::Id);
        }
        let port = decimal(port).ok_or(HostRefused::Port)?;
        let id = std::str::from_utf8(id).expect("checked to be ASCII");
        let sandbox = id.parse().map_err(|_| HostRefused::Foreign(id.to_owned()))?;
        Ok(Self { sandbox, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.port, self.sandbox)
    }
}

/// A port in digits alone: no sign, no space, not 0.
fn decimal(text: &[u8]) -> Option<u16> {
    if text.is_empty() || text.len() > 5 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = text
        .iter()
        .fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    u16::try_from(port).ok().filter(|&port| port != 0)
}

#[cfg(test)]
mod tests;
