//! What has happened, for whoever wants to know.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use model::{ExecutionId, SandboxId, TeamId};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

pub mod contract;

/// One thing that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    pub what: Cow<'static, str>,
    /// Why and how.
    pub details: BTreeMap<Cow<'static, str>, String>,
}

/// Carries happenings to their subscribers, in whichever process of the fleet they are.
///
/// A bus is no record: it tells what happens while it is listened to. Of one process the happenings come in their order; of two
/// processes they come in some order. Nothing is told twice.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Tells everybody. Never waits for a subscriber, nor for other processes: they are told behind the caller's back. While what
    /// is shared is away, a bounded number waits for it, and what comes beyond that is dropped for the other processes, counted
    /// and logged; subscribers in this process hear everything.
    async fn publish(&self, happening: Happening);
    /// What happens from now on.
    fn subscribe(&self) -> broadcast::Receiver<Happening>;
}

/// Happenings kept for a slow subscriber; one that lags more has lost some, and is told how many.
pub const BACKLOG_MAX: usize = 4096;

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Memory;

    crate::bus_contract!(async {
        let bus = Arc::new(Memory::default());
        ((), Arc::clone(&bus), bus)
    });
}
