//! `cargo xtask bench`: the benchmark table, against a release build that this starts and ends.
use anyhow::Result;

use crate::house::House;
use crate::shell::cargo;
use crate::{build, clients, setup, shell};

/// Runs testkit's benchmark against a house of its own.
pub(crate) fn run(rest: &[String]) -> Result<()> {
    setup::to_bench()?;
    let python = clients::python()?;
    let atoll = build::release()?;
    let house = House::start(&atoll, "bench", &[])?;
    let mut bench = cargo();
    bench
        .args([
            "run",
            "--release",
            "--quiet",
            "--package",
            "testkit",
            "--bin",
            "atoll-bench",
            "--",
        ])
        .args(rest);
    bench
        .envs(house.env())
        .env("ATOLL_BENCH_PYTHON", python)
        .env("ATOLL_BENCH_DAEMON", house.pid().to_string());
    let outcome = shell::run(&mut bench);
    house.down()?;
    outcome
}
