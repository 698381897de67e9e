//! The `base` template: of the first start, and made anew when it is asked for.
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use model::{BuildId, ClusterName, Resources, Settings, Team, TeamId, Template, TemplateId, TemplateOrigin};
use ports::{StoreError, TemplateStore};
use sha2::{Digest as _, Sha256};

use crate::control::{self, Remade, Request};
use crate::machines::Machines;
use crate::out;
use crate::settings::Resolved;

const NAME: &str = "base";
/// Writers of one template are few.
const ATTEMPTS_MAX: usize = 16;

/// Makes the template if there is none, or its layers if they are gone, and keeps slots for it ready.
pub(crate) async fn ensure(templates: &dyn TemplateStore, machines: &Machines, team: &Team) -> Result<()> {
    let template = match templates.named(team.id, NAME).await? {
        Some(template) => template,
        None => make(templates, machines, team).await?,
    };
    let (build, settings) = template.tagged(None).context("the base template has no build")?;
    if !machines.runtime().has_build(build).await {
        import(machines, build).await?;
    }
    machines.prewarm(build, settings.resources.disk);
    Ok(())
}

/// The build that is `base` in a fleet: each node makes it of its own programs, under the same name.
pub(crate) fn of_fleet(cluster: &ClusterName) -> BuildId {
    let digest = Sha256::digest(format!("atoll base of {cluster}"));
    let bytes = std::array::from_fn(|at| digest[at]);
    BuildId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// Makes the template of a fleet's build if there is none.
pub(crate) async fn register(templates: &dyn TemplateStore, team: TeamId, build: BuildId) -> Result<()> {
    match templates.named(team, NAME).await? {
        Some(_) => Ok(()),
        None => name(templates, team, build).await.map(drop),
    }
}

/// Has a fleet's build on this node.
pub(crate) async fn ensure_here(machines: &Machines, build: BuildId) -> Result<()> {
    if !machines.runtime().has_build(build).await {
        import(machines, build).await?;
    }
    machines.prewarm(build, Resources::default().disk);
    Ok(())
}

/// Makes the template anew of this machine as it is now. The build of before is collected when no sandbox uses it.
pub(crate) async fn remake(
    templates: &dyn TemplateStore,
    machines: &Machines,
    team: TeamId,
) -> Result<BuildId> {
    let build = BuildId::random();
    import(machines, build).await?;
    let named = name(templates, team, build).await;
    if named.is_err() {
        let _ = machines.runtime().remove_builds(&[build]).await;
    }
    let settings = named?;
    machines.prewarm(build, settings.resources.disk);
    Ok(build)
}

/// Lets the template's default tag name a build, be the template there or not.
async fn name(templates: &dyn TemplateStore, team: TeamId, build: BuildId) -> Result<Settings> {
    for _ in 0..ATTEMPTS_MAX {
        let now = SystemTime::now();
        let Some(mut template) = templates.named(team, NAME).await? else {
            let (template, settings) = new(team, build);
            match templates.insert(&template).await {
                Ok(()) => return Ok(settings),
                Err(StoreError::Conflict) => continue,
                Err(error) => return Err(error).context("the base template cannot be stored"),
            }
        };
        let settings = settings(now);
        template.tag([Template::DEFAULT_TAG.to_owned()], build, settings.clone());
        template.updated_at = now;
        template.build_count += 1;
        match templates.update(&template).await {
            Ok(_) => return Ok(settings),
            // It was changed, or removed, meanwhile.
            Err(StoreError::Conflict | StoreError::Missing) => {}
            Err(error) => return Err(error).context("the base template cannot be stored"),
        }
    }
    anyhow::bail!("the base template is being changed by somebody else all the time; try again")
}

/// With what its sandboxes run.
fn settings(now: SystemTime) -> Settings {
    Settings {
        workdir: Some("/home/user".to_owned()),
        created_at: now,
        ..Settings::default()
    }
}

/// `atoll template import-host`.
pub(crate) fn run(settings: &Resolved, json: bool) -> Result<ExitCode> {
    let made: Remade = control::ask(&settings.data_dir, &Request::ImportHost)?;
    if json {
        out::json(&made)?;
    } else {
        out::line(made.build_id)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn make(templates: &dyn TemplateStore, machines: &Machines, team: &Team) -> Result<Template> {
    let build = BuildId::random();
    import(machines, build).await?;
    let (template, _) = new(team.id, build);
    templates.insert(&template).await?;
    Ok(template)
}

/// The template of this build.
fn new(team: TeamId, build: BuildId) -> (Template, Settings) {
    let now = SystemTime::now();
    let settings = settings(now);
    let template = Template {
        id: TemplateId::random(),
        team,
        public: true,
        names: vec![NAME.to_owned()],
        tags: [(Template::DEFAULT_TAG.to_owned(), build)].into(),
        builds: [(build, settings.clone())].into(),
        origin: TemplateOrigin::Build,
        version: 0,
        created_at: now,
        updated_at: now,
        last_spawned_at: None,
        spawn_count: 0,
        build_count: 1,
    };
    (template, settings)
}

async fn import(machines: &Machines, build: BuildId) -> Result<()> {
    out::say("making the template `base` of this machine's own /usr");
    let lacks = rootfs::lacks();
    if !lacks.is_empty() {
        out::say(format_args!(
            "this machine has no {}: sandboxes of `base` have none either",
            lacks.join(", ")
        ));
    }
    machines
        .import_host(build, Resources::default())
        .await
        .context("the base template could not be made")
}
