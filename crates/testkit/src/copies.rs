//! Snapshots and forks of a sandbox that has just written much.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sdk::SandboxClient;
use wire::rest::{NewSnapshot, Sandbox};

use crate::builds;
use crate::figures::{Figures, Goal, at};
use crate::house::{House, command};
use crate::scale::Scale;
use crate::watch::Watch;

/// Copies of one fork.
pub(crate) const COPIES: u32 = 10;
/// What a program inside may be stopped for.
const STOP_MS: f64 = 50.0;
/// Between two creates: a pool has time to prepare a slot.
const PAUSE: Duration = Duration::from_millis(30);
/// Writes so many files of 50 kB, a hundred in a directory.
const WRITE: &str = "import os, sys
for i in range(int(sys.argv[1])):
    d = f'/home/user/files/{i // 100}'
    os.makedirs(d, exist_ok=True)
    open(f'{d}/{i}', 'wb').write(b'%050000d' % i)
";

/// `cold` keeps no memory of processes: copies have the disk, and boot.
pub(crate) async fn measure(scale: Scale, house: &House, cold: &House, figures: &mut Figures) -> Result<()> {
    let create = plain_creates(scale, house).await?;
    let goal = Goal::p50_ms((create.as_secs_f64() * 1e5 * f64::from(COPIES)).round() / 100.0);
    let seen = disks(scale, cold).await?;
    let much = format!("{} MB in {} files just written", scale.files / 20, scale.files);
    for (what, Stops { programs, writers }, goal) in [
        ("floor: `sync` inside", seen.synced, Goal::NONE),
        ("snapshot", seen.copied, Goal::p99_ms(STOP_MS)),
    ] {
        figures.times(
            format!("{what}, {much}: longest stop that a program inside sees"),
            goal,
            programs,
        );
        figures.times(
            format!("{what}, {much}: longest stop of one that appends to a file"),
            goal,
            writers,
        );
    }
    figures.times(format!("snapshot, {much}: → 201"), Goal::NONE, seen.answers);
    figures.times(
        format!("fork of {COPIES} from it, the disk alone: all ready"),
        goal,
        seen.forks,
    );
    if house.keeps_memory().await? {
        let mut forks = Vec::new();
        for _ in 0..scale.rounds {
            let sandbox = house.create().await?;
            write(scale, house, &sandbox).await?;
            forks.push(fork(house, &sandbox).await?);
            house.kill(&sandbox).await?;
        }
        figures.times(
            format!("fork of {COPIES} from one like it, with memory: all ready"),
            goal,
            forks,
        );
    }
    Ok(())
}

/// What a plain create takes.
async fn plain_creates(scale: Scale, house: &House) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..scale.runs {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        let sandbox = house.create().await?;
        times.push(begun.elapsed());
        house.kill(&sandbox).await?;
    }
    times.sort_unstable();
    Ok(at(&times, 0.5))
}

/// What was seen of sandboxes that had just written much.
#[derive(Default)]
struct Seen {
    /// They wrote it to their disks, and were not copied.
    synced: Stops,
    /// They were copied.
    copied: Stops,
    answers: Vec<Duration>,
    forks: Vec<Duration>,
}

/// The longest stops of programs.
#[derive(Default)]
struct Stops {
    programs: Vec<Duration>,
    writers: Vec<Duration>,
}

async fn disks(scale: Scale, house: &House) -> Result<Seen> {
    let mut seen = Seen::default();
    for _ in 0..scale.rounds {
        let sandbox = house.create().await?;
        let inside = house.inside(&sandbox)?;
        let watches = watched(scale, house, &sandbox, &inside).await?;
        command(&inside, &["/bin/sync"]).await?;
        seen.synced.note(&watches).await?;
        house.kill(&sandbox).await?;

        let sandbox = house.create().await?;
        let inside = house.inside(&sandbox)?;
        let watches = watched(scale, house, &sandbox, &inside).await?;
        let wanted = NewSnapshot {
            name: None,
            memory: Some(false),
        };
        let begun = Instant::now();
        let snapshot = house.api.snapshot(&sandbox.sandbox_id, &wanted).await?;
        seen.answers.push(begun.elapsed());
        seen.copied.note(&watches).await?;
        seen.forks.push(fork(house, &sandbox).await?);
        house.kill(&sandbox).await?;
        builds::remove(house, &snapshot.snapshot_id).await?;
    }
    Ok(seen)
}

impl Stops {
    async fn note(&mut self, [program, writer]: &[Watch<'_>; 2]) -> Result<()> {
        self.programs.push(program.longest().await?);
        self.writers.push(writer.longest().await?);
        Ok(())
    }
}

/// Lets a sandbox write, and watches it from then on.
async fn watched<'a>(
    scale: Scale,
    house: &House,
    sandbox: &Sandbox,
    inside: &'a SandboxClient,
) -> Result<[Watch<'a>; 2]> {
    let program = Watch::start(inside, false).await?;
    let writer = Watch::start(inside, true).await?;
    write(scale, house, sandbox).await?;
    program.longest().await?;
    writer.longest().await?;
    Ok([program, writer])
}

async fn write(scale: Scale, house: &House, sandbox: &Sandbox) -> Result<()> {
    let files = scale.files.to_string();
    command(
        &house.inside(sandbox)?,
        &["/usr/bin/python3", "-c", WRITE, &files],
    )
    .await
    .context("writing files in a sandbox")
}

async fn fork(house: &House, sandbox: &Sandbox) -> Result<Duration> {
    let begun = Instant::now();
    let copies = house.fork(sandbox, COPIES).await?;
    let took = begun.elapsed();
    house.check_and_kill(&copies).await?;
    Ok(took)
}
