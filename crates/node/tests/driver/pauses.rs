//! Pauses that fail, and whose callers give up.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

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

#[tokio::test(start_paused = true)]
async fn the_disk_of_what_is_paused_is_copied_and_it_stays_paused() {
    for (is_durable, mode, step) in [
        (false, FULL, "checkpoint"),
        (false, DISK, "copy kept"),
        (true, FULL, "copy kept"),
    ] {
        let world = World::new();
        world.runtime.set_durable(is_durable);
        let (order, into) = world.paused(mode).await;
        let is_frozen = world.runtime.machines(order.sandbox) == ["frozen"];
        world.runtime.steps();
        for _ in 0..2 {
            world.node.copy_paused(order.sandbox, into).await.unwrap();
        }
        assert_eq!(
            world.runtime.steps(),
            [step],
            "once, however often it is asked for"
        );
        assert!(world.runtime.content(into).is_some());
        assert_eq!(world.held(&order).await.unwrap().1, HeldState::Paused(into, mode));
        assert_eq!(world.runtime.machines(order.sandbox) == ["frozen"], is_frozen);
        // It goes on with all that was kept.
        let next = world.next(&order, OrderOrigin::Paused(into, mode));
        world.node.start(next.clone()).await.unwrap();
        world.assert_runs(&next).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_paused_under_the_name_is_copied_by_it() {
    let world = World::new();
    let other = BuildId::random();
    let nobody = world.node.copy_paused(world.order().sandbox, other).await;
    assert!(matches!(nobody, Err(NodeError::Unknown)), "{nobody:?}");
    let order = world.running().await;
    let running = world.node.copy_paused(order.sandbox, other).await;
    assert!(matches!(running, Err(NodeError::Busy("running"))), "{running:?}");
    let into = BuildId::random();
    world.pause(&order, into, FULL).await.unwrap();
    let otherwise = world.node.copy_paused(order.sandbox, other).await;
    assert!(
        matches!(otherwise, Err(NodeError::Busy("paused"))),
        "{otherwise:?}"
    );
    // What died while it was frozen is put away first.
    let id = order.sandbox;
    world.runtime.at("keep", Fault::Fail);
    world.runtime.die(id);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let dead = world.node.copy_paused(id, into).await;
    assert!(matches!(dead, Err(NodeError::Busy("being put away"))), "{dead:?}");
    assert_eq!(world.runtime.all_builds(), BTreeSet::new());
    tokio::time::sleep(LIFE).await;
    world.node.copy_paused(id, into).await.unwrap();
    world.runtime.set_rooted();
    let rooted = world.node.copy_paused(id, into).await;
    assert!(matches!(rooted, Err(NodeError::Refused(_))), "{rooted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_pause_that_fails_costs_nothing_and_a_resume_waits_for_it() {
    let world = World::new();
    let (order, into) = world.paused(DISK).await;
    world.runtime.at("copy kept", Fault::Fail);
    world.node.copy_paused(order.sandbox, into).await.unwrap_err();
    world.assert_paused(&order, into, DISK).await;
    let go = Arc::new(Notify::new());
    world.runtime.at("copy kept", Fault::Wait(Arc::clone(&go)));
    let (node, id) = (Arc::clone(&world.node), order.sandbox);
    let copy = tokio::spawn(async move { node.copy_paused(id, into).await });
    tokio::time::sleep(SOON).await;
    let next = world.next(&order, OrderOrigin::Paused(into, DISK));
    let (node, resumed) = (Arc::clone(&world.node), next.clone());
    let resume = tokio::spawn(async move { node.start(resumed).await });
    tokio::time::sleep(SOON).await;
    assert!(!resume.is_finished());
    // Nobody removes it before it is done.
    world.node.remove_builds(&[into]).await.unwrap();
    go.notify_one();
    copy.await.unwrap().unwrap();
    resume.await.unwrap().unwrap();
    assert!(world.runtime.content(into).is_some());
    world.assert_runs(&next).await;
}

#[tokio::test(start_paused = true)]
async fn the_owner_of_an_execution_is_told_in_its_log() {
    let world = World::new();
    let order = world.running().await;
    let say = |execution| {
        world
            .node
            .say(order.sandbox, execution, ports::Level::Warn, "it moved")
    };
    say(order.execution).await.unwrap();
    assert_eq!(world.warnings(&order).await, ["it moved"]);
    let other = say(world.order().execution).await;
    assert!(matches!(other, Err(NodeError::Unknown)), "{other:?}");
}
