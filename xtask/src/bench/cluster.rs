//! `cargo xtask bench cluster`: what of a fleet is measured, with all that each part needs, and no more.
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::build::Build;
use crate::fleet::Fleet;
use crate::house::House;
use crate::shell::{self, cargo, command, read};
use crate::{services, setup};

/// Benchmarks of other crates that time themselves.
struct Program {
    /// Where the benchmark looks for it.
    variable: &'static str,
    /// The part that wants it.
    part: &'static str,
    package: &'static str,
    /// Which target of that it is.
    target: [&'static str; 2],
}

const PROGRAMS: [Program; 4] = [
    Program {
        variable: "ATOLL_BENCH_PLACEMENT",
        part: "placement",
        package: "orchestrator",
        target: ["--bench", "placement"],
    },
    Program {
        variable: "ATOLL_BENCH_EVENTS",
        part: "events",
        package: "cluster",
        target: ["--bench", "events"],
    },
    Program {
        variable: "ATOLL_BENCH_RPC",
        part: "rpc",
        package: "rpc",
        target: ["--test", "rpc"],
    },
    Program {
        variable: "ATOLL_BENCH_LARGE_FLEET",
        part: "list",
        package: "sql",
        target: ["--bench", "large_fleet"],
    },
];
/// Parts that are done with a fleet.
const WITH_FLEET: [&str; 3] = ["creates", "routes", "burst"];
/// Parts that are done with a single machine's Atoll too.
const WITH_HOUSE: [&str; 1] = ["creates"];

/// Runs testkit's benchmark of fleets. A part that there is not starts nothing, and is refused by it.
pub(super) fn run(rest: &[String], build: Build) -> Result<()> {
    let only: Vec<&str> = rest
        .windows(2)
        .filter(|words| words[0] == "--only")
        .map(|words| words[1].as_str())
        .collect();
    let is_wanted = |part: &&str| only.is_empty() || only.contains(part);
    setup::to_test()?;
    let (bench, atoll) = build.benchmark()?;
    let mut bench = command(bench);
    bench.arg("cluster").args(rest).env("ATOLL_BIN", &atoll);
    if PROGRAMS.iter().any(|program| is_wanted(&program.part)) {
        bench.envs(programs()?);
    }
    let house = match WITH_HOUSE.iter().any(&is_wanted) {
        true => Some(House::start(&atoll, "bench-cluster", &[])?),
        false => None,
    };
    if let Some(house) = &house {
        bench
            .envs(house.env())
            .env("ATOLL_BENCH_DAEMON", house.pid().to_string());
    }
    let fleet = match WITH_FLEET.iter().any(&is_wanted) {
        true => Some(Fleet::start(&atoll, &services::consul()?)?),
        false => None,
    };
    if let Some(fleet) = &fleet {
        let written = fleet.env().get("ATOLL_CLUSTER");
        bench.env("ATOLL_CLUSTER", written.context("a fleet says what it is")?);
    }
    let outcome = shell::run(&mut bench);
    if let Some(fleet) = fleet {
        fleet.down()?;
    }
    if let Some(house) = house {
        house.down()?;
    }
    outcome
}

/// Builds them all, and returns where each is, by its variable. Together, so that what they stand on is built once: the tests of
/// these crates want other features of it than Atoll does.
fn programs() -> Result<Vec<(&'static str, PathBuf)>> {
    eprintln!("build: benchmarks of other crates");
    let mut build = cargo();
    build.args(["build", "--release", "--message-format=json-render-diagnostics"]);
    for program in &PROGRAMS {
        build.args(["--package", program.package]).args(program.target);
    }
    let told = read(&mut build)?;
    let built: Vec<Value> = told
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let place = |program: &Program| {
        let [_, name] = program.target;
        let of_it = built.iter().filter(|message| message["target"]["name"] == name);
        let path = of_it.filter_map(|message| message["executable"].as_str()).next();
        let path = path.with_context(|| format!("cargo built {name}, and did not say where"))?;
        Ok((program.variable, PathBuf::from(path)))
    };
    PROGRAMS.iter().map(place).collect()
}
