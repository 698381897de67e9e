//! What a create starts from (contract 3.4).
use model::{BuildId, TeamId, Template, TemplateRef};
use ports::ManagerError;
use ports::store::find_template;

use crate::failure;
use crate::orchestrator::Orchestrator;

/// What a create starts from.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) template: Template,
    pub(crate) build: BuildId,
    /// The name by which clients see it.
    pub(crate) alias: Option<String>,
}

/// The tag that is meant where none is given.
const DEFAULT_TAG: &str = "default";

fn text(reference: &TemplateRef) -> String {
    match &reference.namespace {
        Some(namespace) => format!("{namespace}/{}", reference.name),
        None => reference.name.clone(),
    }
}

/// The build and the name that are meant of a template that was found.
fn choose(template: Template, reference: &TemplateRef) -> Result<Resolved, ManagerError> {
    let tag = reference.tag.as_deref().unwrap_or(DEFAULT_TAG);
    let Some(&build) = template.tags.get(tag) else {
        return Err(ManagerError::NoTag {
            template: text(reference),
            tag: tag.to_owned(),
        });
    };
    let by_name = template.names.iter().find(|name| **name == reference.name);
    let alias = by_name.or(template.names.first()).cloned();
    Ok(Resolved {
        template,
        build,
        alias,
    })
}

impl Orchestrator {
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
        let template = found.ok_or_else(|| ManagerError::NoTemplate(text(reference)))?;
        choose(template, reference)
    }
}
