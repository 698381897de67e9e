//! How well, and how fast, is a fleet of 10 000 nodes filled with 1 000 000 sandboxes, by placers with stale views:
//! `cargo bench -p orchestrator --bench fleet`.
#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

#[path = "../tests/orchestrator/simulation/mod.rs"]
mod simulation;

use std::time::{Duration, Instant};

use simulation::{Setup, run};

fn main() {
    for load in [0.75, 0.95, 1.1] {
        let setup = Setup {
            nodes: 10_000,
            sandboxes: 1_000_000,
            placers: 4,
            load,
            loss_every: Duration::from_secs(2),
            ..Setup::small(1)
        };
        let began = Instant::now();
        let (outcome, mut took) = run(&setup);
        println!("asked for {load} of the fleet's memory ({:.1?})", began.elapsed());
        println!("{outcome}");
        took.sort_unstable();
        let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
        println!(
            "a decision            p50 {:.1?}  p99 {:.1?}  p99.9 {:.1?}\n",
            at(500),
            at(990),
            at(999)
        );
        assert!(at(990) <= Duration::from_micros(50), "a decision takes too long");
    }
}
