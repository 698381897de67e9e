//! Which template a reference means to a team (contract 3.4).
use model::{BuildId, TeamId, Template, TemplateId, TemplateRef};
use ports::ManagerError;

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

/// What a template that was found means to a team.
fn choose(template: Template, team: TeamId, reference: &TemplateRef) -> Result<Resolved, ManagerError> {
    if template.team != team && !template.public {
        return Err(ManagerError::ForeignTemplate(text(reference)));
    }
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
    /// An explicit namespace names a team. A bare name is one of the team's own, then one that is public, then an id.
    ///
    /// # Errors
    /// [`ManagerError::NoTemplate`] where nothing has the name, or another team's private template has it: names can be
    /// guessed. [`ManagerError::ForeignTemplate`] for the id of one: ids cannot be guessed, so whoever has it was
    /// shown it.
    pub(crate) async fn resolve(
        &self,
        team: TeamId,
        reference: &TemplateRef,
    ) -> Result<Resolved, ManagerError> {
        let found = self
            .find(team, reference)
            .await
            .map_err(failure::store("reading the template"))?;
        let template = found.ok_or_else(|| ManagerError::NoTemplate(text(reference)))?;
        choose(template, team, reference)
    }

    async fn find(
        &self,
        team: TeamId,
        reference: &TemplateRef,
    ) -> Result<Option<Template>, ports::StoreError> {
        let templates = &self.parts.templates;
        let name = reference.name.as_str();
        if let Some(namespace) = &reference.namespace {
            let Some(owner) = self.parts.teams.team_by_slug(namespace).await? else {
                return Ok(None);
            };
            let usable = |template: &Template| template.team == team || template.public;
            return Ok(templates.named(owner.id, name).await?.filter(usable));
        }
        if let Some(own) = templates.named(team, name).await? {
            return Ok(Some(own));
        }
        if let Some(promoted) = templates.promoted(name).await? {
            return Ok(Some(promoted));
        }
        match name.parse::<TemplateId>() {
            Ok(id) => templates.get(id).await,
            Err(_) => Ok(None),
        }
    }
}
