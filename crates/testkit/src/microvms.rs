//! `atoll-bench microvms`: what microVMs take under QEMU. Where the processor is emulated its times tell of the emulation; what
//! memory a clone takes of the machine does not.
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wire::rest::{PauseSandbox, Sandbox};

use crate::figures::{Figures, Goal};
use crate::house::{House, command};
use crate::memory::{available_mib, field_mib};
use crate::options::Options;
use crate::scale::Scale;

/// The parts of a run, in its order.
const PARTS: [&str; 2] = ["life", "clones"];
/// Until a clone that has nothing to do does nothing.
const SETTLED: Duration = Duration::from_secs(5);

/// Measures what the arguments ask for.
pub(crate) async fn bench(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments, &PARTS)?;
    let (scale, house) = (options.scale, House::of("")?);
    let mut figures = Figures::default();
    // The first brings the template's memory into the page cache, and has it measured.
    house.check_and_kill(&[house.create().await?]).await?;
    for part in &options.parts {
        match *part {
            "life" => life(scale, &house, &mut figures).await?,
            _ => clones(scale, &house, &mut figures).await?,
        }
    }
    options.tell(&figures)
}

async fn life(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    let (mut created, mut paused, mut resumed, mut killed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.microvms {
        let begun = Instant::now();
        let sandbox = house.create().await?;
        created.push(begun.elapsed());
        let id = &sandbox.sandbox_id;
        let begun = Instant::now();
        house.api.pause(id, PauseSandbox::default()).await?;
        paused.push(begun.elapsed());
        let begun = Instant::now();
        house.resume(id).await?;
        resumed.push(begun.elapsed());
        command(&house.inside(&sandbox)?, &["/bin/true"]).await?;
        let begun = Instant::now();
        house.kill(&sandbox).await?;
        killed.push(begun.elapsed());
    }
    figures.times("microVM: create → 201, memory and all", Goal::NONE, created);
    figures.times("microVM: pause → 204", Goal::NONE, paused);
    figures.times("microVM: resume of it → 201", Goal::NONE, resumed);
    figures.times("microVM: kill → 204", Goal::NONE, killed);
    Ok(())
}

/// What each idle clone of one template's memory takes, as the machine has it and as its process is charged for it.
async fn clones(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    let count = scale.clones;
    tokio::time::sleep(SETTLED).await;
    let before = available_mib()?;
    let mut clones: Vec<Sandbox> = Vec::new();
    for _ in 0..count {
        clones.push(house.create().await?);
    }
    tokio::time::sleep(SETTLED).await;
    let taken = (before - available_mib()?) / f64::from(count);
    let processes = emulators()?;
    ensure!(
        processes.len() == count as usize,
        "{count} clones are {} processes: other sandboxes run on this machine",
        processes.len()
    );
    let mean = |field: &str| -> Result<f64> {
        let all = processes
            .iter()
            .map(|pid| field_mib(&format!("/proc/{pid}/smaps_rollup"), field));
        Ok(all.sum::<Result<f64>>()? / f64::from(count))
    };
    figures.one(
        format!("microVM: machine memory for each of {count} idle clones"),
        Goal::NONE,
        taken,
        "MiB",
    );
    figures.one(
        "microVM: of one clone's process: pages of its own",
        Goal::NONE,
        mean("Private_Dirty:")? + mean("Private_Clean:")?,
        "MiB",
    );
    figures.one(
        "microVM: of one clone's process: pages that others have too",
        Goal::NONE,
        mean("Shared_Clean:")? + mean("Shared_Dirty:")?,
        "MiB",
    );
    house.check_and_kill(&clones).await
}

/// Processes of virtual machines on this machine.
fn emulators() -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has none.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("qemu-system") {
            found.push(pid);
        }
    }
    Ok(found)
}
