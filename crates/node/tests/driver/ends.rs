//! Deadlines, deaths and kills.
use std::sync::Arc;
use std::time::Duration;

use model::{KillReason, NetworkPolicy};
use ports::node::HeldState;
use ports::{Node, NodeError, NodeEvent};
use tokio::sync::Notify;

use crate::world::{Fault, LIFE, SOON, World, told};

#[tokio::test(start_paused = true)]
async fn those_who_route_hear_of_the_end_before_it_begins() {
    for why in [KillReason::Timeout, KillReason::Crashed] {
        let world = World::new();
        let order = world.running().await;
        let (id, execution) = (order.sandbox, order.execution);
        world.runtime.steps();
        let mut events = world.node.events();
        if why == KillReason::Crashed {
            world.runtime.die(id);
        }
        let first = events.recv().await.unwrap();
        assert_eq!(first, NodeEvent::Ending(id, execution, why));
        assert_eq!(world.runtime.steps(), [""; 0]);
        assert_eq!(world.held(&order).await, Some((execution, HeldState::Stopping)));
        let then = events.recv().await.unwrap();
        assert_eq!(then, NodeEvent::Ended(id, execution, why));
        world.assert_nothing_of(&order).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_fails_is_tried_until_nothing_is_left() {
    for (step, why) in [
        ("stop", KillReason::Timeout),
        ("discard", KillReason::Timeout),
        ("stop", KillReason::Crashed),
        ("discard", KillReason::Crashed),
    ] {
        let world = World::new();
        let order = world.running().await;
        let mut events = world.node.events();
        world.runtime.at(step, Fault::Fail);
        world.runtime.at(step, Fault::Fail);
        if why == KillReason::Crashed {
            world.runtime.die(order.sandbox);
        } else {
            tokio::time::sleep(LIFE).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(
            world.held(&order).await,
            Some((order.execution, HeldState::Stopping))
        );
        assert!(!world.entry(&order).exists(), "a restart would run it again");
        tokio::time::sleep(SOON).await;
        world.assert_nothing_of(&order).await;
        let (id, execution) = (order.sandbox, order.execution);
        assert_eq!(
            told(&mut events),
            [
                NodeEvent::Ending(id, execution, why),
                NodeEvent::Ended(id, execution, why)
            ]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_ended_is_not_tried_in_a_hurry() {
    let world = World::new();
    let order = world.running().await;
    for _ in 0..1_000 {
        world.runtime.at("stop", Fault::Fail);
    }
    tokio::time::sleep(LIFE + SOON).await;
    world.runtime.steps();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tries = world.runtime.steps().len();
    assert!((30..=70).contains(&tries), "{tries} in an hour");
    assert_eq!(
        world.held(&order).await,
        Some((order.execution, HeldState::Stopping))
    );
}

#[tokio::test(start_paused = true)]
async fn a_kill_that_fails_is_tried_again_by_the_node_too() {
    let world = World::new();
    let order = world.running().await;
    world.runtime.at("stop", Fault::Fail);
    world.kill(&order, KillReason::Requested).await.unwrap_err();
    tokio::time::sleep(SOON).await;
    world.assert_nothing_of(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_whose_caller_gave_up_is_finished() {
    let world = World::new();
    let (order, go) = (world.running().await, Arc::new(Notify::new()));
    world.runtime.at("stop", Fault::Wait(Arc::clone(&go)));
    let kill = world.kill(&order, KillReason::Requested);
    tokio::time::timeout(SOON, kill).await.unwrap_err();
    go.notify_one();
    tokio::time::sleep(SOON).await;
    world.assert_nothing_of(&order).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_journal_is_an_end_and_the_next_start_clears_the_entry() {
    let mut world = World::new();
    let (killed, late) = (world.running().await, world.running().await);
    world.runtime.break_journal();
    world.kill(&killed, KillReason::Requested).await.unwrap();
    tokio::time::sleep(LIFE + SOON).await;
    for order in [&killed, &late] {
        assert_eq!(world.held(order).await, None);
        assert_eq!(world.runtime.machines(order.sandbox), [""; 0]);
    }
    world.runtime.mend_journal();
    world.restart().await.unwrap();
    world.assert_nothing_of(&killed).await;
    world.assert_nothing_of(&late).await;
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_be_written_are_not_in_force() {
    let world = World::new();
    let order = world.running().await;
    let (id, execution) = (order.sandbox, order.execution);
    let policy = NetworkPolicy {
        internet: Some(false),
        ..NetworkPolicy::default()
    };
    world.runtime.break_journal();
    let later = world.now() + LIFE * 2;
    world.node.set_deadline(id, execution, later).await.unwrap_err();
    world.node.set_network(id, execution, policy).await.unwrap_err();
    world.runtime.mend_journal();
    let report = world.node.report().await.unwrap();
    assert_eq!(report.held[0].order, order);
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn settings_of_one_that_is_being_ended_bring_back_no_entry() {
    let world = World::new();
    let order = world.running().await;
    let (id, execution) = (order.sandbox, order.execution);
    let go = Arc::new(Notify::new());
    world.runtime.at("stop", Fault::Wait(Arc::clone(&go)));
    let kill = world.kill(&order, KillReason::Requested);
    tokio::time::timeout(SOON, kill).await.unwrap_err();
    let told = world.node.set_deadline(id, execution, world.now() + LIFE).await;
    assert!(matches!(told, Err(NodeError::Busy(_))), "{told:?}");
    let policy = world.node.set_network(id, execution, NetworkPolicy::default());
    let (policy, ()) = tokio::join!(policy, async { go.notify_one() });
    assert!(policy.is_err());
    world.assert_nothing_of(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_moved_is_kept() {
    let world = World::new();
    let order = world.running().await;
    let (id, execution) = (order.sandbox, order.execution);
    let later = world.now() + LIFE * 2;
    world.node.set_deadline(id, execution, later).await.unwrap();
    tokio::time::sleep(LIFE + SOON).await;
    assert_eq!(world.held(&order).await, Some((execution, HeldState::Running)));
    tokio::time::sleep(LIFE).await;
    world.assert_nothing_of(&order).await;
}
