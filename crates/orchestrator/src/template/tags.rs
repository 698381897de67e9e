//! Which build a tag names, and who sees a template (contract 4.3).
use model::{BuildId, TeamId, Template, TemplateOrigin, TemplateRef};
use ports::TemplateError;

use super::names::{self, shown};
use crate::orchestrator::Orchestrator;

/// The tags of a request, of which there is at least one.
fn some_tags(given: Vec<String>) -> Result<Vec<String>, TemplateError> {
    let tags = names::tags(given)?;
    if tags.is_empty() {
        return Err(TemplateError::Invalid("At least one tag is required".to_owned()));
    }
    Ok(tags)
}

impl Orchestrator {
    /// Lets more tags name the build that `target` names.
    #[tracing::instrument(name = "template.tag", skip_all, fields(%team))]
    pub(super) async fn tag_build(
        &self,
        team: TeamId,
        target: &TemplateRef,
        tags: Vec<String>,
    ) -> Result<BuildId, TemplateError> {
        let tags = some_tags(tags)?;
        names::check_namespace(&self.team(team).await?, target)?;
        let template = self.own(team, target).await?;
        let mut named = None;
        let edit = |template: &mut Template| {
            let wanted = target.tag.as_deref();
            let Some((build, settings)) = template.tagged(wanted) else {
                return Err(TemplateError::NoTag {
                    template: shown(target),
                    tag: wanted.unwrap_or(Template::DEFAULT_TAG).to_owned(),
                });
            };
            let settings = settings.clone();
            names::check_tags_of_one(template, &tags)?;
            named = Some(build);
            template.tag(tags.iter().cloned(), build, settings);
            Ok(true)
        };
        self.edit_template(template.id, edit).await?;
        named.ok_or_else(|| TemplateError::NotFound(shown(target)))
    }

    /// Takes tags away. Those that are not there are no matter.
    #[tracing::instrument(name = "template.untag", skip_all, fields(%team))]
    pub(super) async fn untag_build(
        &self,
        team: TeamId,
        name: &TemplateRef,
        tags: Vec<String>,
    ) -> Result<(), TemplateError> {
        let tags = some_tags(tags)?;
        let wrong = if tags.iter().any(|tag| tag == Template::DEFAULT_TAG) {
            Some("Cannot delete the 'default' tag")
        } else {
            name.tag
                .is_some()
                .then_some("The template's name must have no tag here: tags are given in 'tags'")
        };
        if let Some(wrong) = wrong {
            return Err(TemplateError::Invalid(wrong.to_owned()));
        }
        names::check_namespace(&self.team(team).await?, name)?;
        let template = self.own(team, name).await?;
        let _locked = self.template_locks.lock(template.id).await;
        let edit = |template: &mut Template| {
            let had = template.tags.len();
            template.untag(tags.iter().map(String::as_str));
            Ok::<_, TemplateError>(template.tags.len() != had)
        };
        let Some(left) = self.edit_template(template.id, edit).await? else {
            return Err(TemplateError::NotFound(shown(name)));
        };
        // A snapshot is nothing but what its tags name.
        if left.tags.is_empty() && matches!(left.origin, TemplateOrigin::Snapshot(_)) {
            self.remove_template(&left).await?;
        }
        Ok(())
    }

    /// Makes a template public, or private again.
    #[tracing::instrument(name = "template.publish", skip_all, fields(%team, public))]
    pub(super) async fn publish_template(
        &self,
        team: TeamId,
        name: &TemplateRef,
        public: bool,
    ) -> Result<Template, TemplateError> {
        let template = self.own(team, name).await?;
        let edit = |template: &mut Template| {
            let is_new = template.public != public;
            template.public = public;
            Ok::<_, TemplateError>(is_new)
        };
        let published = self.edit_template(template.id, edit).await?;
        published.ok_or_else(|| TemplateError::NotFound(shown(name)))
    }
}
