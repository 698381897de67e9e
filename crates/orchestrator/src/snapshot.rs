//! Snapshots: copies of running sandboxes that are templates (contract 3.5).
use std::collections::BTreeMap;

use model::{BuildId, SandboxId, Settings, Team, TeamId, Template, TemplateId, TemplateOrigin, TemplateRef};
use ports::templates::SnapshotInfo;
use ports::{ManagerError, StoreError};
use tokio::time::Instant;

use crate::checkpoint::Copied;
use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::template::names;
use crate::timeout::whole_micros;

/// Writers of one template are few. Losing this often means that something writes in a loop.
const ATTEMPTS_MAX: usize = 16;

/// Where a snapshot goes.
#[derive(Debug, Clone)]
struct Place {
    /// The template's name, where it is to have one.
    name: Option<String>,
    tag: String,
}

/// Refuses another snapshot where the team has what it may have. One that takes the place of another is none more.
fn check_room(team: &Team, own: &[Template], place: &Place) -> Result<(), ManagerError> {
    let snapshots = || {
        own.iter()
            .filter(|template| template.origin != TemplateOrigin::Build)
    };
    let named = place
        .name
        .as_ref()
        .and_then(|name| snapshots().find(|template| template.names.contains(name)));
    if let Some(template) = named {
        if template.tags.contains_key(&place.tag) {
            return Ok(());
        }
        names::check_tags_of_one(template, [&place.tag]).map_err(exhausted)?;
    }
    let kept: usize = snapshots().map(|template| template.tags.len()).sum();
    let most = team.quota.snapshots;
    if kept >= most as usize {
        return Err(exhausted(format!(
            "The team has reached its limit of {most} snapshots: delete one first"
        )));
    }
    Ok(())
}

fn exhausted(error: impl std::fmt::Display) -> ManagerError {
    ManagerError::Exhausted {
        message: error.to_string(),
        retry_after: None,
    }
}

fn invalid(error: impl std::fmt::Display) -> ManagerError {
    ManagerError::Invalid(error.to_string())
}

/// Where a team's snapshot of this name goes.
fn place(team: &Team, name: Option<TemplateRef>) -> Result<Place, ManagerError> {
    let Some(reference) = name else {
        return Ok(Place {
            name: None,
            tag: Template::DEFAULT_TAG.to_owned(),
        });
    };
    names::check_namespace(team, &reference).map_err(invalid)?;
    if let Some(tag) = &reference.tag {
        names::check_tag(tag).map_err(invalid)?;
    }
    Ok(Place {
        name: Some(reference.name),
        tag: reference.tag.unwrap_or_else(|| Template::DEFAULT_TAG.to_owned()),
    })
}

impl Orchestrator {
    /// Copies a running sandbox into a template; it goes on.
    #[tracing::instrument(name = "sandbox.snapshot", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn snapshot_sandbox(
        &self,
        team: TeamId,
        id: SandboxId,
        name: Option<TemplateRef>,
        memory: bool,
    ) -> Result<SnapshotInfo, ManagerError> {
        let began = Instant::now();
        let owner = self.team(team).await?;
        let place = place(&owner, name)?;
        // Before anything is done: a name that cannot be given is refused without a copy.
        self.snapshots_named(team, &place).await?;
        let own = self.parts.templates.list(team).await;
        let own = own.map_err(failure::store("reading the team's snapshots"))?;
        check_room(&owner, &own, &place)?;
        let copied = self.copy(team, id, memory, ManagerError::NotFound).await?;
        let kept = self.keep_snapshot(&copied, &place).await;
        if kept.is_ok() {
            failpoint::reach("orchestrator/snapshot-stored");
        }
        // The source runs on, whatever became of the copy: one that no template names is collected.
        drop(self.go_on(copied).await);
        let info = kept?;
        metrics::histogram!("atoll_sandbox_snapshot_seconds").record(began.elapsed());
        Ok(info)
    }

    /// The template of this name, if there is one and it may take a snapshot.
    async fn snapshots_named(&self, team: TeamId, place: &Place) -> Result<Option<Template>, ManagerError> {
        let Some(name) = &place.name else { return Ok(None) };
        match self.named_by_owner(team, name).await? {
            Some(template) if template.origin == TemplateOrigin::Build => {
                Err(ManagerError::Invalid(format!(
                    "'{name}' is the name of a template that is built, and a snapshot would take its place: choose another name"
                )))
            }
            found => Ok(found),
        }
    }

    /// Stores a copy as a template, or as a new build of one.
    async fn keep_snapshot(&self, copied: &Copied, place: &Place) -> Result<SnapshotInfo, ManagerError> {
        let source = &copied.source;
        let now = whole_micros(self.now());
        let mut env = source.settings.env.clone();
        env.extend(source.env.clone());
        let settings = Settings {
            resources: source.resources,
            memory: copied.memory,
            home: copied.home(),
            created_at: now,
            env,
            ..source.settings.clone()
        };
        let info = |template, build| SnapshotInfo {
            template,
            build,
            tag: place.tag.clone(),
        };
        let away = || failure::store("storing the snapshot");
        for _ in 0..ATTEMPTS_MAX {
            let Some(mut template) = self.snapshots_named(source.team, place).await? else {
                let template = new_template(copied, place, settings.clone());
                match self.parts.templates.insert(&template).await {
                    Ok(()) => return Ok(info(template, copied.build)),
                    // The name was taken meanwhile.
                    Err(StoreError::Conflict) if place.name.is_some() => continue,
                    Err(error) => return Err(away()(error)),
                }
            };
            template.tag([place.tag.clone()], copied.build, settings.clone());
            template.origin = TemplateOrigin::Snapshot(source.id);
            template.updated_at = now;
            template.build_count += 1;
            match self.parts.templates.update(&template).await {
                Ok(version) => return Ok(info(Template { version, ..template }, copied.build)),
                // It was changed, or removed, meanwhile.
                Err(StoreError::Conflict | StoreError::Missing) => {}
                Err(error) => return Err(away()(error)),
            }
        }
        Err(away()(StoreError::Conflict))
    }
}

