//! Which template a reference means to a team (contract 3.4).
use model::{TeamId, Template, TemplateId, TemplateRef};

use super::{StoreError, TeamStore, TemplateStore};

/// An explicit namespace names a team. A bare name is one of the team's own, then an id, then the name of a template that
/// is public: whoever publishes one under another's id takes nothing from it.
///
/// `None` also where another team's private template is meant, by name or by id: what a team may not see is not there.
///
/// # Errors
/// Where a store is away.
pub async fn find_template(
    templates: &dyn TemplateStore,
    teams: &dyn TeamStore,
    team: TeamId,
    reference: &TemplateRef,
) -> Result<Option<Template>, StoreError> {
    let visible = |template: &Template| template.team == team || template.public;
    let name = reference.name.as_str();
    if let Some(namespace) = &reference.namespace {
        let Some(owner) = teams.team_by_slug(namespace).await? else {
            return Ok(None);
        };
        return Ok(templates.named(owner.id, name).await?.filter(visible));
    }
    if let Some(own) = templates.named(team, name).await? {
        return Ok(Some(own));
    }
    if let Ok(id) = name.parse::<TemplateId>()
        && let Some(found) = templates.get(id).await?.filter(visible)
    {
        return Ok(Some(found));
    }
    templates.promoted(name).await
}
