use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Programs of this machine's packages.
pub(super) struct Programs {
    /// Where `initdb` and `postgres` are.
    pub(super) postgres: PathBuf,
    pub(super) redis: PathBuf,
    pub(super) consul: PathBuf,
}

impl Programs {
    /// Finds all, or says how to get what is missing.
    pub(super) fn find(consul: Option<&Path>) -> Result<Self> {
        let consul = match consul {
            Some(path) => path.to_owned(),
            None => crate::settings::on_path("consul").context(
                "there is no consul on the PATH: --consul names one, `cargo xtask services` builds one",
            )?,
        };
        if !consul.is_file() {
            bail!("there is no program {}", consul.display());
        }
        Ok(Self {
            postgres: postgres().context("there is no PostgreSQL: install the package `postgresql`")?,
            redis: crate::settings::on_path("redis-server")
                .context("there is no redis-server on the PATH: install the package `redis-server`")?,
            consul,
        })
    }
}

/// Debian keeps each major version's programs apart: the newest.
fn postgres() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            Some((
                version.file_name().to_str()?.parse().ok()?,
                version.path().join("bin"),
            ))
        })
        .filter(|(_, bin)| bin.join("initdb").is_file())
        .collect();
    found.sort();
    let newest = found.pop().map(|(_, bin)| bin);
    newest.or_else(|| crate::settings::on_path("initdb")?.parent().map(Path::to_owned))
}
