//! `cargo xtask bench microvms`: what a house is measured by whose sandboxes are virtual machines.
use anyhow::{Context, Result};

use crate::build::Build;
use crate::house::House;
use crate::shell::{self, command};
use crate::{kernel, setup};

/// Runs testkit's benchmark of microVMs against a house of its own.
pub(super) fn run(rest: &[String], build: Build) -> Result<()> {
    setup::to_test()?;
    let kernel = kernel::have().context("microVMs need a kernel")?;
    let (bench, atoll) = build.benchmark()?;
    let house = House::start(
        &atoll,
        "bench-microvms",
        &[
            ("ATOLL_RUNTIME", "qemu".to_owned()),
            ("ATOLL_GUEST_KERNEL", kernel.display().to_string()),
        ],
    )?;
    let mut bench = command(bench);
    bench
        .arg("microvms")
        .args(rest)
        .envs(house.env())
        .env("ATOLL_BENCH_DAEMON", house.pid().to_string());
    let outcome = shell::run(&mut bench);
    house.down()?;
    outcome
}
