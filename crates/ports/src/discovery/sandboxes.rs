use std::collections::BTreeMap;
use std::sync::Arc;

use model::{ExecutionId, SandboxId};

use super::{DiscoveryError, Instance, Role, ServiceDiscovery, Settled};

/// Whether running sandboxes are registered as services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announce {
    /// Never.
    Never,
    /// Always, however many there are.
    Always,
    /// While a node runs no more than this many. Beyond, none is registered, until a quarter fewer run: a discovery service
    /// carries thousands of services well, and a fleet runs hundreds of thousands of sandboxes.
    UpTo(usize),
}

impl Default for Announce {
    /// Half a machine's sandboxes at the usual size.
    fn default() -> Self {
        Self::UpTo(200)
    }
}

impl Announce {
    /// Whether to, for so many, when it was done before or not.
    #[must_use]
    pub const fn decide(self, before: bool, running: usize) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::UpTo(bound) if before => running <= bound,
            Self::UpTo(bound) => running <= bound - bound / 4,
        }
    }
}

/// A sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningSandbox {
    /// Which.
    pub sandbox: SandboxId,
    /// Which incarnation.
    pub execution: ExecutionId,
    /// What it was made from, as clients call it.
    pub template: String,
}

/// Keeps the sandboxes of one node registered, or none of them, as [`Announce`] says.
pub struct Announced {
    discovery: Arc<dyn ServiceDiscovery>,
    node: Instance,
    announce: Announce,
    /// Whether it was on, once something was told.
    on: bool,
    told: bool,
}

impl Announced {
    /// For the sandboxes of a node, which are reached through its address and port.
    #[must_use]
    pub fn new(discovery: Arc<dyn ServiceDiscovery>, node: Instance, announce: Announce) -> Self {
        Self {
            discovery,
            node,
            announce,
            on: true,
            told: false,
        }
    }

    /// Makes what is registered agree with what runs. What a daemon that died left registered goes at the first call.
    ///
    /// # Errors
    /// The discovery service's: the next call makes up for it.
    pub async fn pass(&mut self, running: &[RunningSandbox]) -> Result<Settled, DiscoveryError> {
        let on = self.announce.decide(self.on, running.len());
        // Nothing is asked of a service that holds nothing of ours.
        if !on && !self.on && self.told {
            return Ok(Settled::default());
        }
        let instances = if on {
            running.iter().map(|one| self.instance(one)).collect()
        } else {
            Vec::new()
        };
        let settled = self
            .discovery
            .settle(&self.node.id, Role::Sandbox, instances)
            .await?;
        (self.on, self.told) = (on, true);
        Ok(settled)
    }

    fn instance(&self, running: &RunningSandbox) -> Instance {
        let template: String = running
            .template
            .chars()
            .filter(|c| !c.is_control())
            .take(100)
            .collect();
        Instance {
            id: format!("{}-{}", running.sandbox, running.execution),
            role: Role::Sandbox,
            address: self.node.address.clone(),
            port: self.node.port,
            zone: self.node.zone.clone(),
            version: self.node.version.clone(),
            capacity: None,
            meta: BTreeMap::from([
                ("sandbox".to_owned(), running.sandbox.to_string()),
                ("execution".to_owned(), running.execution.to_string()),
                ("node".to_owned(), self.node.id.clone()),
                ("template".to_owned(), template),
            ]),
        }
    }
}
