//! `cargo xtask bench`: the benchmark table, against builds that this starts and ends: one with prepared
//! slots, one without. `cargo xtask bench cluster`: the table of a fleet. `cargo xtask bench microvms`: that of microVMs.
mod cluster;
mod microvms;

use std::fs;
use std::net::TcpListener;

use anyhow::Result;

use crate::build::Build;
use crate::house::House;
use crate::shell::{cache, command};
use crate::{clients, setup, shell};

/// Runs testkit's benchmark against houses of its own, or against one and a fleet.
pub(crate) fn run(rest: &[String], build: Build) -> Result<()> {
    if let [first, rest @ ..] = rest {
        match first.as_str() {
            "cluster" => return cluster::run(rest, build),
            "microvms" => return microvms::run(rest, build),
            _ => {}
        }
    }
    setup::to_bench()?;
    let python = clients::python()?;
    let (bench, atoll) = build.benchmark()?;
    let dir = cache().join("bench");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    // The benchmark has a registry there; no daemon asks loopback that is not told of it.
    let registry = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let config = dir.join("atoll.toml");
    fs::write(&config, format!("[images.registries.\"{registry}\"]\n"))?;
    let config = ("ATOLL_CONFIG", config.display().to_string());
    let house = House::start(&atoll, "bench", std::slice::from_ref(&config))?;
    // Nothing is prepared here: what a create takes when the pool is empty. Nor has it a CRIU: copies are of the disk alone.
    let no_criu = dir.join("no-criu").display().to_string();
    let cold = House::start(
        &atoll,
        "bench-cold",
        &[("ATOLL_POOL", "0".to_owned()), ("ATOLL_CRIU", no_criu)],
    )?;
    let mut bench = command(bench);
    bench
        .args(rest)
        .envs(house.env())
        .env("ATOLL_BENCH_PYTHON", python)
        .env("ATOLL_BENCH_DAEMON", house.pid().to_string())
        .env("ATOLL_BENCH_REGISTRY", registry)
        .env("ATOLL_BENCH_DIR", &dir)
        .envs(
            cold.env()
                .into_iter()
                .map(|(key, value)| (format!("COLD_{key}"), value)),
        )
        .env("COLD_ATOLL_BENCH_DAEMON", cold.pid().to_string());
    let outcome = shell::run(&mut bench);
    cold.down()?;
    house.down()?;
    let _ = fs::remove_dir_all(&dir);
    outcome
}
