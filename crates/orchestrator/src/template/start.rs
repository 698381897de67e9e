//! Starting and cancelling registered builds (contract 4.1).
use model::recipe::{Key, Recipe, plan};
use model::{Build, BuildId, BuildStatus, TeamId, TemplateId};
use ports::{ManagerError, TemplateError};

use super::change::failed;
use crate::failure;
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    /// Starts a registered build. Others of the template that are under way are cancelled.
    #[tracing::instrument(name = "template.start", skip_all, fields(%team, %template, build = %id))]
    pub(super) async fn start_build(
        &self,
        team: TeamId,
        template: TemplateId,
        id: BuildId,
        recipe: Recipe,
    ) -> Result<(), TemplateError> {
        if self.building.is_closed() {
            return Err(ManagerError::ShuttingDown.into());
        }
        self.own_build(team, template, id).await?;
        // Whatever the base is, the steps over it are the same.
        plan(Key::of_build(id), &recipe).map_err(|error| TemplateError::Invalid(error.to_string()))?;
        let _locked = self.template_locks.lock(template).await;
        let edit = |build: &mut Build| {
            if build.status != BuildStatus::Waiting {
                return Err(TemplateError::NotWaiting);
            }
            build.status = BuildStatus::Building;
            build.recipe = Some(recipe.clone());
            Ok(())
        };
        let started = self.edit_build(id, edit).await?;
        let started = started.ok_or(TemplateError::NoBuild(id))?;
        failpoint::reach("orchestrator/building-stored");
        if self.parts.config.runs_builds {
            self.run_build(&started);
        }
        self.cancel_others(template, id).await?;
        Ok(())
    }

    /// Cancels what is under way of a template beside one build.
    async fn cancel_others(&self, template: TemplateId, started: BuildId) -> Result<(), ManagerError> {
        let builds = self.parts.builds.builds_of(template).await;
        let builds = builds.map_err(failure::store("reading the builds"))?;
        let is_other = |build: &&Build| build.status == BuildStatus::Building && build.id != started;
        for build in builds.iter().filter(is_other) {
            let why = failed(
                None,
                "the build was cancelled, because another build of the template was started",
            );
            self.give_up_build(build.id, why).await?;
        }
        Ok(())
    }

    /// Cancels a build. One that is over stays as it is.
    #[tracing::instrument(name = "template.cancel", skip_all, fields(%team, %template, build = %id))]
    pub(super) async fn cancel_build(
        &self,
        team: TeamId,
        template: TemplateId,
        id: BuildId,
    ) -> Result<(), TemplateError> {
        self.own_build(team, template, id).await?;
        let _locked = self.template_locks.lock(template).await;
        self.give_up_build(id, failed(None, "the build was cancelled"))
            .await?;
        Ok(())
    }
}
