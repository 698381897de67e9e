//! Pauses and forks that keep the memory of processes.
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sdk::{Event, Program, SandboxClient};
use wire::rest::{Memory, PauseSandbox, Sandbox};

use crate::copies::COPIES;
use crate::figures::{Figures, Goal};
use crate::house::House;
use crate::scale::Scale;
use crate::watch::Watch;

/// Holds 50 MiB, none of them empty, and says when it does.
const HEAP: &str = "import os, time
heap = bytearray(os.urandom(4096) * 12800)
print(len(heap), flush=True)
while True:
    time.sleep(1)
";

pub(crate) async fn measure(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    if !house.keeps_memory().await? {
        eprintln!("bench: SKIPPED: this machine keeps no memory of processes: `cargo xtask criu`");
        return Ok(());
    }
    let sandbox = house.create().await?;
    let inside = house.inside(&sandbox)?;
    let pid = heap(&inside).await?;
    pauses(scale, house, &sandbox, &inside, pid, figures).await?;
    forks(scale, house, &sandbox, &inside, figures).await?;
    house.kill(&sandbox).await
}

/// Starts a program with memory of its own; nobody listens to it from then on.
async fn heap(inside: &SandboxClient) -> Result<u32> {
    let program = Program {
        cmd: "/usr/bin/python3".to_owned(),
        args: vec!["-c".to_owned(), HEAP.to_owned()],
        ..Program::default()
    };
    let mut python = inside.start(program).await?;
    loop {
        match python.next().await? {
            Event::Stdout(_) => return Ok(python.pid()),
            Event::End(exit) => anyhow::bail!("python3 ended with {}", exit.status),
            _ => {}
        }
    }
}

async fn pauses(
    scale: Scale,
    house: &House,
    sandbox: &Sandbox,
    inside: &SandboxClient,
    pid: u32,
    figures: &mut Figures,
) -> Result<()> {
    let id = &sandbox.sandbox_id;
    let (mut paused, mut resumed) = (Vec::new(), Vec::new());
    for _ in 0..scale.pauses {
        let begun = Instant::now();
        house.api.pause(id, PauseSandbox::default()).await?;
        paused.push(begun.elapsed());
        let kept = house.api.sandbox(id).await?.listed.memory;
        ensure!(
            kept == Some(Memory::Durable),
            "a pause kept its memory as {kept:?}"
        );
        let begun = Instant::now();
        house.resume(id).await?;
        resumed.push(begun.elapsed());
        let programs = inside.programs().await?;
        ensure!(
            programs.iter().any(|(known, ..)| *known == pid),
            "the program did not outlive a pause"
        );
    }
    figures.times(
        "pause → 204, with the memory of Python with 50 MiB",
        Goal::p50_ms(150.0),
        paused,
    );
    figures.times("resume of it → 201", Goal::p50_ms(150.0), resumed);
    Ok(())
}

async fn forks(
    scale: Scale,
    house: &House,
    sandbox: &Sandbox,
    inside: &SandboxClient,
    figures: &mut Figures,
) -> Result<()> {
    let watch = Watch::start(inside, false).await?;
    let (mut stops, mut forks) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        watch.longest().await?;
        let begun = Instant::now();
        let copies = house.fork(sandbox, COPIES).await?;
        forks.push(begun.elapsed());
        stops.push(watch.longest().await?);
        let copy = copies.first().context("a fork has copies")?;
        let programs = house.inside(copy)?.programs().await?;
        ensure!(
            programs.iter().any(|(_, command, _)| command.contains("python3")),
            "the program is not in a copy"
        );
        house.check_and_kill(&copies).await?;
    }
    figures.times(
        format!("fork of {COPIES} of it: longest stop that a program in the source sees"),
        Goal::p99_ms(100.0),
        stops,
    );
    figures.times(
        format!("fork of {COPIES} of it: all ready, with memory"),
        Goal::p50_ms(600.0),
        forks,
    );
    Ok(())
}
