//! Pauses that fail, and whose callers give up.
use std::sync::Arc;

use model::{BuildId, KillReason, OnTimeout};
use ports::node::{HeldState, OrderOrigin};
use ports::{Node, NodeError, NodeEvent};
use tokio::sync::Notify;

use crate::world::{DISK, FULL, Fault, LIFE, SOON, World, told};

#[tokio::test(start_paused = true)]
async fn a_pause_that_cannot_be_written_leaves_it_running_until_its_deadline() {
    for (mode, at) in [(FULL, "word"), (FULL, "freeze"), (DISK, "word")] {
        let world = World::new();
        let order = world.running().await;
        world.runtime.at(at, Fault::NoJournal);
        world.pause(&order, BuildId::random(), mode).await.unwrap_err();
        world.runtime.mend_journal();
        world.assert_runs(&order).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_fails_leaves_it_running_until_its_deadline() {
    for (mode, at) in [(FULL, "freeze"), (DISK, "keep")] {
        let world = World::new();
        let order = world.running().await;
        world.runtime.at(at, Fault::Fail);
        world.pause(&order, BuildId::random(), mode).await.unwrap_err();
        world.assert_runs(&order).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_to_disk_is_one_when_the_disk_is_kept() {
    let mut world = World::new();
    let (order, into) = (world.running().await, BuildId::random());
    world.runtime.at("keep", Fault::NoJournal);
    world.pause(&order, into, DISK).await.unwrap();
    world.runtime.mend_journal();
    world.assert_paused(&order, into, DISK).await;
    world.restart().await.unwrap();
    world.assert_paused(&order, into, DISK).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_process_that_dies_while_it_is_shut_down_costs_no_pause() {
    let world = World::new();
    let (order, into) = (world.running().await, BuildId::random());
    let mut events = world.node.events();
    world.runtime.at("shut down", Fault::Die);
    world.pause(&order, into, DISK).await.unwrap();
    tokio::time::sleep(SOON).await;
    world.assert_paused(&order, into, DISK).await;
    assert_eq!(told(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_sandbox_that_dies_keeps_its_disk_and_says_that_its_memory_is_lost() {
    let world = World::new();
    let (order, into) = world.paused(FULL).await;
    world.runtime.at("keep", Fault::Fail);
    world.runtime.die(order.sandbox);
    tokio::time::sleep(SOON).await;
    assert!(world.runtime.has_disk(order.sandbox));
    assert_eq!(world.runtime.machines(order.sandbox), [""; 0]);
    let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
    let refused = world.node.start(resumed).await;
    assert!(matches!(refused, Err(NodeError::MemoryLost)), "{refused:?}");
    let resumed = world.next(&order, OrderOrigin::Paused(into, DISK));
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_dead_and_whose_disk_is_still_to_be_put_away_is_paused() {
    let world = World::new();
    let (order, into) = (world.running().await, BuildId::random());
    world.runtime.at("keep", Fault::FailDead);
    let paused = world.pause(&order, into, DISK).await;
    assert!(matches!(paused, Err(NodeError::Busy("paused"))), "{paused:?}");
    assert_eq!(
        world.held(&order).await,
        Some((order.execution, HeldState::Paused(into, DISK)))
    );
    tokio::time::sleep(SOON).await;
    world.assert_paused(&order, into, DISK).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_whose_caller_gave_up_is_finished() {
    let world = World::new();
    let (order, into, go) = (world.running().await, BuildId::random(), Arc::new(Notify::new()));
    world.runtime.at("freeze", Fault::Wait(Arc::clone(&go)));
    let pause = world.pause(&order, into, FULL);
    tokio::time::timeout(SOON, pause).await.unwrap_err();
    go.notify_one();
    tokio::time::sleep(SOON).await;
    world.assert_paused(&order, into, FULL).await;
}

#[tokio::test(start_paused = true)]
async fn an_auto_pause_that_fails_is_told_and_tried_again() {
    let world = World::new();
    let order = world.running_until(OnTimeout::Pause(FULL)).await;
    let mut events = world.node.events();
    world.runtime.at("freeze", Fault::NoJournal);
    tokio::time::sleep(LIFE + SOON).await;
    let (id, execution) = (order.sandbox, order.execution);
    let heard = told(&mut events);
    let [NodeEvent::Pausing(_, _, into, FULL), NodeEvent::PauseFailed(..)] = heard[..] else {
        panic!("{heard:?}");
    };
    assert_eq!(heard[1], NodeEvent::PauseFailed(id, execution, into));
    assert_eq!(world.held(&order).await, Some((execution, HeldState::Running)));
    world.runtime.mend_journal();
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    let heard = told(&mut events);
    let [NodeEvent::Pausing(..), NodeEvent::Paused(_, _, into, _)] = heard[..] else {
        panic!("{heard:?}");
    };
    world.assert_paused(&order, into, FULL).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_sandbox_is_killed_with_its_disk() {
    for mode in [FULL, DISK] {
        let world = World::new();
        let (order, _) = world.paused(mode).await;
        world.kill(&order, KillReason::Requested).await.unwrap();
        world.assert_nothing_of(&order).await;
    }
}
