//! `cargo xtask soak`: the crash tests for as long as one likes.
use anyhow::{Result, bail};

use crate::build::Build;
use crate::shell::{command, run};
use crate::{clients, setup};

/// Churns sandboxes in a house of its own, with deaths of the daemon; prints what it saw.
pub(crate) fn run_for(rest: &[String]) -> Result<()> {
    setup::to_test()?;
    if !setup::is_root() {
        bail!("the soak kills a daemon with real sandboxes: run it as root");
    }
    let atoll = Build::Released.atoll()?;
    run(command(clients::python()?)
        .arg("tests/e2e/crash/soak.py")
        .args(rest)
        .env("ATOLL_BIN", atoll))
}
