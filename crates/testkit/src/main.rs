//! `atoll-bench`: what a running Atoll takes, beside what the machine takes for the same without it.
//!
//! It is started by `cargo xtask bench` with the exports of two houses in its environment: one with prepared slots, one
//! without. It prints a table and, with `--json FILE`, writes the same as JSON; `--short` does little of each, to see that
//! it works. `atoll-bench serve PORT` is the small service that the edge's figures ask; it runs in a sandbox and beside it.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its table is its output"
)]

mod figures;
mod floor;
mod house;
mod memory;
mod python;
mod sandboxes;
mod scale;
mod service;
mod traffic;
mod wrk;

use anyhow::{Context as _, Result};

use crate::figures::Figures;
use crate::house::House;
use crate::scale::Scale;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "serve") {
        let port = arguments.get(1).context("serve needs a port")?;
        return service::serve(port.parse()?).await;
    }
    if arguments.first().is_some_and(|word| word == "crun") {
        let runs = arguments.get(1).context("crun needs a number of runs")?;
        println!("{}", floor::crun(runs.parse()?)?);
        return Ok(());
    }
    let scale = if arguments.iter().any(|argument| argument == "--short") {
        Scale::SHORT
    } else {
        Scale::WHOLE
    };
    let (house, cold) = (House::of("")?, House::of("COLD_")?);
    let mut figures = Figures::default();
    floor::measure(scale, &mut figures)?;
    sandboxes::measure(scale, &house, &cold, &mut figures).await?;
    python::measure(scale, &house, &mut figures)?;
    traffic::measure(scale, &house, &mut figures).await?;
    memory::measure(scale, &house, &mut figures).await?;
    println!("{}", figures.table());
    if let Some(at) = arguments.iter().position(|argument| argument == "--json") {
        let path = arguments.get(at + 1).context("--json needs a file")?;
        std::fs::write(path, serde_json::to_vec_pretty(&figures.json())?)
            .with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}
