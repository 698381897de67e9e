//! The same flows as a user of the official Python SDK sees them.
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::figures::{Figures, Goal};
use crate::house::House;
use crate::scale::Scale;

/// What `benches/python_sdk.py` prints, in seconds.
#[derive(Deserialize)]
struct Seconds {
    one_after_another: Vec<f64>,
    at_once: Vec<f64>,
    command: Vec<f64>,
}

pub(crate) fn measure(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    let python = std::env::var("ATOLL_BENCH_PYTHON")
        .context("ATOLL_BENCH_PYTHON is not set: run `cargo xtask bench`")?;
    let output = Command::new(&python)
        .arg("benches/python_sdk.py")
        .arg((scale.runs / 6).to_string())
        .env("E2B_API_URL", &house.api_url)
        .env("E2B_SANDBOX_URL", &house.sandbox_url)
        .env("E2B_API_KEY", &house.key)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {python}"))?;
    ensure!(
        output.status.success(),
        "benches/python_sdk.py ended with {}",
        output.status
    );
    let seconds: Seconds = serde_json::from_slice(&output.stdout)?;
    let times = |seconds: Vec<f64>| seconds.into_iter().map(Duration::from_secs_f64).collect();
    figures.times(
        "Python SDK: create → first command finished, one after another",
        Goal::NONE,
        times(seconds.one_after_another),
    );
    figures.times(
        "Python SDK: create → first command finished, 50 at once",
        Goal::NONE,
        times(seconds.at_once),
    );
    figures.times(
        "Python SDK: command `true` on a live sandbox (a login shell, as the SDK asks)",
        Goal::NONE,
        times(seconds.command),
    );
    Ok(())
}
