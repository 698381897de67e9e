//! `atoll-bench`: what a running Atoll takes, beside what the machine takes for the same without it.
//!
//! It is started by `cargo xtask bench` with the exports of a house in its environment. It prints a table and, with
//! `--json FILE`, writes the same as JSON.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its table is its output"
)]

mod figures;
mod floor;
mod sandboxes;
mod traffic;

use anyhow::{Context as _, Result};
use model::Secret;
use sdk::Client;

use crate::figures::Figures;

/// The house under test.
#[derive(Clone)]
pub(crate) struct House {
    pub(crate) api: Client,
    pub(crate) sandbox_url: String,
    /// The daemon's process.
    pub(crate) daemon: u32,
}

impl House {
    fn of_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set: run `cargo xtask bench`"))
        };
        let key = Secret::new(variable("E2B_API_KEY")?);
        Ok(Self {
            api: Client::new(&variable("E2B_API_URL")?, &key)?,
            sandbox_url: variable("E2B_SANDBOX_URL")?,
            daemon: variable("ATOLL_BENCH_DAEMON")?
                .parse()
                .context("ATOLL_BENCH_DAEMON is a process number")?,
        })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let house = House::of_environment()?;
    let mut figures = Figures::default();
    floor::measure(&mut figures).await?;
    sandboxes::measure(&house, &mut figures).await?;
    traffic::measure(&house, &mut figures).await?;
    sandboxes::memory(&house, &mut figures).await?;
    println!("{}", figures.table());
    if let Some(at) = arguments.iter().position(|argument| argument == "--json") {
        let path = arguments.get(at + 1).context("--json needs a file")?;
        std::fs::write(path, serde_json::to_vec_pretty(&figures.json())?)
            .with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}
