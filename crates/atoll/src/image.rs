//! `atoll image`.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::client::table;
use crate::control::{self, Request};
use crate::images::Told;
use crate::out;
use crate::settings::Settings;

/// What can be done with images of this machine.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Takes an image from a file: an OCI layout, as a directory or tar, or what `docker save` writes. Templates are built
    /// from it by `template build NAME --from-image REF`.
    Import(Box<Import>),
    /// Lists images that were imported.
    List(Box<Settings>),
    /// Forgets an image that was imported. Templates that were built from it stay.
    Forget(Box<Forget>),
}

/// What is imported.
#[derive(Args)]
pub(crate) struct Import {
    /// Where it is.
    path: PathBuf,
    /// What it is called from now on [default: what the archive calls it].
    #[arg(long, value_name = "REF")]
    name: Option<String>,
    /// Which image of the archive, where there are several.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// What is forgotten.
#[derive(Args)]
pub(crate) struct Forget {
    /// Which, as it is listed.
    name: String,
    #[command(flatten)]
    settings: Settings,
}

impl Command {
    pub(crate) fn run(self, json: bool) -> Result<ExitCode> {
        match self {
            Command::Import(import) => import.run(json)?,
            Command::List(settings) => list(*settings, json)?,
            Command::Forget(forget) => forget.run(json)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Import {
    fn run(self, json: bool) -> Result<()> {
        // The daemon has another directory.
        let path = std::fs::canonicalize(&self.path)
            .with_context(|| format!("cannot find {}", self.path.display()))?;
        let settings = self.settings.resolve()?;
        let request = Request::Import {
            path,
            name: self.name,
            image: self.image,
        };
        let image: Told = control::ask(&settings.data_dir, &request)?;
        if json {
            out::json(&image)
        } else {
            out::line(image.name)
        }
    }
}

fn list(settings: Settings, json: bool) -> Result<()> {
    let images: Vec<Told> = control::ask(&settings.resolve()?.data_dir, &Request::Images)?;
    if json {
        return out::json(&images);
    }
    let rows: Vec<_> = images
        .into_iter()
        .map(|image| [image.name, image.digest, image.imported_at])
        .collect();
    table::print(["NAME", "DIGEST", "IMPORTED"], &rows)
}

impl Forget {
    fn run(self, json: bool) -> Result<()> {
        let settings = self.settings.resolve()?;
        let name = self.name.clone();
        let (): () = control::ask(&settings.data_dir, &Request::Forget { name })?;
        out::say(format_args!("{} is forgotten", self.name));
        if json {
            out::json(&json!({ "name": self.name, "forgotten": true }))?;
        }
        Ok(())
    }
}
