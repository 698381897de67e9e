//! A node that takes nothing new.
use model::KillReason;
use ports::node::{Draining, OrderOrigin};
use ports::{Node, NodeError};

use crate::world::{DISK, FULL, World};

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cordoned_starts_nothing_new_and_goes_on_with_what_it_holds() {
    let mut world = World::new();
    let runs = world.running().await;
    let (frozen, into) = world.paused(FULL).await;
    let (on_disk, into_disk) = world.paused(DISK).await;
    let how = Draining {
        deadline: world.now(),
        kills: false,
    };
    for drains in [false, true] {
        match drains {
            true => world.node.drain(how).await.unwrap(),
            false => world.node.set_accepts(false).await.unwrap(),
        }
        world.restart().await.unwrap();
        let report = world.node.report().await.unwrap();
        assert_eq!((report.accepts, report.draining), (false, drains.then_some(how)));
        let new = world.order();
        let refused = world.node.start(new.clone()).await.unwrap_err();
        assert!(matches!(refused, NodeError::Full { .. }), "{refused}");
        let word = if drains { "emptied" } else { "cordoned" };
        assert!(refused.to_string().contains(word), "{refused}");
        world.assert_nothing_of(&new).await;
        // Who repeats the start of what runs is answered as before.
        world.node.start(runs.clone()).await.unwrap();
    }
    let thawed = world.next(&frozen, OrderOrigin::Paused(into, FULL));
    world.node.start(thawed.clone()).await.unwrap();
    world.assert_runs(&thawed).await;
    let booted = world.next(&on_disk, OrderOrigin::Paused(into_disk, DISK));
    world.node.start(booted.clone()).await.unwrap();
    let rebooted = world.next(&booted, OrderOrigin::Reboot(booted.execution));
    world.node.start(rebooted.clone()).await.unwrap();
    world.assert_runs(&rebooted).await;
    world.kill(&runs, KillReason::Requested).await.unwrap();

    world.node.set_accepts(true).await.unwrap();
    assert_eq!(world.node.report().await.unwrap().draining, None);
    world.running().await;
}
