//! `cargo xtask up`: from a clean clone to a running Atoll.
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::build::Build;
use crate::{criu, setup};

/// Prepares the machine, builds, and becomes `atoll up`.
pub(crate) fn run(rest: &[String]) -> Result<()> {
    setup::to_run()?;
    let atoll = Build::Released.atoll()?;
    eprintln!(
        "up: the program is {}; a PATH of yours may name its directory",
        atoll.display()
    );
    let mut up = std::process::Command::new(&atoll);
    if std::env::var_os("ATOLL_CRIU").is_none()
        && let Some(criu) = criu::is_there()
    {
        up.env("ATOLL_CRIU", criu);
    }
    let failed = up.arg("up").args(rest).exec();
    Err(failed).with_context(|| format!("cannot start {}", atoll.display()))
}
