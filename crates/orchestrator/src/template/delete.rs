//! Removing templates and snapshots (contract 3.5, 4.3).
use std::collections::BTreeMap;
use std::time::Duration;

use model::{Build, State, TeamId, Template, TemplateOrigin, TemplateRef};
use ports::store::SandboxQuery;
use ports::{ManagerError, TemplateError};
use tokio::time::timeout;

use super::change::failed;
use super::names::shown;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// How long a removal waits for builds that it has cancelled. What they still say is said to nobody.
const CANCEL_MAX: Duration = Duration::from_secs(10);

/// What a name is to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// All of it.
    Whole,
    /// What one tag of a snapshot names.
    Tag(String),
}

/// Clients name a snapshot with its tag, also with `default`, which then reads as none. So none is `default` where a
/// snapshot has that tag: a client never removes more than it named.
fn target(template: &Template, name: &TemplateRef) -> Result<Target, TemplateError> {
    match (template.origin, &name.tag) {
        (TemplateOrigin::Build, None) => Ok(Target::Whole),
        // Such as of a build that failed.
        (TemplateOrigin::Build, Some(tag)) if !template.tags.contains_key(tag) => Err(TemplateError::NoTag {
            template: shown(name),
            tag: tag.clone(),
        }),
        (TemplateOrigin::Build, Some(tag)) => Err(TemplateError::Invalid(format!(
            "'{tag}' is a tag of template '{}': take the tag away, or delete the template by its name alone",
            shown(name)
        ))),
        (TemplateOrigin::Snapshot(_), Some(tag)) if !template.tags.contains_key(tag) => {
            Err(TemplateError::NoTag {
                template: shown(name),
                tag: tag.clone(),
            })
        }
        (TemplateOrigin::Snapshot(_), Some(tag)) => Ok(Target::Tag(tag.clone())),
        (TemplateOrigin::Snapshot(_), None) if template.tags.contains_key(Template::DEFAULT_TAG) => {
            Ok(Target::Tag(Template::DEFAULT_TAG.to_owned()))
        }
        // One that was not answered is asked for again: the other tags are not what was meant.
        (TemplateOrigin::Snapshot(_), None) if !template.tags.is_empty() => Err(TemplateError::NoTag {
            template: shown(name),
            tag: Template::DEFAULT_TAG.to_owned(),
        }),
        (TemplateOrigin::Snapshot(_), None) => Ok(Target::Whole),
    }
}

impl Orchestrator {
    /// Removes a template that no sandbox of the team uses, or what one tag of a snapshot names.
    #[tracing::instrument(name = "template.delete", skip_all, fields(%team, template))]
    pub(super) async fn delete_template(
        &self,
        team: TeamId,
        name: &TemplateRef,
    ) -> Result<(), TemplateError> {
        let template = self.own(team, name).await?;
        tracing::Span::current().record("template", template.id.as_str());
        if target(&template, name)? == Target::Whole {
            self.cancel_builds_of(&template).await?;
        }
        let _locked = self.template_locks.lock(template.id).await;
        let template = self.own(team, name).await?;
        let target = target(&template, name)?;
        self.check_unused(&template, &target).await?;
        let Target::Tag(tag) = target else {
            return Ok(self.remove_template(&template).await?);
        };
        if template.tags.keys().all(|other| *other == tag) {
            // A template that names nothing is found by nobody, so there is none in between: a removal that is cut short
            // can be asked for again by the same name.
            return Ok(self.remove_template(&template).await?);
        }
        let edit = |template: &mut Template| {
            template.untag([tag.as_str()]);
            Ok::<_, TemplateError>(true)
        };
        let left = self.edit_template(template.id, edit).await?;
        let left = left.ok_or_else(|| TemplateError::NotFound(shown(name)))?;
        failpoint::reach("orchestrator/snapshot-untagged");
        if left.tags.is_empty() {
            self.remove_template(&left).await?;
        }
        Ok(())
    }

