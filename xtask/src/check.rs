//! The static checks.
use anyhow::Result;

use crate::shell::{cargo, has};
use crate::{generate, shell, tidy};

/// Runs them all; the first that fails ends the run.
pub(crate) fn run() -> Result<()> {
    step("fmt", cargo().args(["fmt", "--all", "--check"]))?;
    step(
        "clippy",
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    eprintln!("check: tidy");
    tidy::run()?;
    eprintln!("check: generated files");
    generate::run(true)?;
    if has("cargo-deny") {
        step(
            "deny",
            cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]),
        )?;
    } else {
        eprintln!(
            "SKIPPED: cargo-deny is not installed (cargo install cargo-deny): licences and bans were not checked"
        );
    }
    Ok(())
}

fn step(name: &str, command: &mut std::process::Command) -> Result<()> {
    eprintln!("check: {name}");
    shell::run(command)
}
