//! Registering builds (contract 4.1).
use std::collections::BTreeMap;

use model::{
    Build, BuildId, BuildStatus, MiB, Quota, Resources, Team, TeamId, Template, TemplateId, TemplateOrigin,
};
use ports::templates::RegisterBuild;
use ports::{ManagerError, StoreError, TemplateError};

use super::change::failed;
use super::names;
use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::timeout::whole_micros;

/// The most vCPUs (contract 4.1).
const CPU_MAX: u32 = 32;
/// The least memory (contract 4.1).
const MEMORY_MIN: MiB = MiB(128);
/// The largest writable disk: one of another size would not fit a node of the sizes that there are.
const DISK_MAX: MiB = MiB(1024 * 1024);
/// Builds of other templates that a team may have under way when it registers another one.
const BUILDS_MAX: usize = 20;
/// Builds of other templates that are registered and that nobody has started: clients die between the two, and such a build is given
/// up after a day. Each is a row.
const WAITING_MAX: usize = 200;
/// Losing this often against other writers means that something writes in a loop.
const ATTEMPTS_MAX: usize = 16;

fn invalid<T>(message: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError::Invalid(message.into()))
}

/// The size of a build's sandboxes.
fn size(request: &RegisterBuild, quota: &Quota) -> Result<Resources, TemplateError> {
    let standard = Resources::default();
    let cpu = request.cpu.unwrap_or(standard.cpu);
    if cpu < 1 {
        return invalid("CPU count must be at least 1");
    }
    if cpu > CPU_MAX {
        return invalid(format!("CPU count must be at most {CPU_MAX}"));
    }
    if cpu != 1 && !cpu.is_multiple_of(2) {
        return invalid("CPU count must be 1 or an even number");
    }
    if cpu > quota.cpu {
        return invalid(format!(
            "CPU count can't be higher than {}, the team's limit",
            quota.cpu
        ));
    }
    let memory = request.memory.unwrap_or(standard.memory);
    if memory < MEMORY_MIN {
        return invalid(format!("Memory must be at least {MEMORY_MIN}"));
    }
    if !memory.0.is_multiple_of(2) {
        return invalid("Memory must be divisible by 2");
    }
    if memory > quota.memory {
        return invalid(format!(
            "Memory can't be higher than {}, the team's limit",
            quota.memory
        ));
    }
    Ok(Resources {
        cpu,
        memory,
        disk: disk(request.free_disk, standard.disk)?,
    })
}

/// The disk that has so much free: an empty ext4 of it holds inodes, journal and what is reserved for root, which is less
/// than a sixteenth and half a gigabyte.
fn disk(free: Option<MiB>, standard: MiB) -> Result<MiB, TemplateError> {
    let Some(MiB(free)) = free else {
        return Ok(standard);
    };
    let needed = MiB(free.saturating_add(free / 16).saturating_add(512));
    if needed > DISK_MAX {
        return invalid(format!(
            "Free disk can't be that large: a disk is at most {DISK_MAX}"
        ));
    }
    Ok(needed.max(standard))
}

/// What is to name the build: what was asked for, or `default`.
fn tags(request: &RegisterBuild) -> Result<Vec<String>, TemplateError> {
    let given = request.name.tag.iter().chain(&request.tags).cloned();
    let tags = names::tags(given)?;
    Ok(if tags.is_empty() {
        vec![Template::DEFAULT_TAG.to_owned()]
    } else {
        tags
    })
}

impl Orchestrator {
    /// Registers a build of a new or existing template.
    #[tracing::instrument(name = "template.register", skip_all, fields(%team))]
    pub(super) async fn register_build(
        &self,
        team: TeamId,
        request: RegisterBuild,
    ) -> Result<(Template, Build), TemplateError> {
        let team = self.team(team).await?;
        names::check_namespace(&team, &request.name)?;
        let tags = tags(&request)?;
        let resources = size(&request, &team.quota)?;
        let template = self.template_to_build(&team, &request, &tags).await?;
        failpoint::reach("orchestrator/template-stored");
        let _locked = self.template_locks.lock(template.id).await;
        self.supersede_waiting(template.id, &tags).await?;
        let now = whole_micros(self.now());
        let build = Build {
            id: BuildId::random(),
            template: template.id,
            team: team.id,
            status: BuildStatus::Waiting,
            tags,
            resources,
            recipe: None,
            node: None,
            runner: None,
            created_at: now,
            updated_at: now,
            finished_at: None,
            version: 0,
        };
        let insert = self.parts.builds.insert_build(&build).await;
        insert.map_err(failure::store("storing the build"))?;
        failpoint::reach("orchestrator/build-registered");
        tracing::info!(template = %template.id, build = %build.id, "a build is registered");
        Ok((template, build))
    }

