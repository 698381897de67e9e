//! What a create starts from (contract 3.4).
use model::{BuildId, Settings, TeamId, Template, TemplateRef};
use ports::ManagerError;
use ports::store::find_template;

use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::template::names::shown;
use crate::uses::Use;

/// What a create starts from.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) template: Template,
    pub(crate) build: BuildId,
    pub(crate) settings: Settings,
    /// The name by which clients see it.
    pub(crate) alias: Option<String>,
}

/// The build and the name that are meant of a template that was found.
fn choose(template: Template, reference: &TemplateRef) -> Result<Resolved, ManagerError> {
    let tag = reference.tag.as_deref();
    let Some((build, settings)) = template.tagged(tag) else {
        return Err(ManagerError::NoTag {
            template: shown(reference),
            tag: tag.unwrap_or(Template::DEFAULT_TAG).to_owned(),
        });
    };
    let settings = settings.clone();
    let by_name = template.names.iter().find(|name| **name == reference.name);
    let alias = by_name.or(template.names.first()).cloned();
    Ok(Resolved {
        template,
        build,
        settings,
        alias,
    })
}

/// How often a template is read again whose build was removed in between. Each time somebody tagged or deleted it.
const READS_MAX: usize = 5;

impl Orchestrator {
    /// Like [`Orchestrator::resolve`]; the build is not removed while `using` lives.
    pub(crate) async fn resolve_taken(
        &self,
        team: TeamId,
        reference: &TemplateRef,
        using: &Use,
    ) -> Result<Resolved, ManagerError> {
        for _ in 0..READS_MAX {
            let resolved = self.resolve(team, reference).await?;
            if using.take(resolved.build) {
                return Ok(resolved);
            }
        }
        Err(ManagerError::NoTemplate(shown(reference)))
    }

    /// # Errors
    /// [`ManagerError::NoTemplate`] where the team sees no such template, [`ManagerError::NoTag`] where it has no such tag.
    pub(crate) async fn resolve(
        &self,
        team: TeamId,
        reference: &TemplateRef,
    ) -> Result<Resolved, ManagerError> {
        let (templates, teams) = (&*self.parts.templates, &*self.parts.teams);
        let found = find_template(templates, teams, team, reference)
            .await
            .map_err(failure::store("reading the template"))?;
        let template = found.ok_or_else(|| ManagerError::NoTemplate(shown(reference)))?;
        choose(template, reference)
    }
}
