//! Services that the tests of the cluster run beside Atoll, built from their sources in Go's module registry, each version pinned by
//! `tests/tools/go.sum`; and the check of the jobs for Nomad.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::shell::{cache, command, has, root, run};
use crate::tally::Tally;

/// A program that is built.
struct Built {
    name: &'static str,
    /// Where its module is.
    module: &'static str,
    /// What is built there.
    package: &'static str,
    /// How long that takes on two cores with nothing in Go's cache, as far as it is known.
    minutes: u32,
}

const CONSUL: Built = Built {
    name: "consul",
    module: "tests/tools",
    package: "github.com/hashicorp/consul",
    minutes: 6,
};
const JOBS: Built = Built {
    name: "jobs",
    module: "tests/tools/jobs",
    package: ".",
    minutes: 1,
};

/// What the tests need, where it could be had.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// The program Consul.
    pub(crate) consul: Option<PathBuf>,
    /// The program Nomad, which is not built: this machine has one, or has none.
    pub(crate) nomad: Option<PathBuf>,
    /// The check of jobs against Nomad's types.
    pub(crate) jobs: Option<PathBuf>,
}

/// Has the services, building what is not there yet; says aloud, once, what could not be had, and why.
pub(crate) fn have() -> &'static Services {
    static HAD: OnceLock<Services> = OnceLock::new();
    HAD.get_or_init(get)
}

fn get() -> Services {
    let built = |program: &Built| {
        build(program)
            .inspect_err(|error| {
                eprintln!(
                    "services: SKIPPED: no {}, and what needs it is not tested: {error:#}",
                    program.name
                )
            })
            .ok()
    };
    let nomad = nomad();
    if nomad.is_none() {
        eprintln!(
            "services: SKIPPED: no Nomad on this machine: its adapter is tested on a double, and its jobs against its client's types \
             alone. Nomad is not built here; put the program on the PATH, or name it in ATOLL_TEST_NOMAD"
        );
    }
    Services {
        consul: built(&CONSUL),
        nomad,
        jobs: built(&JOBS),
    }
}

/// Consul, built where it is not there yet.
pub(crate) fn consul() -> Result<PathBuf> {
    build(&CONSUL)
}

/// Prints where the services are; fails where one that can be built is not there.
pub(crate) fn print() -> Result<()> {
    let services = have();
    for (name, program) in [
        ("consul", &services.consul),
        ("nomad", &services.nomad),
        ("jobs", &services.jobs),
    ] {
        if let Some(program) = program {
            println!("{name} {}", program.display());
        }
    }
    if services.consul.is_none() || services.jobs.is_none() {
        bail!("not all services are there");
    }
    check_jobs(services).map(drop)
}

/// Holds the jobs of `deploy/nomad`, and what the adapter sends, against the types of Nomad's client, and, where there is a Nomad, has
/// it parse them.
pub(crate) fn check_jobs(services: &Services) -> Result<Tally> {
    let mut jobs: Vec<PathBuf> = fs::read_dir(root().join("deploy/nomad"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "hcl"))
        .collect();
    jobs.sort();
    let mut tally = Tally::default();
    match &services.jobs {
        Some(check) => {
            run(command(check)
                .args(&jobs)
                .arg("tests/tools/jobs/testdata/block.json"))?;
            tally.passed += 1;
        }
        None => tally.skipped += 1,
    }
    Ok(tally)
}

fn nomad() -> Option<PathBuf> {
    let named = std::env::var_os("ATOLL_TEST_NOMAD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("nomad"));
    named.into_iter().chain(on_path).find(|program| program.is_file())
}

/// Builds a program, unless exactly this version of it is there.
fn build(program: &Built) -> Result<PathBuf> {
    let module = root().join(program.module);
    let directory = cache().join("services").join(digest(&module)?);
    let there = directory.join(program.name);
    if there.is_file() {
        return Ok(there);
    }
    if !has("go") {
        bail!("there is no Go on the PATH (Debian's package golang-go, 1.26 or newer)");
    }
    eprintln!(
        "services: {} from {}, which takes about {} minutes once",
        program.name, program.module, program.minutes
    );
    fs::create_dir_all(&directory)?;
    // Named when it is whole.
    let partial = directory.join(format!("{}.partial-{}", program.name, std::process::id()));
    let built = go(&module, &["build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(&partial)
        .arg(program.package)
        .status()
        .context("go cannot be run")?;
    if !built.success() {
        let _ = fs::remove_file(&partial);
        bail!("go build ended with {built}");
    }
    fs::rename(&partial, &there)?;
    Ok(there)
}

/// Go, in a module of ours, with the toolchain that is there and nothing of the machine's own settings that changes what is built.
fn go(module: &Path, arguments: &[&str]) -> Command {
    let mut go = command("go");
    go.current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .args(arguments);
    go
}

/// What a module's build depends on: which versions, and which sources of its own.
fn digest(module: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in ["go.mod", "go.sum", "main.go"] {
        match fs::read(module.join(name)) {
            Ok(content) => hash.update(content),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name == "main.go" => {}
            Err(error) => return Err(error).with_context(|| format!("{name} of {}", module.display())),
        }
    }
    let digest = hash.finalize();
    Ok(digest[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}