    /// Refuses to remove what sandboxes of the team began as. Sandboxes keep what they need of a build that no template
    /// names any more; this is so that nobody takes the ground from under one by mistake.
    async fn check_unused(&self, template: &Template, target: &Target) -> Result<(), TemplateError> {
        let build = match target {
            Target::Whole => None,
            Target::Tag(tag) => template.tags.get(tag).copied(),
        };
        for (state, word) in [(State::Running, "running"), (State::Paused, "paused")] {
            let query = SandboxQuery {
                team: template.team,
                states: vec![state],
                metadata: BTreeMap::new(),
                started_after: None,
                template: Some(template.id),
                ascending: false,
                after: None,
                limit: usize::MAX >> 1,
            };
            let users = self.parts.sandboxes.list(&query).await;
            let users = users.map_err(failure::store("reading the sandboxes"))?;
            // Of a snapshot that has other tags, what they name is no matter.
            let is_user = |user: &model::Sandbox| build.is_none_or(|build| user.build == build);
            if users.iter().any(is_user) {
                return Err(TemplateError::InUse {
                    template: template.id.to_string(),
                    state: word,
                });
            }
        }
        Ok(())
    }

    /// Ends the builds of a template that is about to go.
    async fn cancel_builds_of(&self, template: &Template) -> Result<(), ManagerError> {
        let builds = self.parts.builds.builds_of(template.id).await;
        let builds = builds.map_err(failure::store("reading the builds"))?;
        let is_unfinished = |build: &&Build| !build.status.is_over();
        for build in builds.iter().filter(is_unfinished) {
            let ended = self.building.cancel(build.id);
            if let Some(ended) = ended {
                let _ = timeout(CANCEL_MAX, ended.cancelled()).await;
            }
            self.give_up_build(build.id, failed(None, "the template was deleted"))
                .await?;
        }
        Ok(())
    }

    /// Removes a template with the history of its builds. The history goes first: what is left when that is cut short is
    /// a template that can be removed again.
    pub(super) async fn remove_template(&self, template: &Template) -> Result<(), ManagerError> {
        self.cancel_builds_of(template).await?;
        let removed = self.parts.builds.remove_builds_of(template.id).await;
        removed.map_err(failure::store("removing the builds"))?;
        failpoint::reach("orchestrator/builds-removed");
        let removed = self.parts.templates.remove(template.id).await;
        removed.map_err(failure::store("removing the template"))?;
        failpoint::reach("orchestrator/template-removed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use model::{BuildId, SandboxId, Settings};
    use ports::store::contract;

    use super::*;

    fn check(origin: TemplateOrigin, tags: &[&str], name: &str, expected: Result<Target, &str>) {
        let mut template = contract::template(TeamId::random(), "app");
        template.origin = origin;
        template.tags.clear();
        for tag in tags {
            template.tag([(*tag).to_owned()], BuildId::random(), Settings::default());
        }
        let target = target(&template, &name.parse().unwrap()).map_err(|error| error.to_string());
        assert_eq!(target, expected.map_err(str::to_owned), "{name}");
    }

    #[test]
    fn a_name_removes_what_it_names_and_never_more() {
        let (built, snapshot) = (
            TemplateOrigin::Build,
            TemplateOrigin::Snapshot(SandboxId::random()),
        );
        let tag = |tag: &str| Ok(Target::Tag(tag.to_owned()));
        check(built, &["default", "v1"], "app", Ok(Target::Whole));
        check(built, &["default", "v1"], "app:default", Ok(Target::Whole));
        check(built, &[], "app", Ok(Target::Whole));
        check(
            built,
            &[],
            "app:v1",
            Err("tag 'v1' does not exist for template 'app'"),
        );
        check(
            built,
            &["v1"],
            "app:v1",
            Err(
                "'v1' is a tag of template 'app': take the tag away, or delete the template by its name alone",
            ),
        );
        check(snapshot, &["default", "v1"], "app:v1", tag("v1"));
        check(snapshot, &["default", "v1"], "app:default", tag("default"));
        check(snapshot, &["default"], "app", tag("default"));
        check(
            snapshot,
            &["v1"],
            "app",
            Err("tag 'default' does not exist for template 'app'"),
        );
        check(snapshot, &[], "app", Ok(Target::Whole));
        check(
            snapshot,
            &["v1"],
            "acme/app:v2",
            Err("tag 'v2' does not exist for template 'acme/app'"),
        );
    }
}
