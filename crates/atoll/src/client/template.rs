//! `atoll template`.
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use super::{Endpoint, table};
use crate::out;

/// What can be done with templates.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the team's templates.
    List,
}

impl Command {
    pub(crate) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<ExitCode> {
        let Command::List = self;
        let templates = endpoint.api()?.templates().await?;
        if json {
            out::json(&templates)?;
        } else {
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
                        size,
                        template.spawn_count.to_string(),
                        template.created_at,
                    ]
                })
                .collect();
            table::print(["ID", "NAMES", "SIZE", "SANDBOXES", "CREATED"], &rows)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
