//! The static checks.
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::for_tests;
use crate::shell::{cargo, command, run as run_to_end};
use crate::tally::Tally;
use crate::{clients, generate, tidy};

/// Runs them all, each counted as one test; the first that fails ends the run.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    step(&mut tally, "fmt", || {
        run_to_end(cargo().args(["fmt", "--all", "--check"]))
    })?;
    step(&mut tally, "clippy, which builds everything", || {
        run_to_end(for_tests("build").arg("--all-targets"))
    })?;
    step(&mut tally, "tidy", tidy::run)?;
    step(&mut tally, "generated files", || generate::run(true))?;
    match deny() {
        Ok(mut deny) => step(&mut tally, "licences, bans, sources", || run_to_end(&mut deny))?,
        Err(error) => {
            eprintln!("SKIPPED: licences, bans and sources were NOT checked: {error:#}");
            tally.skipped += 1;
        }
    }
    Ok(tally)
}

fn step(tally: &mut Tally, name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("check: {name}");
    check()?;
    tally.passed += 1;
    Ok(())
}

/// The tool, and what it looks at: sources of crates for every target, some of which no build here has fetched.
fn deny() -> Result<Command> {
    let program = clients::cargo_deny().context("cargo-deny cannot be installed")?;
    run_to_end(cargo().args(["fetch", "--locked", "--quiet"])).context("the crates cannot be fetched")?;
    let mut deny = command(program);
    deny.args(["--offline", "--locked", "check", "bans", "licenses", "sources"]);
    Ok(deny)
}
