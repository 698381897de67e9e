//! What sandboxes and the daemon take of the machine's memory.
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use wire::rest::Sandbox;

use crate::figures::{Figures, Goal};
use crate::house::{House, command};
use crate::scale::Scale;

/// Creates under way at a time.
const AT_ONCE: u32 = 8;
/// Until what was freed or prepared is counted.
const SETTLED: Duration = Duration::from_secs(5);
/// The daemon's share of an idle sandbox.
const DAEMON_PER_SANDBOX_MIB: f64 = 50.0 / 1024.0;
const DAEMON_MIB: f64 = 60.0;

pub(crate) async fn measure(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    tokio::time::sleep(SETTLED).await;
    figures.one(
        "daemon, resident, after the above",
        Goal::at_most(DAEMON_MIB),
        resident_mib(house.daemon)?,
        "MiB",
    );
    let (before, mut idle) = (available_mib()?, Vec::new());
    for count in scale.idle {
        while idle.len() < count as usize {
            let more: Vec<Sandbox> = try_join_all((0..AT_ONCE).map(|_| house.create())).await?;
            idle.extend(more);
        }
        tokio::time::sleep(SETTLED).await;
        figures.one(
            format!("machine memory for each of {count} idle sandboxes"),
            Goal::at_most(2.5),
            (before - available_mib()?) / f64::from(count),
            "MiB",
        );
        figures.one(
            format!("daemon, resident, with {count} idle sandboxes"),
            Goal::at_most(DAEMON_MIB + DAEMON_PER_SANDBOX_MIB * f64::from(count)),
            resident_mib(house.daemon)?,
            "MiB",
        );
    }
    for sandbox in [idle.first(), idle.last()].into_iter().flatten() {
        command(&house.inside(sandbox)?, &["/bin/true"])
            .await
            .context("one of many idle sandboxes does not answer")?;
    }
    try_join_all(idle.iter().map(|sandbox| house.kill(sandbox))).await?;
    Ok(())
}

/// What a process holds now.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    field_mib(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// What it held at most since [`forget_peak`].
pub(crate) fn peak_mib(pid: u32) -> Result<f64> {
    field_mib(&format!("/proc/{pid}/status"), "VmHWM:")
}

/// Begins a new peak (proc_pid_clear_refs(5)).
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

/// What the machine has to give.
pub(crate) fn available_mib() -> Result<f64> {
    field_mib("/proc/meminfo", "MemAvailable:")
}

/// A line of a file of `/proc`.
pub(crate) fn field_mib(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("{path} has no {name}"))?;
    let kib = line.trim().strip_suffix(" kB").unwrap_or_default().trim();
    ensure!(!kib.is_empty(), "{path}: {name} is not in kB");
    Ok(kib.parse::<f64>()? / 1024.0)
}
