//! Several processes over the same stores, in virtual time: whatever goes wrong on the way, what clients were told stays true,
//! and when all is quiet everybody says the same.
//!
//! `ATOLL_TEST_PLANE_SEEDS` names the seeds: `200` for the first two hundred, `17..18` for one. A failure names its seed. What
//! is left to chance follows the seed, but for ids, and for the order of things that happen at the same instant.
pub(crate) mod clients;
pub(crate) mod house;
pub(crate) mod laws;
pub(crate) mod line;
pub(crate) mod machine;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::clients::{Facts, client};
use self::house::House;
use self::laws::{Wrongs, settle, watch};

/// Seeds of an ordinary run: a minute on two processors.
const SEEDS: u64 = 1000;
const CLIENTS: u64 = 4;
const OPERATIONS: usize = 30;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("ATOLL_TEST_PLANE_SEEDS") else {
        return 0..SEEDS;
    };
    let number = |text: &str| {
        text.parse()
            .expect("ATOLL_TEST_PLANE_SEEDS is a number, or two with .. between")
    };
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 0..number(&text),
    }
}

/// What was wrong, with its story; and how operations ended.
async fn run(seed: u64) -> (Vec<String>, BTreeMap<String, u64>) {
    let house = House::new(seed).await;
    let facts = Arc::new(Facts::default());
    let wrongs = Arc::new(Wrongs::default());
    tokio::spawn(watch(Arc::clone(&house), Arc::clone(&facts), Arc::clone(&wrongs)));
    let chaos = tokio::spawn(Arc::clone(&house).chaos(Arc::clone(&facts), seed));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let own = seed.wrapping_mul(31).wrapping_add(number);
            tokio::spawn(client(Arc::clone(&house), Arc::clone(&facts), own, OPERATIONS))
        })
        .collect();
    for client in clients {
        client.await.expect("clients do not panic");
    }
    house.calm.store(true, Ordering::SeqCst);
    chaos.await.expect("chaos does not panic");
    house.machines.iter().for_each(|machine| machine.calm_down());
    settle(&house, &facts, &wrongs, seed.is_multiple_of(8)).await;
    let told =
        |(what, about): (String, String)| format!("seed {seed}: {about}: {what}\n{}", house.story_of(&about));
    let wrongs = wrongs.all().into_iter().map(told).collect();
    let counts = facts.counts.lock().unwrap().clone();
    (wrongs, counts)
}

/// Every seed in a world of its own, as many at a time as there are processors.
fn run_all(seeds: Range<u64>) -> Vec<(Vec<String>, BTreeMap<String, u64>)> {
    let next = AtomicU64::new(seeds.start);
    let one_after_another = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return outcomes;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            outcomes.push(runtime.block_on(run(seed)));
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(one_after_another)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a seed does not panic"))
            .collect()
    })
}

#[test]
fn whatever_goes_wrong_what_clients_were_told_stays_true() {
    let (mut wrongs, mut counts) = (Vec::new(), BTreeMap::<String, u64>::new());
    for (wrong, ended) in run_all(seeds()) {
        wrongs.extend(wrong);
        for (what, count) in ended {
            *counts.entry(what).or_default() += count;
        }
    }
    let sum = |ending: &str| -> u64 {
        counts
            .iter()
            .filter(|(what, _)| what.ends_with(ending))
            .map(|(_, count)| count)
            .sum()
    };
    assert!(
        wrongs.is_empty(),
        "{} wrongs:\n{}\n{counts:#?}",
        wrongs.len(),
        wrongs.join("\n\n")
    );
    assert!(sum("done") * 4 > sum(""), "hardly anything was done: {counts:#?}");
}