    /// The template of this name, with one build more, or a new one.
    async fn template_to_build(
        &self,
        team: &Team,
        request: &RegisterBuild,
        tags: &[String],
    ) -> Result<Template, TemplateError> {
        let name = &request.name.name;
        let mut is_counted = false;
        for _ in 0..ATTEMPTS_MAX {
            let found = self.named_by_owner(team.id, name).await?;
            if !is_counted {
                self.check_builds_under_way(team.id, found.as_ref().map(|template| template.id))
                    .await?;
                is_counted = true;
            }
            let now = whole_micros(self.now());
            if let Some(template) = found {
                if matches!(template.origin, TemplateOrigin::Snapshot(_)) {
                    return invalid(format!(
                        "'{name}' is the name of a snapshot, and a build would take its place: choose another name"
                    ));
                }
                let edit = |template: &mut Template| {
                    names::check_tags_of_one(template, tags)?;
                    template.build_count += 1;
                    Ok::<_, TemplateError>(true)
                };
                match self.edit_template(template.id, edit).await? {
                    Some(template) => return Ok(template),
                    None => continue,
                }
            }
            let template = Template {
                id: TemplateId::random(),
                team: team.id,
                public: false,
                origin: TemplateOrigin::Build,
                names: vec![name.clone()],
                tags: BTreeMap::new(),
                builds: BTreeMap::new(),
                created_at: now,
                updated_at: now,
                last_spawned_at: None,
                spawn_count: 0,
                build_count: 1,
                version: 0,
            };
            match self.parts.templates.insert(&template).await {
                Ok(()) => return Ok(template),
                // The name was taken meanwhile.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(failure::store("storing the template")(error).into()),
            }
        }
        Err(failure::store("storing the template")(StoreError::Conflict).into())
    }

    /// Refuses a build where the team has too many under way. Those of the same template do not count: a newer one takes
    /// their place.
    async fn check_builds_under_way(
        &self,
        team: TeamId,
        template: Option<TemplateId>,
    ) -> Result<(), TemplateError> {
        let unfinished = self.parts.builds.unfinished_builds().await;
        let unfinished = unfinished.map_err(failure::store("reading the builds"))?;
        let counts = |build: &&Build| build.team == team && Some(build.template) != template;
        let (waiting, under_way): (Vec<_>, Vec<_>) = unfinished
            .iter()
            .filter(counts)
            .partition(|build| build.status == BuildStatus::Waiting);
        if under_way.len() >= BUILDS_MAX {
            return Err(TemplateError::Exhausted(format!(
                "The team has reached its limit of {BUILDS_MAX} template builds at a time: wait for one to end"
            )));
        }
        if waiting.len() >= WAITING_MAX {
            return Err(TemplateError::Exhausted(format!(
                "The team has registered {WAITING_MAX} template builds that were not started: start them, or delete their templates"
            )));
        }
        Ok(())
    }

    /// Gives up the builds that wait to be started for one of these tags.
    async fn supersede_waiting(&self, template: TemplateId, tags: &[String]) -> Result<(), ManagerError> {
        let builds = self.parts.builds.builds_of(template).await;
        let builds = builds.map_err(failure::store("reading the builds"))?;
        let is_superseded = |build: &&Build| {
            build.status == BuildStatus::Waiting && build.tags.iter().any(|tag| tags.contains(tag))
        };
        for build in builds.iter().filter(is_superseded) {
            let why = failed(
                None,
                "a newer build with the same tag was registered before this one was started",
            );
            self.give_up_build(build.id, why).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cpu: Option<u32>, memory: Option<u32>, free_disk: Option<u32>) -> RegisterBuild {
        RegisterBuild {
            name: "app".parse().unwrap(),
            tags: Vec::new(),
            cpu,
            memory: memory.map(MiB),
            free_disk: free_disk.map(MiB),
        }
    }

    fn check(request: &RegisterBuild, expected: Result<(u32, u32, u32), &str>) {
        let quota = Quota {
            cpu: 16,
            memory: MiB(65_536),
            ..Quota::default()
        };
        let size = size(request, &quota).map(|size| (size.cpu, size.memory.0, size.disk.0));
        assert_eq!(
            size.map_err(|error| error.to_string()),
            expected.map_err(str::to_owned)
        );
    }

    #[test]
    fn sizes_have_defaults_and_bounds() {
        check(&request(None, None, None), Ok((2, 1024, 10_240)));
        check(&request(Some(1), Some(128), Some(0)), Ok((1, 128, 10_240)));
        check(
            &request(Some(16), Some(65_536), Some(20_480)),
            Ok((16, 65_536, 22_272)),
        );
        check(&request(Some(0), None, None), Err("CPU count must be at least 1"));
        check(
            &request(Some(3), None, None),
            Err("CPU count must be 1 or an even number"),
        );
        check(
            &request(Some(34), None, None),
            Err("CPU count must be at most 32"),
        );
        check(
            &request(Some(18), None, None),
            Err("CPU count can't be higher than 16, the team's limit"),
        );
        check(
            &request(None, Some(126), None),
            Err("Memory must be at least 128 MiB"),
        );
        check(
            &request(None, Some(129), None),
            Err("Memory must be divisible by 2"),
        );
        check(
            &request(None, Some(65_538), None),
            Err("Memory can't be higher than 65536 MiB, the team's limit"),
        );
        check(
            &request(None, None, Some(u32::MAX)),
            Err("Free disk can't be that large: a disk is at most 1048576 MiB"),
        );
    }

    #[test]
    fn a_build_without_tags_is_the_default_and_the_names_tag_is_one_of_them() {
        let mut request = request(None, None, None);
        assert_eq!(tags(&request).unwrap(), ["default"]);
        request.name = "app:v1".parse().unwrap();
        request.tags = vec!["V1".to_owned(), "latest".to_owned()];
        assert_eq!(tags(&request).unwrap(), ["v1", "latest"]);
    }
}
