//! `cargo xtask up`: from a clean clone to a running Atoll.
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::{build, setup};

/// Prepares the machine, builds, and becomes `atoll up`.
pub(crate) fn run(rest: &[String]) -> Result<()> {
    setup::to_run()?;
    let atoll = build::release()?;
    eprintln!(
        "up: the program is {}; a PATH of yours may name its directory",
        atoll.display()
    );
    let failed = std::process::Command::new(&atoll).arg("up").args(rest).exec();
    Err(failed).with_context(|| format!("cannot start {}", atoll.display()))
}
