//! `atoll doctor`.
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use container::probe::{Check, Verdict, look, memory};

use crate::control::{self, Request, Status};
use crate::data::DataDir;
use crate::out;
use crate::settings::{Resolved, RuntimeKind};

mod microvms;

/// Says what this machine can do; fails where no sandbox could be started.
pub(crate) fn run(settings: &Resolved, json: bool) -> Result<ExitCode> {
    let checks = match settings.runtime {
        RuntimeKind::Container => {
            let mut checks = vec![kernel()];
            checks.extend(look(&settings.data_dir));
            checks.push(memory_of(settings, &running(settings)?));
            checks
        }
        RuntimeKind::Qemu => microvms::look(settings)?,
        RuntimeKind::Firecracker => microvms::look_at_firecracker(settings)?,
    };
    let checks: Vec<_> = checks
        .into_iter()
        .chain([kvm()])
        .chain(ports(settings)?)
        .collect();
    let fit = checks.iter().all(|check| check.verdict != Verdict::Missing);
    let what = match settings.runtime {
        RuntimeKind::Container => "containers",
        RuntimeKind::Qemu => "virtual machines under QEMU",
        RuntimeKind::Firecracker => "virtual machines under Firecracker",
    };
    let table = table(settings);
    if json {
        let shown: Vec<_> = checks.iter().map(as_json).collect();
        let runtimes: serde_json::Map<_, _> = table
            .into_iter()
            .map(|(name, can)| Ok((name.to_owned(), serde_json::to_value(can)?)))
            .collect::<Result<_>>()?;
        out::json(
            &serde_json::json!({ "fit": fit, "runtime": settings.runtime.name(), "checks": shown, "runtimes": runtimes }),
        )?;
    } else {
        let conclusion = if fit {
            format!("Sandboxes can run here, as {what}.")
        } else {
            format!("Sandboxes cannot run here yet, as {what}.")
        };
        let lines: String = checks.iter().map(as_text).collect();
        out::text(&format!("{lines}\n{}\n{conclusion}\n", table_as_text(&table)?))?;
    }
    Ok(if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What sandboxes of each runtime can do with these settings.
fn table(settings: &Resolved) -> [(&'static str, wire::rest::Capabilities); 3] {
    let is_root = rustix::process::geteuid().is_root();
    [
        ("container", container::capabilities(settings.criu.is_some())),
        ("qemu", qemu::capabilities(is_root)),
        ("firecracker", fc_control::capabilities(true)),
    ]
    .map(|(name, can)| (name, api::capabilities(can)))
}

fn table_as_text(table: &[(&'static str, wire::rest::Capabilities)]) -> Result<String> {
    let mut lines = format!("{:<16}", "--runtime");
    for (name, _) in table {
        lines += &format!(" {name:<11}");
    }
    let told = table
        .iter()
        .map(|(_, can)| serde_json::to_value(can))
        .collect::<Result<Vec<_>, _>>()?;
    let names = told.first().and_then(serde_json::Value::as_object);
    for name in names.into_iter().flat_map(serde_json::Map::keys) {
        lines += &format!("\n{name:<16}");
        for can in &told {
            let word = if can[name] == true { "yes" } else { "no" };
            lines += &format!(" {word:<11}");
        }
    }
    Ok(lines.lines().flat_map(|line| [line.trim_end(), "\n"]).collect())
}

/// A daemon says what it is at in milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The daemon of the data directory, as far as it can be asked.
enum Daemon {
    /// None runs.
    None,
    /// It says which CRIU it uses.
    Uses(Option<PathBuf>),
    /// It says nothing: to whoever is not root, most often.
    Silent,
}

fn running(settings: &Resolved) -> Result<Daemon> {
    if !DataDir::is_held(&settings.data_dir)? {
        return Ok(Daemon::None);
    }
    let status = control::ask_within::<Status>(&settings.data_dir, &Request::Status, ANSWERS_WITHIN);
    Ok(status.map_or(Daemon::Silent, |status| Daemon::Uses(status.criu)))
}

/// Whether memory is kept: by the CRIU of the daemon that runs here, or else of the one that would be started with these settings.
fn memory_of(settings: &Resolved, daemon: &Daemon) -> Check {
    let (criu, told) = match daemon {
        Daemon::Uses(Some(path)) => (
            Some(path),
            format!("{}, which the daemon that runs here uses", path.display()),
        ),
        Daemon::Uses(None) => (None, "the daemon that runs here was started without".to_owned()),
        Daemon::None => (settings.criu.as_ref(), settings.criu_told()),
        Daemon::Silent => (
            settings.criu.as_ref(),
            format!(
                "{}; the daemon that runs here, which may use another, does not answer",
                settings.criu_told()
            ),
        ),
    };
    let mut check = memory(&settings.data_dir.join("container"), criu.map(PathBuf::as_path));
    check.found = format!("{} ({told})", check.found);
    check
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Poor => "poor",
        Verdict::Missing => "missing",
    }
}

fn as_text(check: &Check) -> String {
    let found = format!("{:<8} {:<30} {}\n", word(check.verdict), check.name, check.found);
    let hint = check
        .hint
        .as_ref()
        .map(|hint| format!("{:<8} {:<30} → {hint}\n", "", ""));
    found + &hint.unwrap_or_default()
}

fn as_json(check: &Check) -> serde_json::Value {
    serde_json::json!({ "name": check.name, "verdict": word(check.verdict), "found": check.found, "hint": check.hint })
}

/// Overlays over layers whose owners are mapped.
const OVERLAYS_MAP_OWNERS: (u32, u32) = (5, 19);
/// Overlays that are told their layers by descriptors of mounts that are attached nowhere; before, each is attached for a
/// moment.
const OVERLAYS_TAKE_DESCRIPTORS: (u32, u32) = (6, 15);

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let verdict = if version < OVERLAYS_MAP_OWNERS {
        Verdict::Missing
    } else {
        Verdict::Poor
    };
    Check::new(
        "kernel",
        version >= OVERLAYS_TAKE_DESCRIPTORS,
        verdict,
        release,
        "Linux 5.19 is needed; from 6.15 on creates are a little faster",
    )
}

fn kvm() -> Check {
    let there = Path::new("/dev/kvm").exists();
    let found = if there {
        "/dev/kvm is there; containers need none, and QEMU uses it where it works"
    } else {
        "none: containers need none, and QEMU emulates the processor"
    };
    Check::new("KVM", true, Verdict::Poor, found, "")
}

fn ports(settings: &Resolved) -> Result<Vec<Check>> {
    if DataDir::is_held(&settings.data_dir)? {
        return Ok(vec![Check::new(
            "ports",
            true,
            Verdict::Missing,
            "a daemon runs on this data directory",
            "",
        )]);
    }
    let check = |name: &'static str, address| {
        let free = TcpListener::bind(address).is_ok();
        Check::new(
            name,
            free,
            Verdict::Missing,
            format!("{address} is {}", if free { "free" } else { "taken" }),
            "choose another by --api-listen, --edge-listen or --admin-listen",
        )
    };
    Ok(vec![
        check("API port", settings.api_listen),
        check("edge port", settings.edge_listen),
        check("admin port", settings.admin_listen),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_criu_of_the_daemon_that_runs_is_looked_at_whatever_is_set() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            settings: crate::settings::Settings,
        }
        let line = Line::parse_from(["doctor", "--data-dir", "/nonexistent", "--criu", "/set/criu"]);
        let settings = line.settings.resolve().unwrap();
        let found = |daemon| memory_of(&settings, &daemon).found;
        let its = found(Daemon::Uses(Some("/its/criu".into())));
        assert!(
            its.contains("/its/criu, which the daemon that runs here uses") && !its.contains("/set"),
            "{its}"
        );
        let none = found(Daemon::Uses(None));
        assert!(
            none.starts_with("no CRIU") && none.contains("started without"),
            "{none}"
        );
        let set = found(Daemon::None);
        assert!(set.contains("/set/criu, as it is set"), "{set}");
        assert!(found(Daemon::Silent).contains("does not answer"));
    }
}
