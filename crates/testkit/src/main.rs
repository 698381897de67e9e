//! `atoll-bench`: what a running Atoll takes, beside what the machine takes for the same without it.
//!
//! It is started by `cargo xtask bench` with the exports of two houses in its environment: one with prepared slots, one
//! without, which keeps no memory of processes either. It prints a table and, with `--json FILE`, writes the same as JSON;
//! `--short` does little of each, to see that it works; `--only PART`, as often as you like, does a part of it.
//! `atoll-bench serve PORT` is the small service that the edge's figures ask, `atoll-bench watch DIR` notes how long it is
//! stopped; they run in a sandbox, the former beside it too.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its table is its output"
)]

mod archive;
mod builds;
mod copies;
mod figures;
mod floor;
mod house;
mod images;
mod memory;
mod processes;
mod python;
mod registry;
mod sandboxes;
mod scale;
mod service;
mod templates;
mod traffic;
mod watch;
mod wrk;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::figures::Figures;
use crate::house::House;
use crate::scale::Scale;

/// The parts of a run, in its order.
const PARTS: [&str; 9] = [
    "floor",
    "sandboxes",
    "python",
    "traffic",
    "memory",
    "templates",
    "copies",
    "processes",
    "images",
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        // In a sandbox that is copied, it is as small as can be.
        ["watch", dir, writes] => watch::watch(Path::new(dir), writes.parse()?),
        ["crun", runs] => {
            println!("{}", floor::crun(runs.parse()?)?);
            Ok(())
        }
        ["serve", port] => runtime()?.block_on(service::serve(port.parse()?)),
        _ => runtime()?.block_on(bench(&arguments)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn bench(arguments: &[String]) -> Result<()> {
    let scale = if arguments.iter().any(|argument| argument == "--short") {
        Scale::SHORT
    } else {
        Scale::WHOLE
    };
    let only = values(arguments, "--only")?;
    for part in &only {
        ensure!(
            PARTS.contains(part),
            "there is no part {part}; there are {}",
            PARTS.join(", ")
        );
    }
    let json = values(arguments, "--json")?;
    let (house, cold) = (House::of("")?, House::of("COLD_")?);
    let mut figures = Figures::default();
    for part in PARTS
        .into_iter()
        .filter(|part| only.is_empty() || only.contains(part))
    {
        match part {
            "floor" => floor::measure(scale, &mut figures)?,
            "sandboxes" => sandboxes::measure(scale, &house, &cold, &mut figures).await?,
            "python" => python::measure(scale, &house, &mut figures)?,
            "traffic" => traffic::measure(scale, &house, &mut figures).await?,
            "memory" => memory::measure(scale, &house, &mut figures).await?,
            "templates" => templates::measure(scale, &house, &mut figures).await?,
            "copies" => copies::measure(scale, &house, &cold, &mut figures).await?,
            "processes" => processes::measure(scale, &house, &mut figures).await?,
            _ => images::measure(scale, &house, &mut figures).await?,
        }
    }
    println!("{}", figures.table());
    for path in json {
        std::fs::write(path, serde_json::to_vec_pretty(&figures.json())?)
            .with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// What follows an option, each time that it is given.
fn values<'a>(arguments: &'a [String], option: &str) -> Result<Vec<&'a str>> {
    let places = arguments
        .iter()
        .enumerate()
        .filter(|(_, argument)| *argument == option);
    places
        .map(|(at, _)| {
            let value = arguments.get(at + 1).map(String::as_str);
            value.with_context(|| format!("{option} needs a value"))
        })
        .collect()
}
