//! Builds of templates, from their order to their end.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sdk::StatusQuery;
use wire::rest::{BuildStatus, NewBuild, StartBuild, TemplateStep};

use crate::house::House;

/// How often is asked how far a build is.
const ASKED_EVERY: Duration = Duration::from_millis(20);
const ENDS_WITHIN: Duration = Duration::from_secs(600);

/// A build that is ready.
pub(crate) struct Build {
    /// From the order to the answer that says so.
    pub(crate) took: Duration,
    /// Its log.
    pub(crate) lines: Vec<String>,
}

/// Builds a template of this name.
pub(crate) async fn build(house: &House, name: &str, recipe: &StartBuild) -> Result<Build> {
    let wanted = NewBuild {
        name: Some(name.to_owned()),
        ..NewBuild::default()
    };
    let registered = house.api.register_build(&wanted).await?;
    let (template, build) = (&registered.template_id, &registered.build_id);
    let begun = Instant::now();
    house.api.start_build(template, build, recipe).await?;
    let mut lines: Vec<String> = Vec::new();
    let mut query = StatusQuery::default();
    loop {
        let told = house.api.build_status(template, build, query).await?;
        let has_more = !told.logs.is_empty();
        query.offset += told.logs.len() as u64;
        lines.extend(told.logs);
        match told.status {
            BuildStatus::Error => {
                let why = told.reason.map(|reason| reason.message).unwrap_or_default();
                bail!("the build of {name} failed: {why}\n{}", lines.join("\n"));
            }
            BuildStatus::Ready if !has_more => {
                let took = begun.elapsed();
                return Ok(Build { took, lines });
            }
            BuildStatus::Ready => {}
            BuildStatus::Waiting | BuildStatus::Building if begun.elapsed() > ENDS_WITHIN => {
                bail!("the build of {name} has not ended in time:\n{}", lines.join("\n"));
            }
            BuildStatus::Waiting | BuildStatus::Building => tokio::time::sleep(ASKED_EVERY).await,
        }
    }
}

/// A step that runs a command in a shell.
pub(crate) fn run(command: impl Into<String>) -> TemplateStep {
    TemplateStep {
        kind: "RUN".to_owned(),
        args: Some(vec![command.into()]),
        files_hash: None,
        force: None,
    }
}

/// Removes a template, of which no sandbox is left.
pub(crate) async fn remove(house: &House, name: &str) -> Result<()> {
    house
        .api
        .delete_template(name)
        .await
        .with_context(|| format!("removing {name}"))
}
