//! What does a create pay to the store, and how much of it is the way to the database rather than the database:
//! `cargo bench -p sql --bench write_cost`.
#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Phase, TeamId};
use ports::store::contract;
use ports::{SandboxStore, StoreError, TemplateStore};

const ROUNDS: usize = 5_000;
const AT_ONCE: usize = 50;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    // As callers are: a task among others, not the thread that waits for the runtime.
    let (_directory, store) = runtime.block_on(fresh());
    let alone = runtime.spawn(alone(store));
    runtime.block_on(alone).expect("measured");
    let (_directory, store) = runtime.block_on(fresh());
    let together = runtime.spawn(together(store));
    runtime.block_on(together).expect("measured");
}

async fn fresh() -> (tempfile::TempDir, Arc<sql::Sqlite>) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = sql::Sqlite::open(&directory.path().join("atoll.db")).await;
    (directory, store.expect("a store"))
}

async fn alone(store: Arc<sql::Sqlite>) {
    let mut took: [Vec<Duration>; 5] = Default::default();
    let template = contract::template(TeamId::random(), "base");
    TemplateStore::insert(&*store, &template).await.expect("stored");
    for _ in 0..ROUNDS {
        let mut sandbox = contract::sandbox(TeamId::random());
        let began = Instant::now();
        let found = store.named(template.team, "base").await.expect("read");
        took[0].push(began.elapsed());
        assert!(found.is_some());

        let began = Instant::now();
        SandboxStore::insert(&*store, &sandbox).await.expect("stored");
        took[1].push(began.elapsed());

        sandbox.phase = Phase::Running {
            at: sandbox.phase.seat().expect("it runs"),
        };
        sandbox.timeout_seconds += 1;
        let began = Instant::now();
        SandboxStore::update(&*store, &sandbox).await.expect("stored");
        took[2].push(began.elapsed());

        let began = Instant::now();
        store
            .spawned(template.id, sandbox.started_at)
            .await
            .expect("counted");
        took[3].push(began.elapsed());

        // A write that finds nothing to write: only the way there and back.
        let began = Instant::now();
        let nothing = store
            .spawned(model::TemplateId::random(), sandbox.started_at)
            .await;
        took[4].push(began.elapsed());
        assert!(matches!(nothing, Err(StoreError::Missing)));
    }
    let whats = [
        "find a template",
        "insert",
        "update",
        "count a spawn",
        "write nothing",
    ];
    for (what, took) in whats.into_iter().zip(took) {
        print(what, took);
    }
}

async fn together(store: Arc<sql::Sqlite>) {
    let mut tasks = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..AT_ONCE {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut took = Vec::new();
            for _ in 0..ROUNDS / AT_ONCE {
                let sandbox = contract::sandbox(TeamId::random());
                let began = Instant::now();
                SandboxStore::insert(&*store, &sandbox).await.expect("stored");
                SandboxStore::update(&*store, &sandbox).await.expect("stored");
                took.push(began.elapsed());
            }
            took
        });
    }
    let took = tasks.join_all().await.concat();
    let whole = began.elapsed();
    print("insert and update, 50 at once", took);
    println!(
        "{:<32} {:>8.0}/s",
        "writes",
        (2 * ROUNDS) as f64 / whole.as_secs_f64()
    );
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
    println!(
        "{what:<32} p50 {:>8.1?}  p95 {:>8.1?}  p99 {:>8.1?}",
        at(500),
        at(950),
        at(990)
    );
}
