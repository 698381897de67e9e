//! Asking nodes. Nodes have deadlines of their own for what they do; these are for nodes that do not answer at all.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{Kind, NodeId, Sandbox, Seat};
use ports::node::{Order, OrderOrigin};
use ports::{ManagerError, Node, NodeError};

use crate::failure;
use crate::orchestrator::Orchestrator;

/// A start takes milliseconds; a cold one with a slow start-up command some seconds. The SDKs give up after a minute.
pub(crate) const START_MAX: Duration = Duration::from_secs(60);
/// A pause may write out all of a sandbox's memory.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A copy may write out all of a sandbox's memory, like a pause.
pub(crate) const CHECKPOINT_MAX: Duration = PAUSE_MAX;
/// A kill waits for the kernel to reap what runs.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(60);
/// Everything else is a word with the node.
pub(crate) const WORD_MAX: Duration = Duration::from_secs(10);

/// An answer of a node within `limit`, or [`NodeError::Timeout`].
pub(crate) async fn within<T>(
    limit: Duration,
    what: &'static str,
    answer: impl Future<Output = Result<T, NodeError>>,
) -> Result<T, NodeError> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or(Err(NodeError::Timeout(what)))
}

impl Orchestrator {
    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<dyn Node>, ManagerError> {
        let away = || {
            failure::fault(
                "finding its node",
                Kind::Unavailable,
                "the node is not in the fleet",
            )
        };
        self.parts.fleet.node(id).ok_or_else(away)
    }

    /// What a node must know to run `sandbox` at `seat` until `deadline`.
    pub(crate) async fn order(
        &self,
        sandbox: &Sandbox,
        seat: Seat,
        origin: OrderOrigin,
        deadline: SystemTime,
    ) -> Result<Order, ManagerError> {
        let mut env = sandbox.settings.env.clone();
        env.extend(sandbox.env.clone());
        Ok(Order {
            sandbox: sandbox.id,
            execution: seat.execution,
            team: sandbox.team,
            template: sandbox.template,
            build: sandbox.build,
            resources: sandbox.resources,
            network: sandbox.network.clone(),
            env,
            user: sandbox.settings.user.clone(),
            workdir: sandbox.settings.workdir.clone(),
            start: sandbox.settings.start.clone(),
            envd_token: self.tokens().await?.envd(sandbox),
            deadline,
            lifecycle: sandbox.lifecycle,
            origin,
            volumes: sandbox.volumes.clone(),
        })
    }
}
