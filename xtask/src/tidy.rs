//! What no compiler checks: the arrows between crates, who may touch what, files that nothing compiles, links and
//! paths in the documents that lead nowhere, and the page of limits.
mod links;
mod modules;
mod source;

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
    ("rootfs", &["ports", "linux"]),
    ("orchestrator", &["model", "ports", "failpoint"]),
    ("api", &["model", "ports", "wire"]),
    ("edge", &["model", "ports", "wire"]),
    ("node", &["model", "ports", "wire", "artifact", "failpoint"]),
    ("net", &["model", "ports", "linux"]),
    (
        "container",
        &["model", "ports", "linux", "net", "rootfs", "volumes", "failpoint"],
    ),
    ("volumes", &["model", "ports", "linux", "failpoint"]),
    ("envd", &["model", "wire", "linux"]),
    ("guest", &["model", "ports", "volumes"]),
    (
        "microvm",
        &["model", "ports", "guest", "linux", "net", "volumes", "failpoint"],
    ),
    (
        "qemu",
        &[
            "model",
            "ports",
            "guest",
            "linux",
            "net",
            "rootfs",
            "microvm",
            "failpoint",
        ],
    ),
    (
        "fc-control",
        &[
            "model",
            "ports",
            "guest",
            "linux",
            "net",
            "rootfs",
            "microvm",
            "failpoint",
        ],
    ),
    ("guest-agent", &["guest", "linux"]),
    ("artifact", &["model", "ports"]),
    ("sql", &["model", "ports"]),
    ("cluster", &["model", "ports"]),
    ("rpc", &["model", "ports", "wire"]),
    ("sdk", &["wire", "model"]),
];

/// Whoever may use everything, and is used by tests and chores alone.
const FREE: &[&str] = &["atoll", "testkit", "xtask"];

/// Libraries that one crate of the house has to itself, in tests too.
const OWNED: &[(&str, &str)] = &[("sqlx", "sql")];

/// Runs every check and reports all that is wrong at once.
pub(crate) fn run() -> Result<()> {
    let root = root();
    let packages = packages()?;
    let mut wrong = arrows(&packages)?;
    wrong.extend(limits::wrong(&root)?);
    wrong.extend(links::wrong(&root)?);
    let targets = targets(&packages);
    let compiled = modules::of(targets.iter().map(|target| target.path.as_path()))?;
    for file in sources(&root)? {
        let text = fs::read_to_string(&file)?;
        let name = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        let is_shipped_root = targets.iter().any(|target| target.ships && target.path == file);
        wrong.extend(source::wrong(&name, &text, is_shipped_root));
        if !compiled.contains(&file) {
            wrong.push(format!("{name} is compiled by nobody: no module declares it"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}", wrong.join("\n  "));
}

/// What cargo says of the workspace's packages.
fn packages() -> Result<Vec<Value>> {
    let metadata: Value = serde_json::from_str(&read(cargo().args([
        "metadata",
        "--format-version=1",
        "--no-deps",
    ]))?)?;
    let packages = metadata["packages"].as_array();
    Ok(packages.context("cargo metadata lists packages")?.clone())
}

/// A file that cargo compiles as the root of a crate.
struct Target {
    path: PathBuf,
    /// A library or a program; not a test, an example, a benchmark or a build script.
    ships: bool,
}

fn targets(packages: &[Value]) -> Vec<Target> {
    let all = packages
        .iter()
        .filter_map(|package| package["targets"].as_array())
        .flatten();
    all.filter_map(|target| {
        let kinds = target["kind"].as_array()?;
        Some(Target {
            path: target["src_path"].as_str()?.into(),
            ships: kinds.iter().any(|kind| kind == "lib" || kind == "bin"),
        })
    })
    .collect()
}

fn arrows(packages: &[Value]) -> Result<Vec<String>> {
    let house: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in packages {
        let from = package["name"].as_str().unwrap_or_default();
        let dependencies = package["dependencies"]
            .as_array()
            .context("a package lists dependencies")?;
        for (library, owner) in OWNED {
            let uses = dependencies
                .iter()
                .any(|dependency| dependency["name"] == *library);
            if uses && from != *owner {
                wrong.push(format!("{from} uses {library}, which only {owner} may"));
            }
        }
        if FREE.contains(&from) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == from) else {
            wrong.push(format!(
                "crate {from} has no line in xtask/src/tidy.rs: say what it may depend on"
            ));
            continue;
        };
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
    let mut found = files(&root.join("crates"), "rs")?;
    found.extend(files(&root.join("xtask"), "rs")?);
    found.sort();
    Ok(found)
}

/// Files below a directory whose names end so.
fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
