//! Which templates a team may steer: its own. One that is public is seen by everybody, and steered by its owner alone;
//! another team's private one is not there.
use model::{Build, BuildId, TeamId, Template, TemplateId, TemplateRef};
use ports::store::find_template;
use ports::{ManagerError, TemplateError};

use super::names::shown;
use crate::failure;
use crate::orchestrator::Orchestrator;

impl Orchestrator {
    /// A team's own template, by the name that it is asked for.
    pub(super) async fn own(&self, team: TeamId, reference: &TemplateRef) -> Result<Template, TemplateError> {
        let found = find_template(&*self.parts.templates, &*self.parts.teams, team, reference).await;
        let found = found.map_err(failure::store("reading the template"))?;
        check_own(team, found, || shown(reference))
    }

    /// A team's own template.
    pub(super) async fn own_by_id(&self, team: TeamId, id: TemplateId) -> Result<Template, TemplateError> {
        let found = self.parts.templates.get(id).await;
        let found = found.map_err(failure::store("reading the template"))?;
        let visible = found.filter(|template| template.team == team || template.public);
        check_own(team, visible, || id.to_string())
    }

    /// What a team calls by a name: one of its own names, or the id of one of its own templates.
    pub(crate) async fn named_by_owner(
        &self,
        team: TeamId,
        name: &str,
    ) -> Result<Option<Template>, ManagerError> {
        let away = || failure::store("reading the template");
        if let Some(named) = self.parts.templates.named(team, name).await.map_err(away())? {
            return Ok(Some(named));
        }
        let Ok(id) = name.parse::<TemplateId>() else {
            return Ok(None);
        };
        let by_id = self.parts.templates.get(id).await.map_err(away())?;
        Ok(by_id.filter(|template| template.team == team))
    }

    /// A build of a team's own template.
    pub(super) async fn own_build(
        &self,
        team: TeamId,
        template: TemplateId,
        id: BuildId,
    ) -> Result<Build, TemplateError> {
        self.own_by_id(team, template).await?;
        let build = self.parts.builds.build(id).await;
        let build = build.map_err(failure::store("reading the build"))?;
        let of_it = build.filter(|build| build.template == template);
        of_it.ok_or(TemplateError::NoBuild(id))
    }
}

fn check_own(
    team: TeamId,
    visible: Option<Template>,
    name: impl Fn() -> String,
) -> Result<Template, TemplateError> {
    match visible {
        None => Err(TemplateError::NotFound(name())),
        Some(template) if template.team != team => Err(TemplateError::Forbidden(name())),
        Some(template) => Ok(template),
    }
}
