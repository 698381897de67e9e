//! CRIU, by which memory outlives processes: this machine's, if it is new enough, or else a private one, unpacked with its
//! own libraries and C library, of which nothing else on the machine takes notice.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::setup::is_root;
use crate::shell::{cache, command, has};

/// The oldest that works on today's kernels.
const VERSION_MIN: (u32, u32) = (4, 2);
/// The suite of Debian that has it.
const SUITE: &str = "sid";
/// Where Debian's packages come from, for machines that do not say.
const ARCHIVE: &str = "http://deb.debian.org/debian";
/// What answers no sooner is not there.
const ANSWERS_WITHIN_S: u32 = 20;

/// A CRIU that works with Atoll; where there is none yet, one is fetched. `None`, said aloud, where it cannot be had.
pub(crate) fn have() -> Option<PathBuf> {
    get()
        .inspect_err(|error| {
            eprintln!("setup: SKIPPED: memory cannot be saved, and is not tested: no CRIU: {error:#}");
        })
        .ok()
}

/// The same; where it cannot be had, why.
pub(crate) fn get() -> Result<PathBuf> {
    is_there().map_or_else(fetch, Ok)
}

/// A CRIU that works with Atoll, if it is there already.
pub(crate) fn is_there() -> Option<PathBuf> {
    let private = private().join("criu");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|dir| dir.join("criu"))
        .chain([private])
        .find(|program| program.is_file() && is_new_enough(program).is_ok())
}

fn private() -> PathBuf {
    cache().join("criu")
}

fn is_new_enough(program: &Path) -> Result<()> {
    let output = Command::new(program).arg("--version").output()?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = told
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))
        .with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{} does not tell its version: {}", program.display(), said.trim())
        })?
        .trim();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let is = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if is < VERSION_MIN {
        bail!(
            "{} is {version}, and {}.{} is needed",
            program.display(),
            VERSION_MIN.0,
            VERSION_MIN.1
        );
    }
    Ok(())
}

/// Fetches Debian's packages of CRIU and of all that it needs, and unpacks them into a directory of their own.
fn fetch() -> Result<PathBuf> {
    if !is_root() || !has("apt-get") || !has("dpkg-deb") {
        bail!("it can be fetched by root of a Debian or its kin; elsewhere install CRIU 4.2 or newer");
    }
    let room = cache().join("criu.partial");
    let _ = fs::remove_dir_all(&room);
    let (apt, root) = (room.join("apt"), room.join("root"));
    for dir in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(dir))?;
    }
    fs::write(
        apt.join("sources.list"),
        format!("deb {} {SUITE} main\n", archive()),
    )?;
    // Nothing counts as installed: its libraries come along, down to the C library.
    fs::write(apt.join("status"), "")?;
    eprintln!(
        "setup: CRIU and its libraries, from Debian {SUITE}, into {}",
        private().display()
    );
    run(apt_get(&apt).arg("update"))?;
    run(apt_get(&apt).args([
        "install",
        "--yes",
        "--download-only",
        "--no-install-recommends",
        "criu",
    ]))?;
    for package in fs::read_dir(apt.join("cache/archives"))? {
        let package = package?.path();
        if package.extension().is_some_and(|kind| kind == "deb") {
            run(command("dpkg-deb").arg("--extract").arg(&package).arg(&root))?;
        }
    }
    fs::remove_dir_all(&apt)?;
    let _ = fs::remove_dir_all(root.join("usr/share"));
    let (loader, libraries) = loader(&root)?;
    let wrapper = room.join("criu");
    let script = format!(
        "#!/bin/sh\n# CRIU with the libraries that it was built for.\nroot=${{0%/*}}/root\n\
         exec \"$root/{loader}\" --library-path \"$root/{libraries}\" \"$root/usr/sbin/criu\" \"$@\"\n"
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    is_new_enough(&wrapper)?;
    let _ = fs::remove_dir_all(private());
    fs::rename(&room, private())?;
    Ok(private().join("criu"))
}

/// Where the loader of programs and the libraries are below a root.
fn loader(root: &Path) -> Result<(&'static str, &'static str)> {
    [
        ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
        ("usr/lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
    ]
    .into_iter()
    .find(|(loader, _)| root.join(loader).exists())
    .context("the C library brought no loader for this processor")
}

/// apt, with nothing of this machine's but its keys.
fn apt_get(dir: &Path) -> Command {
    let mut apt = command("apt-get");
    let path = |name: &str| dir.join(name).display().to_string();
    let options = [
        ("Dir::Etc::sourcelist", path("sources.list")),
        ("Dir::Etc::sourceparts", "-".to_owned()),
        ("Dir::State::lists", path("lists")),
        ("Dir::State::status", path("status")),
        ("Dir::Cache", path("cache")),
        ("Acquire::Retries", "1".to_owned()),
        ("Acquire::http::Timeout", ANSWERS_WITHIN_S.to_string()),
        ("Acquire::Languages", "none".to_owned()),
        // The directory is not for others to enter.
        ("APT::Sandbox::User", "root".to_owned()),
    ];
    apt.args(["-qq"]).env("DEBIAN_FRONTEND", "noninteractive");
    for (name, value) in options {
        apt.args(["-o", &format!("{name}={value}")]);
    }
    apt
}

/// From where this machine's own packages come, if that is Debian's archive or a copy of it.
fn archive() -> String {
    let more = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    more.map(|entry| entry.path())
        .chain(["/etc/apt/sources.list".into()])
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|sources| archive_in(&sources))
        .unwrap_or_else(|| ARCHIVE.to_owned())
}

fn archive_in(sources: &str) -> Option<String> {
    sources
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.contains("://") && word.ends_with("/debian"))
        .map(str::to_owned)
}

/// Runs quietly: what it says is told only where it fails.
fn run(command: &mut Command) -> Result<()> {
    let Output { status, stderr, .. } = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!(
            "{command:?} ended with {status}: {}",
            String::from_utf8_lossy(&stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_archive_is_found_in_either_form_of_sources() {
        let check = |sources: &str, expected: Option<&str>| {
            assert_eq!(archive_in(sources).as_deref(), expected, "{sources}");
        };
        check(
            "deb http://a.example/debian bookworm main\n",
            Some("http://a.example/debian"),
        );
        check(
            "Types: deb\nURIs: https://b.example/debian/\nSuites: x\n",
            Some("https://b.example/debian"),
        );
        check("# deb http://a.example/debian x main\n", None);
        check("deb http://a.example/debian-security x main\n", None);
        check("deb http://a.example/ubuntu x main\n", None);
    }
}
