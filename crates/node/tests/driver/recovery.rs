//! What the next daemon makes of the journal.
use std::fs;

use model::KillReason;
use ports::node::{HeldState, OrderOrigin};
use ports::{Node, NodeError};

use crate::world::{DISK, FULL, World};

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_not_understood_costs_nobody_a_disk() {
    let newer = r#"{"version":2,"everything":"else"}"#;
    for text in ["", "{", "{}", newer] {
        let mut world = World::new();
        let alive = world.running().await;
        let running = world.running().await;
        let (paused, _) = world.paused(DISK).await;
        for order in [&running, &paused] {
            fs::write(world.entry(order), text).unwrap();
        }
        // Twice, for what was kept once must be kept again.
        for _ in 0..2 {
            world.restart().await.unwrap();
            for order in [&running, &paused] {
                assert_eq!(world.held(order).await, None);
                assert_eq!(world.runtime.machines(order.sandbox), [""; 0]);
                // What others make of it.
                world.kill(order, KillReason::NodeLost).await.unwrap();
                world.kill(order, KillReason::Timeout).await.unwrap();
                assert!(world.runtime.has_disk(order.sandbox));
                assert_eq!(fs::read_to_string(world.entry(order)).unwrap(), text);
            }
        }
        world.kill(&running, KillReason::Requested).await.unwrap();
        world.assert_nothing_of(&running).await;
        fs::remove_file(world.entry(&paused)).unwrap();
        world.restart().await.unwrap();
        world.assert_nothing_of(&paused).await;
        world.assert_runs(&alive).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_understood_again_is_that_of_its_disk() {
    let mut world = World::new();
    let (order, into) = world.paused(DISK).await;
    let text = fs::read(world.entry(&order)).unwrap();
    fs::write(world.entry(&order), "{").unwrap();
    world.restart().await.unwrap();
    fs::write(world.entry(&order), text).unwrap();
    world.restart().await.unwrap();
    world.assert_paused(&order, into, DISK).await;
}

#[tokio::test(start_paused = true)]
async fn of_those_that_died_while_nobody_looked_only_what_was_paused_is_kept() {
    let mut world = World::new();
    let running = world.running().await;
    let (frozen, into) = world.paused(FULL).await;
    world.stop();
    for order in [&running, &frozen] {
        world.runtime.die(order.sandbox);
    }
    world.restart().await.unwrap();
    world.assert_nothing_of(&running).await;
    assert!(world.runtime.has_disk(frozen.sandbox));
    let resumed = world.next(&frozen, OrderOrigin::Paused(into, FULL));
    let refused = world.node.start(resumed).await;
    assert!(matches!(refused, Err(NodeError::MemoryLost)), "{refused:?}");
    let resumed = world.next(&frozen, OrderOrigin::Paused(into, DISK));
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn entries_of_before_there_were_versions_are_understood() {
    let mut world = World::new();
    let order = world.running().await;
    let text = fs::read_to_string(world.entry(&order)).unwrap();
    let old = text.replace(r#""version":1,"#, "");
    assert_ne!(old, text);
    fs::write(world.entry(&order), old).unwrap();
    assert_eq!(world.restart().await.unwrap().running, 1);
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_read_stops_the_start_before_anything_is_touched() {
    let mut world = World::new();
    let order = world.running().await;
    let (paused, into) = world.paused(DISK).await;
    world.runtime.steps();
    world.runtime.break_journal();
    world.node.recover().await.unwrap_err();
    assert_eq!(world.runtime.steps(), [""; 0]);
    world.runtime.mend_journal();
    world.restart().await.unwrap();
    world.assert_paused(&paused, into, DISK).await;
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn writes_that_were_cut_short_are_swept_away() {
    let mut world = World::new();
    let order = world.running().await;
    let partial = world.entry(&order).with_extension("partial");
    fs::write(&partial, "{").unwrap();
    world.restart().await.unwrap();
    assert!(!partial.exists());
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn what_has_no_entry_is_cleared_away() {
    let mut world = World::new();
    let running = world.running().await;
    let (paused, _) = world.paused(FULL).await;
    for order in [&running, &paused] {
        fs::remove_file(world.entry(order)).unwrap();
    }
    assert_eq!(world.restart().await.unwrap().reclaimed, 2);
    world.assert_nothing_of(&running).await;
    world.assert_nothing_of(&paused).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_paused_and_what_runs_goes_on() {
    let mut world = World::new();
    let running = world.running().await;
    let (frozen, memory) = world.paused(FULL).await;
    let (stopped, disk) = world.paused(DISK).await;
    let found = world.restart().await.unwrap();
    assert_eq!((found.running, found.paused, found.reclaimed), (1, 2, 0));
    world.assert_paused(&frozen, memory, FULL).await;
    world.assert_paused(&stopped, disk, DISK).await;
    assert_eq!(
        world.held(&running).await,
        Some((running.execution, HeldState::Running))
    );
    world.assert_runs(&running).await;
    assert_eq!(world.node.report().await.unwrap().held.len(), 2);
}
