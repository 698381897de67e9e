//! The `base` template of the first start.
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use container::Containers;
use model::{BuildId, Settings, Team, Template, TemplateId, TemplateOrigin};
use ports::{Runtime as _, TemplateStore};

use crate::out;

const NAME: &str = "base";

/// Makes the template if there is none, or its layers if they are gone, and keeps slots for it ready.
pub(crate) async fn ensure(templates: &dyn TemplateStore, runtime: &Containers, team: &Team) -> Result<()> {
    let template = match templates.named(team.id, NAME).await? {
        Some(template) => template,
        None => make(templates, runtime, team).await?,
    };
    let (build, settings) = template.tagged(None).context("the base template has no build")?;
    if !runtime.has_build(build).await {
        import(runtime, build).await?;
    }
    runtime.prewarm(build, settings.resources.disk);
    Ok(())
}

async fn make(templates: &dyn TemplateStore, runtime: &Containers, team: &Team) -> Result<Template> {
    let build = BuildId::random();
    import(runtime, build).await?;
    let now = SystemTime::now();
    let settings = Settings {
        workdir: Some("/home/user".to_owned()),
        created_at: now,
        ..Settings::default()
    };
    let template = Template {
        id: TemplateId::random(),
        team: team.id,
        public: true,
        names: vec![NAME.to_owned()],
        tags: [("default".to_owned(), build)].into(),
        builds: [(build, settings)].into(),
        origin: TemplateOrigin::Build,
        version: 0,
        created_at: now,
        updated_at: now,
        last_spawned_at: None,
        spawn_count: 0,
        build_count: 1,
    };
    templates.insert(&template).await?;
    Ok(template)
}

async fn import(runtime: &Containers, build: BuildId) -> Result<()> {
    out::say("making the template `base` of this machine's own /usr");
    let lacks = container::import::lacks();
    if !lacks.is_empty() {
        out::say(format_args!(
            "this machine has no {}: sandboxes of `base` have none either",
            lacks.join(", ")
        ));
    }
    runtime
        .import_host(build)
        .await
        .context("the base template could not be made")
}
