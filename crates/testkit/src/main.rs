//! `atoll-bench`: what a running Atoll takes, beside what the machine takes for the same without it.
//!
//! It is started by `cargo xtask bench` with the exports of two houses in its environment: one with prepared slots, one
//! without, which keeps no memory of processes either. It prints a table and, with `--json FILE`, writes the same as JSON;
//! `--short` does little of each, to see that it works; `--only PART`, as often as you like, does a part of it.
//! `atoll-bench cluster` is the same of a whole fleet beside one house, started by `cargo xtask bench cluster`.
//! `atoll-bench microvms` is that of a house whose sandboxes are virtual machines, started by `cargo xtask bench microvms`.
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
mod cluster;
mod copies;
mod figures;
mod floor;
mod house;
mod images;
mod memory;
mod microvms;
mod options;
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

use anyhow::Result;

use crate::figures::Figures;
use crate::house::House;
use crate::options::Options;

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
        ["microvms", ..] => runtime()?.block_on(microvms::bench(&arguments[1..])),
        ["cluster", ..] => runtime()?.block_on(cluster::bench(&arguments[1..])),
        _ => runtime()?.block_on(bench(&arguments)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn bench(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments, &PARTS)?;
    let scale = options.scale;
    let (house, cold) = (House::of("")?, House::of("COLD_")?);
    let mut figures = Figures::default();
    for part in &options.parts {
        match *part {
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
    options.tell(&figures)
}
