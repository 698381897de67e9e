//! Files, terminals and requests through the edge.
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use sdk::{Event, Program, TerminalSize};

use crate::House;
use crate::figures::Figures;
use crate::floor::{FILE_BYTES, rate};

const ECHOES: usize = 200;

pub(crate) async fn measure(house: &House, figures: &mut Figures) -> Result<()> {
    let sandbox = house.create().await?;
    let inside = house.inside(&sandbox)?;

    let content = Bytes::from(vec![7; FILE_BYTES]);
    let begun = Instant::now();
    inside.write_file("/home/user/large", None, content).await?;
    figures.one(
        "100 MiB up, through the edge to a sandbox's disk",
        rate(begun.elapsed()),
        "MiB/s",
    );
    let begun = Instant::now();
    let mut reader = inside.read_file("/home/user/large", None).await?;
    let mut read = 0;
    while let Some(chunk) = reader.chunk().await? {
        read += chunk.len();
    }
    anyhow::ensure!(read == FILE_BYTES, "{read} bytes came back");
    figures.one("100 MiB down, through the edge", rate(begun.elapsed()), "MiB/s");

    let program = Program {
        cmd: "/bin/cat".to_owned(),
        terminal: Some(TerminalSize { cols: 80, rows: 24 }),
        ..Program::default()
    };
    let mut cat = inside.start(program).await?;
    let control = cat.control();
    let mut echoes = Vec::new();
    for _ in 0..ECHOES {
        let begun = Instant::now();
        control.type_in(b"x").await?;
        while !matches!(cat.next().await?, Event::Terminal(_)) {}
        echoes.push(begun.elapsed());
    }
    figures.times("PTY echo", echoes);

    for (connections, what) in [("1", "1 connection"), ("64", "64 connections")] {
        match wrk(house, &sandbox.sandbox_id, connections) {
            Ok(rate) => figures.one(
                format!("requests through the edge to envd's /health, {what} (wrk on the same CPUs)"),
                rate,
                "/s",
            ),
            Err(error) => eprintln!("bench: SKIPPED wrk: {error:#}"),
        }
    }
    house.kill(&sandbox).await
}

fn wrk(house: &House, sandbox: &str, connections: &str) -> Result<f64> {
    let id = format!("E2b-Sandbox-Id: {sandbox}");
    let url = format!("{}/health", house.sandbox_url);
    let threads = if connections == "1" { "1" } else { "2" };
    let output = Command::new("wrk")
        .args([
            "-t",
            threads,
            "-c",
            connections,
            "-d",
            "5s",
            "-H",
            &id,
            "-H",
            "E2b-Sandbox-Port: 49983",
            &url,
        ])
        .output()
        .context("wrk is not installed")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    rate.with_context(|| format!("wrk said: {text}"))
}
