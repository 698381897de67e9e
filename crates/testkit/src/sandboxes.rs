//! Creating, using and ending sandboxes.
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use model::Secret;
use sdk::{Program, SandboxClient};
use wire::rest::{NewSandbox, Sandbox};

use crate::House;
use crate::figures::Figures;

const RUNS: usize = 200;
/// Between two creates one after another: a pool has time to prepare a slot.
const PAUSE: Duration = Duration::from_millis(30);
const AT_ONCE: usize = 50;
const SUSTAINED_FOR: Duration = Duration::from_secs(10);
const WORKERS: usize = 4;
const IDLE: usize = 200;

impl House {
    pub(crate) async fn create(&self) -> Result<Sandbox> {
        let wanted = NewSandbox {
            template_id: "base".to_owned(),
            timeout: Some(600),
            ..NewSandbox::default()
        };
        Ok(self.api.create(&wanted).await?)
    }

    pub(crate) fn inside(&self, sandbox: &Sandbox) -> Result<SandboxClient> {
        let token = sandbox.envd_access_token.clone().map(Secret::new);
        Ok(SandboxClient::new(
            &self.sandbox_url,
            &sandbox.sandbox_id,
            token.as_ref(),
        )?)
    }

    pub(crate) async fn kill(&self, sandbox: &Sandbox) -> Result<()> {
        Ok(self.api.kill(&sandbox.sandbox_id).await?)
    }
}

/// Runs `true` and waits for its end.
async fn command(inside: &SandboxClient) -> Result<()> {
    let program = Program {
        cmd: "/bin/true".to_owned(),
        ..Program::default()
    };
    let exit = inside.start(program).await?.wait().await?;
    ensure!(exit.exit_code == 0, "true ended with {}", exit.status);
    Ok(())
}

pub(crate) async fn measure(house: &House, figures: &mut Figures) -> Result<()> {
    let (mut created, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        let sandbox = house.create().await?;
        created.push(begun.elapsed());
        let begun = Instant::now();
        house.kill(&sandbox).await?;
        killed.push(begun.elapsed());
    }
    figures.times("create → 201, prepared slots, one after another", created);
    figures.times("kill → 204", killed);

    let mut first_commands = Vec::new();
    for _ in 0..RUNS / 2 {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        let sandbox = house.create().await?;
        command(&house.inside(&sandbox)?).await?;
        first_commands.push(begun.elapsed());
        house.kill(&sandbox).await?;
    }
    figures.times("create → first command finished", first_commands);

    tokio::time::sleep(Duration::from_secs(1)).await;
    let burst = try_join_all((0..AT_ONCE).map(|_| async {
        let begun = Instant::now();
        let sandbox = house.create().await?;
        anyhow::Ok((begun.elapsed(), sandbox))
    }));
    let burst = burst.await.context("a create of 50 at once failed")?;
    try_join_all(burst.iter().map(|(_, sandbox)| house.kill(sandbox))).await?;
    figures.times(
        "create → 201, 50 at once",
        burst.into_iter().map(|(took, _)| took).collect(),
    );

    figures.one(
        "create + command + kill, 4 at a time, sustained",
        sustained(house).await?,
        "/s",
    );

    let sandbox = house.create().await?;
    let inside = house.inside(&sandbox)?;
    let mut trips = Vec::new();
    for _ in 0..RUNS * 2 {
        let begun = Instant::now();
        command(&inside).await?;
        trips.push(begun.elapsed());
    }
    figures.times("command `true` on a live sandbox, through the edge", trips);
    house.kill(&sandbox).await
}

async fn sustained(house: &House) -> Result<f64> {
    let done = Arc::new(AtomicUsize::new(0));
    let until = Instant::now() + SUSTAINED_FOR;
    let workers = (0..WORKERS).map(|_| {
        let (house, done) = (house.clone(), Arc::clone(&done));
        async move {
            while Instant::now() < until {
                let sandbox = house.create().await?;
                command(&house.inside(&sandbox)?).await?;
                house.kill(&sandbox).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }
    });
    let begun = Instant::now();
    try_join_all(workers).await?;
    let done = u32::try_from(done.load(Ordering::Relaxed))?;
    Ok(f64::from(done) / begun.elapsed().as_secs_f64())
}

pub(crate) async fn memory(house: &House, figures: &mut Figures) -> Result<()> {
    let daemon_before = rss_mib(house.daemon)?;
    figures.one("daemon, resident, after the above", daemon_before, "MiB");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let available = available_mib()?;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(house.create().await?);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let per_sandbox = (available - available_mib()?) / 200.0;
    figures.one(
        "machine memory for each of 200 idle sandboxes",
        per_sandbox,
        "MiB",
    );
    figures.one(
        "daemon, resident, with 200 idle sandboxes",
        rss_mib(house.daemon)?,
        "MiB",
    );
    try_join_all(idle.iter().map(|sandbox| house.kill(sandbox))).await?;
    Ok(())
}

fn rss_mib(pid: u32) -> Result<f64> {
    field_mib(&format!("/proc/{pid}/status"), "VmRSS:")
}

fn available_mib() -> Result<f64> {
    field_mib("/proc/meminfo", "MemAvailable:")
}

fn field_mib(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path)?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .trim()
            .strip_suffix(" kB")?
            .trim()
            .parse::<f64>()
            .ok()
    });
    Ok(kib.with_context(|| format!("{path} has no {name}"))? / 1024.0)
}
