//! Building the programs: the static ones that run in every sandbox, and Atoll with its launcher.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{cargo, read, run, target_dir};

/// The target that envd is built for where it is installed.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// As a machine has them that serves users.
    Released,
    /// As the Rust tests are: nothing is compiled for them alone, and Atoll dies where a test tells it to, and nowhere if none
    /// does.
    Tested,
}

impl Build {
    /// Builds Atoll, and returns its path; the programs that it needs are beside it.
    pub(crate) fn atoll(self) -> Result<PathBuf> {
        match self {
            Build::Released => released(&[]),
            Build::Tested => tested(),
        }
    }

    /// Builds the benchmark as well, and returns its path and Atoll's.
    pub(crate) fn benchmark(self) -> Result<(PathBuf, PathBuf)> {
        match self {
            Build::Released => {
                let atoll = released(&["--package", "testkit"])?;
                Ok((atoll.with_file_name("atoll-bench"), atoll))
            }
            Build::Tested => {
                let atoll = tested()?;
                Ok((target_dir().join("debug/atoll-bench"), atoll))
            }
        }
    }
}

/// Builds the programs in release mode, and places them in a directory.
pub(crate) fn programs(out: &Path) -> Result<()> {
    let atoll = Build::Released.atoll()?;
    let bin = atoll.parent().context("a program lies in a directory")?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    place(bin, &IN_SANDBOXES, out)?;
    place(bin, &["atoll", "atoll-launcher"], out)
}

fn released(more: &[&str]) -> Result<PathBuf> {
    let envd = envd()?;
    eprintln!("build: atoll");
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--bins",
        "--package",
        "atoll",
        "--package",
        "container",
    ]);
    run(build.args(more))?;
    let bin = target_dir().join("release");
    place(&envd, &IN_SANDBOXES, &bin)?;
    Ok(bin.join("atoll"))
}

/// In a directory of their own: another build writes over programs where cargo puts them.
fn tested() -> Result<PathBuf> {
    let envd = envd()?;
    // With the examples come the features of tests.
    let debug = debug(&["--bins", "--examples"])?;
    let bin = target_dir().join("tested");
    std::fs::create_dir_all(&bin)?;
    place(&envd, &IN_SANDBOXES, &bin)?;
    place(&debug, &["atoll", "atoll-launcher"], &bin)?;
    Ok(bin.join("atoll"))
}

/// Builds targets of these kinds as the tests need them, and returns their directory. Whatever the kinds, the features are
/// those of [`for_tests`]: nothing is compiled twice.
pub(crate) fn debug(kinds: &[&str]) -> Result<PathBuf> {
    eprintln!("build: {}", kinds.join(" "));
    run(for_tests("build").args(kinds))?;
    Ok(target_dir().join("debug"))
}

/// Cargo, for everything that the tests are built of. Clippy compiles it, and refuses what it would warn of: to look at all of
/// it separately takes as long as half of a build.
pub(crate) fn for_tests(verb: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
        .env(
            "CLIPPY_ARGS",
            "--deny__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
        )
        .args([
            verb,
            "--workspace",
            "--features",
            "atoll/failpoints,container/failpoints",
        ]);
    cargo
}

/// The static programs: those that come into every sandbox, and the first one of a guest.
const IN_SANDBOXES: [&str; 3] = ["atoll-envd", "atoll-sudo", "atoll-guest"];

/// Copies programs. Each is replaced, never written over: a running sandbox may be executing the old file.
fn place(from: &Path, programs: &[&str], to: &Path) -> Result<()> {
    for program in programs {
        let fresh = to.join(format!(".{program}.new"));
        std::fs::copy(from.join(program), &fresh)
            .with_context(|| format!("cannot place {program} in {}", to.display()))?;
        std::fs::rename(&fresh, to.join(program))?;
    }
    Ok(())
}

/// Whether the musl target is installed.
pub(crate) fn has_musl() -> bool {
    read(Command::new("rustc").args(["--print", "target-libdir", "--target", MUSL]))
        .is_ok_and(|dir| Path::new(dir.trim()).is_dir())
}

/// Builds the in-sandbox programs as static binaries and returns their directory. Against musl where its target is
/// installed, because such a program starts ten times faster; against static glibc otherwise.
fn envd() -> Result<PathBuf> {
    let target = if has_musl() { MUSL } else { GNU };
    eprintln!("build: envd, static, for {target}");
    let mut build = cargo();
    build.args([
        "build",
        "--profile",
        "envd",
        "--package",
        "envd",
        "--package",
        "guest-agent",
        "--bins",
        "--target",
        target,
    ]);
    run(build.env(
        "RUSTFLAGS",
        "-C target-feature=+crt-static -C relocation-model=static",
    ))?;
    Ok(target_dir().join(target).join("envd"))
}
