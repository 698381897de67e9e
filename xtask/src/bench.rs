//! `cargo xtask bench`: the benchmark table, against release builds that this starts and ends: one with prepared
//! slots, one without.
use anyhow::Result;

use crate::house::House;
use crate::shell::command;
use crate::{build, clients, setup, shell};

/// Runs testkit's benchmark against houses of its own.
pub(crate) fn run(rest: &[String]) -> Result<()> {
    setup::to_bench()?;
    let python = clients::python()?;
    let (bench, atoll) = build::benchmark()?;
    let house = House::start(&atoll, "bench", &[])?;
    // Nothing is prepared here: what a create takes when the pool is empty.
    let cold = House::start(&atoll, "bench-cold", &[("ATOLL_POOL", "0".to_owned())])?;
    let mut bench = command(bench);
    bench
        .args(rest)
        .envs(house.env())
        .env("ATOLL_BENCH_PYTHON", python)
        .env("ATOLL_BENCH_DAEMON", house.pid().to_string())
        .envs(
            cold.env()
                .into_iter()
                .map(|(key, value)| (format!("COLD_{key}"), value)),
        )
        .env("COLD_ATOLL_BENCH_DAEMON", cold.pid().to_string());
    let outcome = shell::run(&mut bench);
    cold.down()?;
    house.down()?;
    outcome
}
