//! Blocks of capacity, asked for ahead of need.
use std::sync::Arc;
use std::time::Duration;

use model::{MiB, PauseMode};
use orchestrator::Capacity;
use orchestrator::placement::{Overcommit, Ratio};
use ports::scheduler::{BlockState, Embedded, Filter, Size};
use ports::{ResourceScheduler, SandboxManager};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::world::{World, request};

const ONCE: Overcommit = Overcommit {
    cpu: Ratio::ONE,
    memory: Ratio::ONE,
    disk: Ratio::UNBOUNDED,
};

async fn running(scheduler: &Embedded) -> Vec<String> {
    let filter = Filter {
        states: vec![BlockState::Running],
        ..Filter::default()
    };
    let page = scheduler.list(&filter, None, 100).await.unwrap();
    let mut tokens: Vec<_> = page.blocks.into_iter().map(|block| block.token).collect();
    tokens.sort();
    tokens
}

#[tokio::test(start_paused = true)]
async fn two_processes_ask_for_what_is_promised_and_some_more_and_for_each_block_once() {
    let world = World::in_memory().await;
    let first = world.orchestrator.create(world.team.id, request()).await.unwrap();
    let resources = first.sandbox.resources;
    let machine = Size {
        cpu: 100 * resources.cpu,
        memory: MiB(100 * resources.memory.0),
    };
    let scheduler = Arc::new(Embedded::new("machine", None, machine));
    let capacity = Capacity {
        // One for each sandbox.
        size: Size {
            cpu: resources.cpu,
            memory: resources.memory,
        },
        spare: 1,
        most: 4,
        overcommit: ONCE,
    };
    let stop = CancellationToken::new();
    let processes: Vec<_> = (0..2)
        .map(|_| {
            let orchestrator = Arc::clone(&world.orchestrator);
            tokio::spawn(orchestrator.keep_capacity(scheduler.clone(), capacity, stop.clone()))
        })
        .collect();
    let settled = async || {
        world.orchestrator.settle_now().await.unwrap();
        sleep(Duration::from_secs(11)).await;
        running(&scheduler).await
    };
    sleep(Duration::from_secs(30)).await;
    assert!(
        running(&scheduler).await.is_empty(),
        "nobody knows what is needed"
    );
    assert_eq!(settled().await, ["shared-0", "shared-1"]);
    let second = world.orchestrator.create(world.team.id, request()).await.unwrap();
    assert_eq!(settled().await, ["shared-0", "shared-1", "shared-2"]);

    // What was taken back is replaced, under another token, and never are there more than the most.
    let all = scheduler.watch().borrow().all.clone();
    let taken = all.values().find(|block| block.token == "shared-1").unwrap();
    scheduler.stop(&taken.id).await.unwrap();
    assert_eq!(settled().await, ["shared-0", "shared-2", "shared-3"]);
    for _ in 0..3 {
        world.orchestrator.create(world.team.id, request()).await.unwrap();
    }
    assert_eq!(settled().await.len(), 4);

    // Nothing is given back.
    let (team, id) = (world.team.id, second.sandbox.id);
    world.orchestrator.kill(team, id).await.unwrap();
    let id = first.sandbox.id;
    world
        .orchestrator
        .pause(team, id, PauseMode::Full, false)
        .await
        .unwrap();
    assert_eq!(settled().await.len(), 4);
    stop.cancel();
    for process in processes {
        process.await.unwrap();
    }
}
