//! `atoll snapshot`.
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use sdk::SnapshotsQuery;
use serde_json::json;
use wire::rest::Memory;

use super::{Endpoint, table};
use crate::out;

/// What can be done with snapshots. They are taken by `atoll sandbox snapshot`.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists snapshots, youngest first.
    List {
        /// Only those of this sandbox.
        #[arg(long, value_name = "ID")]
        sandbox: Option<String>,
        /// Only those of this name, NAME or NAME:TAG.
        #[arg(long)]
        name: Option<String>,
    },
    /// Removes a snapshot that no sandbox uses.
    Delete {
        /// Which, as it is listed.
        id: String,
    },
}

impl Command {
    pub(crate) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<ExitCode> {
        let api = endpoint.api()?;
        match self {
            Command::List { sandbox, name } => {
                let mut query = SnapshotsQuery {
                    sandbox,
                    name,
                    ..SnapshotsQuery::default()
                };
                let mut all = Vec::new();
                loop {
                    let page = api.snapshots(&query).await?;
                    all.extend(page.items);
                    match page.next {
                        Some(next) if query.next.as_ref() != Some(&next) => query.next = Some(next),
                        _ => break,
                    }
                }
                if json {
                    out::json(&all)?;
                } else {
                    let rows: Vec<_> = all
                        .into_iter()
                        .map(|snapshot| [snapshot.snapshot_id, shown(snapshot.memory).to_owned()])
                        .collect();
                    table::print(["ID", "MEMORY"], &rows)?;
                }
            }
            Command::Delete { id } => {
                api.delete_template(&id).await?;
                out::say(format_args!("{id} is gone"));
                if json {
                    out::json(&json!({ "snapshotID": id, "deleted": true }))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How much of the processes a snapshot holds.
pub(super) const fn shown(memory: Memory) -> &'static str {
    match memory {
        Memory::Durable => "durable",
        Memory::Volatile => "volatile",
        Memory::None => "none",
    }
}
