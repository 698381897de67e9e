//! `atoll volume`.
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::json;
use wire::rest::{Volume, VolumeEntryKind};

use super::copy::{Copy, Place};
use super::words::short;
use super::{Endpoint, table};
use crate::out;

/// What can be done with volumes.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a volume, and prints its id.
    Create {
        /// Its name: letters, digits, '_' and '-'.
        name: String,
    },
    /// Lists the team's volumes.
    List,
    /// Removes a volume that no sandbox has, with everything in it.
    Delete {
        /// Its name or id.
        volume: String,
    },
    /// Lists what lies in a directory of a volume.
    Ls {
        /// VOLUME, or VOLUME:/path.
        place: String,
    },
    /// Copies files between this machine and a volume, VOLUME:/path.
    Cp(Copy),
}

impl Command {
    /// Whether standard output is what is copied.
    pub(crate) const fn lends_output(&self) -> bool {
        matches!(self, Self::Cp(copy) if copy.lends_output())
    }

    pub(crate) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<ExitCode> {
        let api = endpoint.api()?;
        match self {
            Command::Create { name } => {
                let made = api.create_volume(&name).await?;
                if json {
                    // Without its token: whoever may make it gets another when it is needed.
                    out::json(&json!({ "volumeID": made.volume_id, "name": made.name }))?;
                } else {
                    out::line(made.volume_id)?;
                }
            }
            Command::List => {
                let volumes = api.volumes().await?;
                if json {
                    out::json(&volumes)?;
                } else {
                    let rows: Vec<_> = volumes
                        .into_iter()
                        .map(|volume| [volume.volume_id, volume.name])
                        .collect();
                    table::print(["ID", "NAME"], &rows)?;
                }
            }
            Command::Delete { volume } => {
                let found = find(endpoint, &volume).await?;
                api.delete_volume(&found.volume_id).await?;
                out::say(format_args!("{} is gone", found.name));
                if json {
                    out::json(&json!({ "volumeID": found.volume_id, "name": found.name, "deleted": true }))?;
                }
            }
            Command::Ls { place } => list(endpoint, &place, json).await?,
            Command::Cp(copy) => copy.volume(endpoint, json).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A volume by its name, or its id.
pub(super) async fn find(endpoint: &Endpoint, named: &str) -> Result<Volume> {
    let volumes = endpoint.api()?.volumes().await?;
    let mut found = volumes
        .into_iter()
        .filter(|volume| volume.name == named || volume.volume_id == named);
    match (found.next(), found.next()) {
        (Some(volume), None) => Ok(volume),
        (None, _) => bail!("no volume has the name or id '{named}'"),
        (Some(_), Some(_)) => bail!("'{named}' is the name of one volume and the id of another"),
    }
}

async fn list(endpoint: &Endpoint, place: &str, json: bool) -> Result<()> {
    let (named, path) = match Place::parse(place) {
        Ok(Place::Remote { of, path }) => (of, path),
        _ if !place.contains([':', '/']) => (place.to_owned(), "/".to_owned()),
        _ => bail!("'{place}' is neither VOLUME nor VOLUME:/path"),
    };
    let api = endpoint.api()?;
    let volume = api.volume(&find(endpoint, &named).await?.volume_id).await?;
    let entries = api.volume_content(&volume)?.list(&path, 1).await?;
    if json {
        return out::json(&entries);
    }
    let rows: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let kind = match entry.kind {
                VolumeEntryKind::File => "file",
                VolumeEntryKind::Directory => "directory",
                VolumeEntryKind::Symlink => "link",
                VolumeEntryKind::Unknown => "other",
            };
            [
                kind.to_owned(),
                format!("{:04o}", entry.mode & 0o7777),
                format!("{}:{}", entry.uid, entry.gid),
                entry.size.to_string(),
                entry.mtime,
                short(&entry.name),
            ]
        })
        .collect();
    table::print(["KIND", "MODE", "OWNER", "BYTES", "CHANGED", "NAME"], &rows)
}
