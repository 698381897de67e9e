use model::{SandboxId, State, TeamId};
use ports::ManagerError;
use ports::manager::{Granted, Page, wants};
use ports::store::{Cursor, SandboxQuery};

use crate::failure;
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    pub(crate) async fn get_sandbox(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError> {
        let sandbox = self.visible(team, id).await?;
        Ok(self.tokens().await?.grant(sandbox))
    }

    pub(crate) async fn list_sandboxes(&self, mut query: SandboxQuery) -> Result<Page, ManagerError> {
        let step = "listing the sandboxes";
        let limit = query.limit;
        let total_running = async {
            match wants(&query.states, State::Running) {
                true => self
                    .parts
                    .sandboxes
                    .count(query.team, State::Running)
                    .await
                    .map(Some),
                false => Ok(None),
            }
        };
        let total_running = total_running.await.map_err(failure::store(step))?;
        // One more than asked for tells whether there is another page.
        query.limit = limit.saturating_add(1);
        let mut sandboxes = self
            .parts
            .sandboxes
            .list(&query)
            .await
            .map_err(failure::store(step))?;
        let more = sandboxes.len() > limit;
        sandboxes.truncate(limit);
        let last = sandboxes.last().filter(|_| more);
        let next = last.map(|last| Cursor {
            started_at: last.started_at,
            id: last.id,
        });
        Ok(Page {
            sandboxes,
            next,
            total_running,
        })
    }
}