/// A template that is this snapshot alone.
fn new_template(copied: &Copied, place: &Place, settings: Settings) -> Template {
    let created_at = settings.created_at;
    let build: BuildId = copied.build;
    Template {
        id: TemplateId::random(),
        team: copied.source.team,
        public: false,
        origin: TemplateOrigin::Snapshot(copied.source.id),
        names: place.name.iter().cloned().collect(),
        tags: BTreeMap::from([(place.tag.clone(), build)]),
        builds: BTreeMap::from([(build, settings)]),
        created_at,
        updated_at: created_at,
        last_spawned_at: None,
        spawn_count: 0,
        build_count: 1,
        version: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use model::Quota;
    use ports::store::contract;

    use super::*;

    fn template(origin: TemplateOrigin, name: &str, tags: usize) -> Template {
        let settings = Settings::default();
        let tags = (0..tags).map(|tag| (tag.to_string(), BuildId::random()));
        Template {
            id: TemplateId::random(),
            team: TeamId::random(),
            public: false,
            origin,
            names: vec![name.to_owned()],
            tags: tags.clone().collect(),
            builds: tags.map(|(_, build)| (build, settings.clone())).collect(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            last_spawned_at: None,
            spawn_count: 0,
            build_count: 1,
            version: 0,
        }
    }

    fn check(own: &[Template], (name, tag): (Option<&str>, &str), told: Option<&str>) {
        let mut team = contract::team("acme");
        team.quota = Quota {
            snapshots: 1500,
            ..Quota::default()
        };
        let place = Place {
            name: name.map(str::to_owned),
            tag: tag.to_owned(),
        };
        let refused = check_room(&team, own, &place)
            .err()
            .map(|error| error.to_string());
        assert_eq!(refused.as_deref(), told, "{place:?}");
    }

    #[test]
    fn a_team_keeps_so_many_snapshots_and_a_name_so_many_tags() {
        let snapshot = TemplateOrigin::Snapshot(SandboxId::random());
        let built = template(TemplateOrigin::Build, "built", 900);
        let (a, b) = (template(snapshot, "a", 1000), template(snapshot, "b", 499));
        let own = [built, a, b];
        check(&own, (None, "default"), None);
        check(&own, (Some("b"), "new"), None);
        let full = "The template has reached its limit of 1000 tags: delete one first";
        check(&own, (Some("a"), "new"), Some(full));
        check(&own, (Some("a"), "7"), None);
        let own = [&own[..], &[template(snapshot, "c", 1)]].concat();
        let full = "The team has reached its limit of 1500 snapshots: delete one first";
        check(&own, (None, "default"), Some(full));
        check(&own, (Some("b"), "new"), Some(full));
        check(&own, (Some("b"), "7"), None);
    }
}
