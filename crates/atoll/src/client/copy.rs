//! `cp`: files and directories between this machine and a sandbox or a volume, by streams.
//!
//! ```text
//! SRC, DST ─▶ Place ─┬─ fetch: Remote ─▶ local   directories by descriptors, no link followed, files by renaming
//!                    └─ send:  local ─▶ Remote
//! ```
//!
//! What a sandbox or a volume tells of itself is hostile: of what it calls its entries, only plain names become names
//! here, and nothing is written through a link. So nothing is written outside of the destination.
mod fetch;
mod local;
mod place;
mod remote;
mod send;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

pub(super) use self::place::Place;
use self::remote::Remote;
use super::Endpoint;
use crate::out;

/// Directories below one another that are copied: nobody has more, but a hostile other side may.
const DEPTH_MAX: usize = 128;

/// What `cp` is told.
#[derive(clap::Args)]
pub(crate) struct Copy {
    /// What is copied: a path here, `WHERE:/path` there, or `-` for standard input.
    #[arg(value_parser = Place::parse)]
    source: Place,
    /// Where to: a path here, `WHERE:/path` there, or `-` for standard output.
    #[arg(value_parser = Place::parse)]
    destination: Place,
}

/// What was copied.
#[derive(Debug, Default)]
struct Copied {
    files: u64,
    bytes: u64,
    /// What is neither a file nor a directory.
    skipped: Vec<String>,
}

impl Copied {
    fn skip(&mut self, what: String) {
        out::say(format_args!(
            "{} is passed over: it is neither a file nor a directory",
            super::words::short(&what)
        ));
        // It is told at once; in the document, some are enough.
        if self.skipped.len() < 1_000 {
            self.skipped.push(what);
        }
    }
}

impl Copy {
    /// Whether standard output is what is copied.
    pub(super) const fn lends_output(&self) -> bool {
        matches!(self.destination, Place::Stream)
    }

    /// Between here and a sandbox, as `user` there.
    pub(super) async fn sandbox(self, endpoint: &Endpoint, user: Option<String>, json: bool) -> Result<()> {
        let (id, _) = self.there()?;
        let inside = endpoint.inside(id).await?;
        self.run(remote::Sandbox::new(inside, user), json).await
    }

    /// Between here and a volume.
    pub(super) async fn volume(self, endpoint: &Endpoint, json: bool) -> Result<()> {
        let (name, _) = self.there()?;
        let volume = super::volume::find(endpoint, name).await?;
        let api = endpoint.api()?;
        let content = api.volume_content(&api.volume(&volume.volume_id).await?)?;
        self.run(remote::Volume(content), json).await
    }

    /// The side that is not here: where, and the path there.
    fn there(&self) -> Result<(&str, &str)> {
        match (&self.source, &self.destination) {
            (Place::Remote { of, path }, Place::Local(_) | Place::Stream)
            | (Place::Local(_) | Place::Stream, Place::Remote { of, path }) => Ok((of, path)),
            (Place::Remote { .. }, Place::Remote { .. }) => {
                bail!("both sides are elsewhere: copy to this machine first")
            }
            _ => bail!("neither side is elsewhere: one must be WHERE:/path"),
        }
    }

    async fn run(&self, mut remote: impl Remote, json: bool) -> Result<()> {
        let mut copied = Copied::default();
        match (&self.source, &self.destination) {
            (Place::Remote { path, .. }, Place::Stream) => {
                fetch::to_stdout(&remote, path, &mut copied).await?
            }
            (Place::Remote { path, .. }, Place::Local(local)) => {
                fetch::fetch(&remote, path, local, &mut copied).await?
            }
            (Place::Stream, Place::Remote { path, .. }) => {
                send::stdin(&mut remote, path, &mut copied).await?
            }
            (Place::Local(local), Place::Remote { path, .. }) => {
                send::send(&mut remote, local, path, &mut copied).await?
            }
            _ => self.there().map(drop)?,
        }
        remote
            .finish()
            .await
            .context("what was copied has not got its permissions")?;
        if json {
            return out::json(
                &json!({ "files": copied.files, "bytes": copied.bytes, "skipped": copied.skipped }),
            );
        }
        if !self.lends_output() {
            let s = if copied.files == 1 { "" } else { "s" };
            out::say(format_args!(
                "copied {} file{s}, {} bytes",
                copied.files, copied.bytes
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
