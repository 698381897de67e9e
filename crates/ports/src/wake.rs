//! Resume on traffic.
use async_trait::async_trait;
use model::{Kind, SandboxId};

/// What the request that found no route carried.
#[derive(Debug, Clone, Default)]
pub struct Presented {
    /// The port it is for.
    pub port: u16,
    /// `X-Access-Token`.
    pub envd_token: Option<String>,
    /// `e2b-traffic-access-token`.
    pub traffic_token: Option<String>,
}

/// Why a sandbox was not woken (contract 1.5, 1.6).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WakeRefused {
    /// Unknown, killed, or paused and not to be woken by traffic.
    #[error("the sandbox was not found")]
    NotFound,
    /// It would be woken for another token.
    #[error("the sandbox cannot be resumed with the credentials provided")]
    Denied,
    /// It is still on its way into or out of a pause.
    #[error("the sandbox is still transitioning")]
    Transitioning,
    /// The team's limit is used up.
    #[error("{0}")]
    Exhausted(String),
    /// It did not come up.
    #[error("the sandbox could not be resumed")]
    Failed,
}

impl WakeRefused {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            WakeRefused::NotFound => Kind::NotFound,
            WakeRefused::Denied => Kind::Forbidden,
            WakeRefused::Transitioning => Kind::Conflict,
            WakeRefused::Exhausted(_) => Kind::Exhausted,
            WakeRefused::Failed => Kind::Internal,
        }
    }
}

/// Resumes a paused sandbox because somebody talks to it.
#[async_trait]
pub trait Wake: Send + Sync {
    /// Returns when the sandbox has a route in the catalog again (at once, where it has one), within 60 s.
    async fn wake(&self, sandbox: SandboxId, presented: Presented) -> Result<(), WakeRefused>;
}
