//! What no compiler checks: the arrows between crates, where `unsafe` may stand, which files nobody uses.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::limits;
use crate::shell::{cargo, read, root};

/// Who may depend on whom (docs/architecture.md). `atoll`, `testkit` and `xtask` may use everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("ports", &["model"]),
    ("wire", &["model"]),
    ("linux", &[]),
    ("failpoint", &[]),
    ("orchestrator", &["model", "ports", "failpoint"]),
    ("api", &["model", "ports", "wire"]),
    ("edge", &["model", "ports", "wire"]),
    ("node", &["model", "ports", "wire", "failpoint"]),
    ("container", &["model", "ports", "linux", "failpoint"]),
    ("envd", &["model", "wire", "linux"]),
    ("sql", &["model", "ports"]),
    ("sdk", &["wire", "model"]),
];

/// Whoever may use everything, and is used by tests and chores alone.
const FREE: &[&str] = &["atoll", "testkit", "xtask"];

/// Longer files have grown a second noun. Tests of any length sit in files of their own.
const LINES_MAX: usize = 700;

/// Runs every check and reports all that is wrong at once.
pub(crate) fn run() -> Result<()> {
    let mut wrong = arrows()?;
    wrong.extend(limits::wrong(&root())?);
    for file in sources(&root())? {
        let text = fs::read_to_string(&file)?;
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        wrong.extend(source(&name, &text));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}", wrong.join("\n  "));
}

fn arrows() -> Result<Vec<String>> {
    let metadata: Value = serde_json::from_str(&read(cargo().args([
        "metadata",
        "--format-version=1",
        "--no-deps",
    ]))?)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists packages")?;
    let house: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in packages {
        let from = package["name"].as_str().unwrap_or_default();
        if FREE.contains(&from) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == from) else {
            wrong.push(format!(
                "crate {from} has no line in xtask/src/tidy.rs: say what it may depend on"
            ));
            continue;
        };
        let dependencies = package["dependencies"]
            .as_array()
            .context("a package lists dependencies")?;
        // Tests may reach for the testkit; what ships may not.
        let ships = dependencies
            .iter()
            .filter(|dependency| dependency["kind"] != "dev");
        for to in ships
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|name| house.contains(name))
        {
            if !allowed.contains(&to) {
                wrong.push(format!(
                    "{from} → {to} is not an arrow of the house: remove it, or decide it in docs/decisions/"
                ));
            }
        }
    }
    Ok(wrong)
}

/// Rust files of the workspace.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.join("crates"), root.join("xtask")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn source(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let is_test = name.contains("/tests/") || name.ends_with("tests.rs") || name.contains("/benches/");
    let is_generated = text.starts_with("// @generated");
    let lines = text.lines().count();
    if lines > LINES_MAX && !is_test && !is_generated {
        wrong.push(format!(
            "{name} has {lines} lines: split it by its nouns (at most {LINES_MAX})"
        ));
    }
    let is_root = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
    if is_root && !name.starts_with("crates/linux/") && !text.contains("#![forbid(unsafe_code)]") {
        wrong.push(format!("{name} does not open with #![forbid(unsafe_code)]"));
    }
    let first = text.lines().next().unwrap_or_default();
    if is_root && !first.starts_with("//!") {
        wrong.push(format!("{name} does not say in its first line what it is"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_without_the_ban_on_unsafe_is_found() {
        assert_eq!(
            source("crates/api/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n"),
            Vec::<String>::new()
        );
        assert_eq!(source("crates/api/src/lib.rs", "//! x\n").len(), 1);
        assert_eq!(source("crates/linux/src/lib.rs", "//! x\n").len(), 0);
    }

    #[test]
    fn a_file_that_grew_too_long_is_found() {
        let long = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(source("crates/api/src/thing.rs", &long).len(), 1);
        assert_eq!(source("crates/api/tests/thing.rs", &long).len(), 0);
    }
}
