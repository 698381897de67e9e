//! What is in the root of a running sandbox: what it changed, and all of it.
use std::sync::Arc;

use model::{Phase, Sandbox, SandboxId, Seat, TeamId};
use ports::root::{Changes, ExportedRoot};
use ports::{ManagerError, Node};

use crate::failure;
use crate::nodes::{CHECKPOINT_MAX, within};
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    /// A sandbox that runs, and where. Nothing keeps it from being ended meanwhile: then its node says so.
    async fn running(
        &self,
        team: TeamId,
        id: SandboxId,
    ) -> Result<(Sandbox, Seat, Arc<dyn Node>), ManagerError> {
        let sandbox = self.visible(team, id).await?;
        match sandbox.phase {
            Phase::Running { at } | Phase::Snapshotting { at, .. } => {
                let node = self.node(at.node)?;
                Ok((sandbox, at, node))
            }
            other => Err(ManagerError::Busy {
                id,
                state: other.name(),
            }),
        }
    }

    #[tracing::instrument(name = "sandbox.changes", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn changes_of(&self, team: TeamId, id: SandboxId) -> Result<Changes, ManagerError> {
        let (_, at, node) = self.running(team, id).await?;
        let changes = node.changes(id, at.execution);
        within(CHECKPOINT_MAX, "looking for changes", changes)
            .await
            .map_err(failure::node(id, "looking for changes"))
    }

    #[tracing::instrument(name = "sandbox.export", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn export_of(&self, team: TeamId, id: SandboxId) -> Result<ExportedRoot, ManagerError> {
        let (sandbox, at, node) = self.running(team, id).await?;
        let export = node.export(id, at.execution);
        let tar = within(CHECKPOINT_MAX, "exporting the root", export)
            .await
            .map_err(failure::node(id, "exporting the root"))?;
        let mut env = sandbox.settings.env;
        env.extend(sandbox.env);
        Ok(ExportedRoot {
            env,
            user: sandbox.settings.user,
            workdir: sandbox.settings.workdir,
            tar,
        })
    }
}
