//! `atoll key`.
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::json;

use super::{Endpoint, table};
use crate::out;

/// What can be done with keys.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a key. It is shown this once.
    Create {
        /// For people.
        name: String,
    },
    /// Lists the team's keys, masked.
    List,
    /// Deletes a key: it works no longer.
    Revoke {
        /// Its id, or its name where no other key has it.
        key: String,
    },
}

impl Command {
    pub(crate) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<ExitCode> {
        let api = endpoint.api()?;
        match self {
            Command::Create { name } => {
                let created = api.create_key(&name).await?;
                if json {
                    out::json(&created)?;
                } else {
                    out::line(&created.key)?;
                    out::say(format_args!(
                        "this is key {}; it is not shown again",
                        created.about.id
                    ));
                }
            }
            Command::List => {
                let keys = api.keys().await?;
                if json {
                    out::json(&keys)?;
                } else {
                    let rows: Vec<_> = keys
                        .into_iter()
                        .map(|key| {
                            let mask = format!(
                                "{}{}…{}",
                                key.mask.prefix, key.mask.masked_value_prefix, key.mask.masked_value_suffix
                            );
                            [
                                key.id,
                                key.name,
                                mask,
                                key.created_at,
                                key.last_used.unwrap_or_else(|| "never".to_owned()),
                            ]
                        })
                        .collect();
                    table::print(["ID", "NAME", "KEY", "CREATED", "LAST USED"], &rows)?;
                }
            }
            Command::Revoke { key } => {
                let named: Vec<_> = api
                    .keys()
                    .await?
                    .into_iter()
                    .filter(|found| found.id == key || found.name == key)
                    .collect();
                let one = match &named[..] {
                    [one] => one,
                    [] => bail!("no key has the id or name '{key}'"),
                    _ => bail!("{} keys have the name '{key}': give an id", named.len()),
                };
                api.delete_key(&one.id).await?;
                out::say("the key is revoked");
                if json {
                    out::json(&json!({ "id": one.id, "name": one.name, "revoked": true }))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
