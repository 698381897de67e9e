//! `atoll template`.
mod build;
mod follow;
mod password;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use sdk::Client;
use serde_json::json;
use wire::rest::{BuildStatus, TemplateBuild, TemplateDetail};

use self::build::Build;
use super::{Endpoint, table};
use crate::out;
use crate::settings::Settings;

/// What can be done with templates.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Builds a template, and prints its id.
    Build(Box<Build>),
    /// Makes the template `base` anew, of this machine's own /usr as it is now, and prints the id of its build. Sandboxes
    /// that run keep what they started from. (`template build base --from-image REF` makes it of an image.)
    ImportHost(Box<Settings>),
    /// Lists the team's templates.
    List,
    /// All about a template.
    Info {
        /// Its name or id.
        name: String,
    },
    /// Lists the builds of a template, newest first.
    Builds {
        /// Its name or id.
        name: String,
    },
    /// Prints the log of a build.
    Logs {
        /// The template's name or id.
        name: String,
        /// Which build [default: the newest].
        #[arg(long)]
        build: Option<String>,
        /// Goes on until the build is over.
        #[arg(long, short)]
        follow: bool,
    },
    /// Lists the tags of a template.
    Tags {
        /// Its name or id.
        name: String,
    },
    /// Lets more tags name a build.
    Tag {
        /// The build: NAME, or NAME:TAG.
        name: String,
        /// Tags.
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Takes tags from a template; `default` stays.
    Untag {
        /// Its name or id.
        name: String,
        /// Tags.
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Lets other teams use a template.
    Publish {
        /// Its name or id.
        name: String,
    },
    /// Keeps a template from other teams again.
    Unpublish {
        /// Its name or id.
        name: String,
    },
    /// Removes a template that no sandbox uses.
    Delete {
        /// Its name or id.
        name: String,
    },
}

impl Command {
    pub(crate) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<ExitCode> {
        let api = endpoint.api()?;
        match self {
            Command::Build(build) => return build.run(&api, json).await,
            Command::ImportHost(_) => anyhow::bail!("this is the daemon's to do"),
            Command::List => list(&api, json).await?,
            Command::Info { name } => {
                let (template, _) = first_page(&api, &name).await?;
                if json {
                    out::json(&template)?;
                } else {
                    out::line(serde_json::to_string_pretty(&template)?)?;
                }
            }
            Command::Builds { name } => builds(&api, &name, json).await?,
            Command::Logs { name, build, follow } => {
                let (template, build) = match build {
                    Some(build) => (name, build),
                    None => newest(&api, &name).await?,
                };
                return follow::print(&api, &template, &build, follow, json).await;
            }
            Command::Tags { name } => {
                let tags = api.tags(&name).await?;
                if json {
                    out::json(&tags)?;
                } else {
                    let rows: Vec<_> = tags
                        .into_iter()
                        .map(|tag| [tag.tag, tag.build_id, tag.created_at])
                        .collect();
                    table::print(["TAG", "BUILD", "SINCE"], &rows)?;
                }
            }
            Command::Tag { name, tags } => {
                let tagged = api.assign_tags(&name, &tags).await?;
                out::say(format_args!(
                    "{} of {name} is now {}",
                    tagged.build_id,
                    tagged.tags.join(", ")
                ));
                if json {
                    out::json(&tagged)?;
                }
            }
            Command::Untag { name, tags } => {
                api.delete_tags(&name, &tags).await?;
                out::say(format_args!("{name} is no longer {}", tags.join(", ")));
                if json {
                    out::json(&json!({ "name": name, "removed": tags }))?;
                }
            }
            Command::Publish { name } => publish(&api, &name, true, json).await?,
            Command::Unpublish { name } => publish(&api, &name, false, json).await?,
            Command::Delete { name } => {
                api.delete_template(&name).await?;
                out::say(format_args!("{name} is gone"));
                if json {
                    out::json(&json!({ "name": name, "deleted": true }))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(api: &Client, json: bool) -> Result<()> {
    let templates = api.templates().await?;
    if json {
        return out::json(&templates);
    }
    let rows: Vec<_> = templates
        .into_iter()
        .map(|template| {
            let size = format!(
                "{} CPU, {} MiB, {} MiB disk",
                template.cpu_count, template.memory_mb, template.disk_size_mb
            );
            [
                template.template_id,
                template.aliases.join(", "),
                status(template.build_status).to_owned(),
                size,
                template.spawn_count.to_string(),
                template.created_at,
            ]
        })
        .collect();
    table::print(["ID", "NAMES", "BUILD", "SIZE", "SANDBOXES", "CREATED"], &rows)
}

/// A template with its newest builds, and where more begin.
async fn first_page(api: &Client, name: &str) -> Result<(TemplateDetail, Option<String>)> {
    let page = api.template(name, None).await?;
    let template = page
        .items
        .into_iter()
        .next()
        .context("the server tells of no template")?;
    Ok((template, page.next))
}

async fn builds(api: &Client, name: &str, json: bool) -> Result<()> {
    let (template, mut next) = first_page(api, name).await?;
    let mut builds = template.builds;
    while let Some(token) = next {
        let page = api.template(name, Some(&token)).await?;
        builds.extend(page.items.into_iter().flat_map(|template| template.builds));
        next = page.next.filter(|next| *next != token);
    }
    if json {
        return out::json(&builds);
    }
    let row = |build: TemplateBuild| {
        let size = format!("{} CPU, {} MiB", build.cpu_count, build.memory_mb);
        let finished = build.finished_at.unwrap_or_else(|| "not yet".to_owned());
        [
            build.build_id,
            status(build.status).to_owned(),
            size,
            build.created_at,
            finished,
        ]
    };
    let rows: Vec<_> = builds.into_iter().map(row).collect();
    table::print(["ID", "STATUS", "SIZE", "CREATED", "FINISHED"], &rows)
}

/// The newest build of a template.
async fn newest(api: &Client, name: &str) -> Result<(String, String)> {
    let (template, _) = first_page(api, name).await?;
    let newest = template.builds.into_iter().next();
    let newest = newest.with_context(|| format!("{name} has no build"))?;
    Ok((template.template.template_id, newest.build_id))
}

async fn publish(api: &Client, name: &str, public: bool, json: bool) -> Result<()> {
    let changed = api.publish_template(name, public).await?;
    let whose = if public {
        "all teams may use it"
    } else {
        "only its own team may use it"
    };
    out::say(format_args!("{name}: {whose}"));
    if json {
        return out::json(&json!({ "names": changed.names, "public": public }));
    }
    Ok(())
}

const fn status(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Waiting => "waiting",
        BuildStatus::Building => "building",
        BuildStatus::Ready => "ready",
        BuildStatus::Error => "failed",
    }
}
