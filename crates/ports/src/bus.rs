//! What has happened, for whoever wants to know.
use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use model::{ExecutionId, SandboxId, TeamId};
use tokio::sync::broadcast;

/// One thing that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// When.
    pub at: SystemTime,
    /// Whose.
    pub team: TeamId,
    /// To which.
    pub sandbox: SandboxId,
    /// To which incarnation, where one is concerned.
    pub execution: Option<ExecutionId>,
    /// `sandbox.created`, `sandbox.paused`, `sandbox.resumed`, `sandbox.updated`, `sandbox.killed`.
    pub what: &'static str,
    /// Why and how.
    pub details: BTreeMap<&'static str, String>,
}

/// Carries happenings to their subscribers.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Tells everybody. Never waits for a subscriber.
    async fn publish(&self, happening: Happening);
    /// What happens from now on.
    fn subscribe(&self) -> broadcast::Receiver<Happening>;
}

/// Happenings kept for a slow subscriber; one that lags more has lost some, and is told how many.
const BACKLOG_MAX: usize = 4096;

/// The bus of one process.
pub struct Memory(broadcast::Sender<Happening>);

impl Default for Memory {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG_MAX).0)
    }
}

#[async_trait]
impl Bus for Memory {
    async fn publish(&self, happening: Happening) {
        let _ = self.0.send(happening);
    }
    fn subscribe(&self) -> broadcast::Receiver<Happening> {
        self.0.subscribe()
    }
}
