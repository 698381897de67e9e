//! What sandboxes and nodes said and used, as their nodes keep it.
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::join_all;
use model::{Phase, SandboxId, TeamId};
use ports::node::Report;
use ports::{LogLine, LogQuery, ManagerError, MetricSample, Node, NodeError};

use crate::failure;
use crate::nodes::{WORD_MAX, within};
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    /// The node that keeps a visible sandbox's history.
    async fn keeper(&self, team: TeamId, id: SandboxId) -> Result<Arc<dyn Node>, ManagerError> {
        let sandbox = self.visible(team, id).await?;
        match sandbox.phase {
            Phase::Paused { home, .. } => self.node(home),
            phase => self.node(phase.seat().ok_or(ManagerError::NotFound(id))?.node),
        }
    }

    pub(crate) async fn samples(
        &self,
        team: TeamId,
        id: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, ManagerError> {
        let node = self.keeper(team, id).await?;
        let samples = within(WORD_MAX, "reading the metrics", node.metrics(id, from, to)).await;
        known(samples).map_err(failure::node(id, "reading the metrics"))
    }

    pub(crate) async fn lines(
        &self,
        team: TeamId,
        id: SandboxId,
        query: LogQuery,
    ) -> Result<Vec<LogLine>, ManagerError> {
        let node = self.keeper(team, id).await?;
        let lines = within(WORD_MAX, "reading the logs", node.logs(id, query)).await;
        known(lines).map_err(failure::node(id, "reading the logs"))
    }

    /// What the nodes say of themselves. Those that do not answer are left out.
    pub(crate) async fn reports(&self) -> Vec<Report> {
        let nodes = self.parts.fleet.nodes().borrow().clone();
        let ask = nodes.iter().map(|node| async move {
            let report = within(WORD_MAX, "the report", node.report()).await;
            report
                .inspect_err(|error| tracing::warn!(node = %node.id(), %error, "a node does not report"))
                .ok()
        });
        join_all(ask).await.into_iter().flatten().collect()
    }
}

/// A node that knows nothing of a sandbox yet has nothing to say of it.
fn known<T: Default>(answer: Result<T, NodeError>) -> Result<T, NodeError> {
    match answer {
        Err(NodeError::Unknown) => Ok(T::default()),
        answer => answer,
    }
}
