//! Files, terminals and requests through the edge.
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use sdk::{Event, Program, SandboxClient, TerminalSize};

use crate::figures::{Figures, Goal, at};
use crate::floor::{self, FILE_BYTES, rate};
use crate::house::{House, command};
use crate::memory;
use crate::scale::Scale;
use crate::wrk;

/// Each copy is made so often, one kind after the other, and its median told: the machine's own speed varies.
const COPIES: usize = 5;
/// What a copy through the edge is to reach of a plain one.
const SHARE: f64 = 0.60;
/// The service's port, in the sandbox and beside it.
const PORT: u16 = 18_080;
/// What the daemon may grow by while files pass through it.
const FLAT_MIB: f64 = 8.0;

pub(crate) async fn measure(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    let sandbox = house.create().await?;
    let inside = house.inside(&sandbox)?;
    echoes(scale, &inside, figures).await?;
    files(house, &inside, figures).await?;
    requests(scale, house, &inside, &sandbox.sandbox_id, figures).await?;
    house.kill(&sandbox).await
}

async fn echoes(scale: Scale, inside: &SandboxClient, figures: &mut Figures) -> Result<()> {
    let program = Program {
        cmd: "/bin/cat".to_owned(),
        terminal: Some(TerminalSize { cols: 80, rows: 24 }),
        ..Program::default()
    };
    let mut cat = inside.start(program).await?;
    let control = cat.control();
    let mut echoes = Vec::new();
    for _ in 0..scale.runs {
        let begun = Instant::now();
        control.type_in(b"x").await?;
        while !matches!(cat.next().await?, Event::Terminal(_)) {}
        echoes.push(begun.elapsed());
    }
    figures.times("PTY echo", Goal::NONE, echoes);
    Ok(())
}

async fn files(house: &House, inside: &SandboxClient, figures: &mut Figures) -> Result<()> {
    let content = Bytes::from(vec![7; FILE_BYTES]);
    // The first one finds what later ones reuse: buffers, connections, the disk's blocks.
    up(inside, &content).await?;
    down(inside).await?;
    let before = memory::resident_mib(house.daemon)?;
    memory::forget_peak(house.daemon)?;
    let (mut plain, mut ups, mut downs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..COPIES {
        plain.push(floor::loopback().await?);
        ups.push(up(inside, &content).await?);
        downs.push(down(inside).await?);
    }
    let plain = median(plain);
    let goal = Goal::at_least(plain * SHARE);
    figures.one("floor: 100 MiB through loopback TCP", Goal::NONE, plain, "MiB/s");
    figures.one(
        "100 MiB up, through the edge to a sandbox's disk",
        goal,
        median(ups),
        "MiB/s",
    );
    figures.one("100 MiB down, through the edge", goal, median(downs), "MiB/s");
    figures.one(
        "daemon, grown at most while these passed through it",
        Goal::at_most(FLAT_MIB),
        memory::peak_mib(house.daemon)? - before,
        "MiB",
    );
    Ok(())
}

async fn up(inside: &SandboxClient, content: &Bytes) -> Result<f64> {
    let begun = Instant::now();
    inside
        .write_file("/home/user/large", None, content.clone())
        .await?;
    Ok(rate(begun.elapsed()))
}

async fn down(inside: &SandboxClient) -> Result<f64> {
    let begun = Instant::now();
    let (mut reader, mut read) = (inside.read_file("/home/user/large", None).await?, 0);
    while let Some(chunk) = reader.chunk().await? {
        read += chunk.len();
    }
    anyhow::ensure!(read == FILE_BYTES, "{read} bytes came back");
    Ok(rate(begun.elapsed()))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// The same program answers in the sandbox and beside it; one of the two at a time.
async fn requests(
    scale: Scale,
    house: &House,
    inside: &SandboxClient,
    sandbox: &str,
    figures: &mut Figures,
) -> Result<()> {
    let me = std::env::current_exe()?;
    let program = Bytes::from(std::fs::read(&me)?);
    inside.write_file("/home/user/service", None, program).await?;
    command(inside, &["/bin/chmod", "+x", "/home/user/service"]).await?;
    let service = Program {
        cmd: "/home/user/service".to_owned(),
        args: vec!["serve".to_owned(), PORT.to_string()],
        ..Program::default()
    };
    let _service = inside.start(service).await?;
    let beside = Beside(Command::new(&me).args(["serve", &PORT.to_string()]).spawn()?);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let direct = format!("http://127.0.0.1:{PORT}/");
    let routed = [
        format!("E2b-Sandbox-Id: {sandbox}"),
        format!("E2b-Sandbox-Port: {PORT}"),
    ];
    for connections in [1, 64] {
        let (mut plain, mut through) = (Vec::new(), Vec::new());
        for _ in 0..scale.loads {
            plain.push(wrk::load(&direct, &[], connections, scale.load_seconds)?);
            through.push(wrk::load(
                &house.sandbox_url,
                &routed,
                connections,
                scale.load_seconds,
            )?);
        }
        let rates = |loads: &[wrk::Load]| median(loads.iter().map(|load| load.per_second).collect());
        let p50 = |loads: &[wrk::Load]| {
            let mut times: Vec<Duration> = loads.iter().map(|load| load.p50).collect();
            times.sort_unstable();
            at(&times, 0.5)
        };
        let goal = if connections == 64 {
            Goal::at_least(40_000.0)
        } else {
            Goal::NONE
        };
        figures.one(
            format!("floor: requests to a small service without the edge, {connections} connections"),
            Goal::NONE,
            rates(&plain),
            "/s",
        );
        figures.one(
            format!("requests through the edge to it in a sandbox, {connections} connections"),
            goal,
            rates(&through),
            "/s",
        );
        if connections == 1 {
            let added = p50(&through).saturating_sub(p50(&plain));
            figures.one(
                "the edge adds to the p50 of one connection",
                Goal::at_most(150.0),
                added.as_secs_f64() * 1e6,
                "µs",
            );
        }
    }
    drop(beside);
    Ok(())
}

/// A child that is ended with what it was needed for.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
