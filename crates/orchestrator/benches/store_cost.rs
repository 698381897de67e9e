//! What do the stores and the orchestrator add to a create and a kill? The node does nothing here, so what is left is
//! theirs: `cargo bench -p orchestrator --bench store_cost`.
#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

#[path = "../tests/orchestrator/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use model::{Phase, TeamId};
use ports::SandboxStore;
use ports::store::contract;

use world::World;

const ROUNDS: usize = 5_000;
const AT_ONCE: usize = 50;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(run());
}

async fn run() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = sql::Sqlite::open(&directory.path().join("atoll.db"))
        .await
        .expect("a store");
    let (mut inserts, mut updates, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut sandbox = contract::sandbox(TeamId::random());
        let began = Instant::now();
        store.insert(&sandbox).await.expect("stored");
        inserts.push(began.elapsed());
        sandbox.phase = Phase::Running {
            at: sandbox.phase.seat().expect("it runs"),
        };
        sandbox.timeout_seconds += 1;
        let began = Instant::now();
        store.update(&sandbox).await.expect("stored");
        updates.push(began.elapsed());
        let began = Instant::now();
        store.get(sandbox.id).await.expect("read");
        reads.push(began.elapsed());
    }
    print("store: insert", inserts);
    print("store: update", updates);
    print("store: get", reads);

    let world = World::new().await;
    let (mut creates, mut kills) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let id = world.create().await.sandbox.id;
        creates.push(began.elapsed());
        let began = Instant::now();
        world.kill(id).await.expect("killed");
        kills.push(began.elapsed());
    }
    print("create, one after another", creates);
    print("kill, one after another", kills);

    let began = Instant::now();
    let mut creates = Vec::new();
    for _ in 0..ROUNDS / AT_ONCE {
        let at_once = (0..AT_ONCE).map(|_| async {
            let began = Instant::now();
            let id = world.create().await.sandbox.id;
            let took = began.elapsed();
            world.kill(id).await.expect("killed");
            took
        });
        creates.extend(futures_util::future::join_all(at_once).await);
    }
    let rate = ROUNDS as f64 / began.elapsed().as_secs_f64();
    print("create, fifty at once", creates);
    println!("{:<28} {rate:>8.0}/s", "create and kill, sustained");

    for _ in 0..1000 {
        world.create().await;
    }
    world.orchestrator.settle_now().await.expect("settled");
    let began = Instant::now();
    world.orchestrator.settle_now().await.expect("settled");
    println!("{:<28} {:>8.1?}", "a pass over 1000", began.elapsed());
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
    println!(
        "{what:<28} p50 {:>8.1?}  p95 {:>8.1?}  p99 {:>8.1?}",
        at(500),
        at(950),
        at(990)
    );
}
