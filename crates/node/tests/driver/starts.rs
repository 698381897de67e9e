//! Starts, resumes and reboots that fail, and whose callers give up.
use std::sync::Arc;

use model::{BuildId, KillReason};
use ports::node::{HeldState, OrderOrigin};
use ports::{Node, NodeError};
use tokio::sync::Notify;

use crate::world::{DISK, FULL, Fault, SOON, World};

#[tokio::test(start_paused = true)]
async fn a_start_that_cannot_be_written_leaves_nothing() {
    let world = World::new();
    let order = world.order();
    world.runtime.at("init", Fault::NoJournal);
    world.node.start(order.clone()).await.unwrap_err();
    world.runtime.mend_journal();
    world.assert_nothing_of(&order).await;
    world.node.start(order.clone()).await.unwrap();
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn what_failed_to_start_and_to_stop_is_stopped_again() {
    for at in ["init", "nowhere"] {
        let world = World::new();
        let order = world.order();
        world.runtime.at("init", Fault::NoJournal);
        world.runtime.at(at, Fault::Fail);
        world.runtime.at("stop", Fault::Fail);
        world.runtime.at("stop", Fault::Fail);
        world.node.start(order.clone()).await.unwrap_err();
        let held = world.held(&order).await.map(|held| held.1);
        assert_eq!(held, Some(HeldState::Stopping));
        world.runtime.mend_journal();
        tokio::time::sleep(SOON).await;
        world.assert_nothing_of(&order).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_caller_gave_up_comes_up_or_is_ended_and_is_counted_no_more() {
    let world = World::new();
    let (order, go) = (world.order(), Arc::new(Notify::new()));
    world.runtime.at("start", Fault::Wait(Arc::clone(&go)));
    let start = world.node.start(order.clone());
    tokio::time::timeout(SOON, start).await.unwrap_err();
    assert_eq!(world.node.report().await.unwrap().starting, 1);
    go.notify_one();
    tokio::time::sleep(SOON).await;
    assert_eq!(world.node.report().await.unwrap().starting, 0);
    world.node.start(order.clone()).await.unwrap();
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_ends_what_a_start_whose_caller_gave_up_has_made() {
    let world = World::new();
    let (order, go) = (world.order(), Arc::new(Notify::new()));
    world.runtime.at("start", Fault::Wait(Arc::clone(&go)));
    let start = world.node.start(order.clone());
    tokio::time::timeout(SOON, start).await.unwrap_err();
    go.notify_one();
    world.kill(&order, KillReason::StartFailed).await.unwrap();
    world.assert_nothing_of(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_cannot_be_written_leaves_it_frozen() {
    for at in ["thaw", "init"] {
        let world = World::new();
        let (order, into) = world.paused(FULL).await;
        world.runtime.at(at, Fault::NoJournal);
        let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
        world.node.start(resumed.clone()).await.unwrap_err();
        world.runtime.mend_journal();
        world.assert_paused(&order, into, FULL).await;
        world.node.start(resumed.clone()).await.unwrap();
        world.assert_runs(&resumed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_fails_leaves_it_frozen() {
    for at in ["thaw", "init"] {
        let world = World::new();
        let (order, into) = world.paused(FULL).await;
        world.runtime.at(at, Fault::Fail);
        let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
        world.node.start(resumed.clone()).await.unwrap_err();
        world.assert_paused(&order, into, FULL).await;
        world.node.start(resumed.clone()).await.unwrap();
        world.assert_runs(&resumed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_boot_from_disk_that_fails_leaves_the_disk() {
    for (at, fault) in [
        ("start", Fault::Fail),
        ("start", Fault::NoJournal),
        ("init", Fault::Fail),
        ("init", Fault::NoJournal),
    ] {
        let world = World::new();
        let (order, into) = world.paused(DISK).await;
        let is_away = matches!(fault, Fault::NoJournal);
        world.runtime.at(at, fault);
        let resumed = world.next(&order, OrderOrigin::Paused(into, DISK));
        world.node.start(resumed.clone()).await.unwrap_err();
        if is_away {
            world.runtime.mend_journal();
        }
        world.assert_paused(&order, into, DISK).await;
        world.node.start(resumed.clone()).await.unwrap();
        world.assert_runs(&resumed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_did_not_boot_and_did_not_stop_is_stopped_again() {
    let world = World::new();
    let (order, into) = world.paused(DISK).await;
    world.runtime.at("init", Fault::Fail);
    world.runtime.at("keep", Fault::Fail);
    let resumed = world.next(&order, OrderOrigin::Paused(into, DISK));
    world.node.start(resumed.clone()).await.unwrap_err();
    tokio::time::sleep(SOON).await;
    world.assert_paused(&order, into, DISK).await;
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn memory_that_a_failed_boot_from_disk_cost_is_told_to_be_lost() {
    let world = World::new();
    let (order, into) = world.paused(FULL).await;
    world.runtime.at("start", Fault::Fail);
    let from_disk = world.next(&order, OrderOrigin::Paused(into, DISK));
    world.node.start(from_disk.clone()).await.unwrap_err();
    let with_memory = world.next(&order, OrderOrigin::Paused(into, FULL));
    let refused = world.node.start(with_memory).await;
    assert!(
        matches!(refused, Err(NodeError::MemoryUnusable(_))),
        "{refused:?}"
    );
    world.node.start(from_disk.clone()).await.unwrap();
    world.assert_runs(&from_disk).await;
}

#[tokio::test(start_paused = true)]
async fn a_boot_from_disk_that_cannot_end_what_is_frozen_leaves_it_frozen() {
    for at in ["nowhere", "keep"] {
        let world = World::new();
        let (order, into) = world.paused(FULL).await;
        if at == "nowhere" {
            world.runtime.break_journal();
        }
        world.runtime.at(at, Fault::Fail);
        let from_disk = world.next(&order, OrderOrigin::Paused(into, DISK));
        world.node.start(from_disk).await.unwrap_err();
        if at == "nowhere" {
            world.runtime.mend_journal();
        }
        world.assert_paused(&order, into, FULL).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reboot_that_cannot_be_written_changes_nothing() {
    let world = World::new();
    let order = world.running().await;
    world.runtime.break_journal();
    let rebooted = world.next(&order, OrderOrigin::Reboot(order.execution));
    world.node.start(rebooted).await.unwrap_err();
    world.runtime.mend_journal();
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_reboot_that_cannot_end_what_runs_leaves_it_running() {
    let world = World::new();
    let order = world.running().await;
    world.runtime.at("keep", Fault::Fail);
    let rebooted = world.next(&order, OrderOrigin::Reboot(order.execution));
    world.node.start(rebooted).await.unwrap_err();
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_reboot_that_does_not_come_up_keeps_the_disk_as_a_pause() {
    for (at, fault) in [
        ("keep", Fault::FailDead),
        ("start", Fault::Fail),
        ("init", Fault::Fail),
        ("init", Fault::NoJournal),
    ] {
        let mut world = World::new();
        let order = world.running().await;
        let is_away = matches!(fault, Fault::NoJournal);
        world.runtime.at(at, fault);
        let rebooted = world.next(&order, OrderOrigin::Reboot(order.execution));
        world.node.start(rebooted.clone()).await.unwrap_err();
        if is_away {
            world.runtime.mend_journal();
        }
        tokio::time::sleep(SOON).await;
        let into = BuildId(rebooted.execution.0);
        world.assert_paused(&order, into, DISK).await;
        world.restart().await.unwrap();
        world.assert_paused(&order, into, DISK).await;
        let resumed = world.next(&order, OrderOrigin::Paused(into, DISK));
        world.node.start(resumed.clone()).await.unwrap();
        world.assert_runs(&resumed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reboot_during_which_the_journal_is_away_for_a_moment_comes_up() {
    let mut world = World::new();
    let order = world.running().await;
    world.runtime.at("keep", Fault::NoJournal);
    let go = Arc::new(Notify::new());
    world.runtime.at("start", Fault::Wait(Arc::clone(&go)));
    let rebooted = world.next(&order, OrderOrigin::Reboot(order.execution));
    let start = world.node.start(rebooted.clone());
    tokio::time::timeout(SOON, start).await.unwrap_err();
    world.runtime.mend_journal();
    // A daemon that starts here finds the disk of one that was being paused.
    let into = BuildId(rebooted.execution.0);
    world.restart().await.unwrap();
    world.assert_paused(&order, into, DISK).await;
    drop(go);
}
