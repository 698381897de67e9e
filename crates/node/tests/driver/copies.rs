//! Copies of sandboxes that run, what starts from them, and what is done with builds.
use std::sync::Arc;
use std::time::Duration;

use model::{BuildId, KillReason, Memory, Seat, StartCommand, VolumeId, VolumeMount};
use ports::guest::ENVD_PORT;
use ports::node::{HeldState, Order, OrderOrigin};
use ports::{Guest as _, Node, NodeError, Route};
use tokio::sync::Notify;

use crate::memory::durable;
use crate::world::{Content, DISK, Fault, LIFE, SOON, World};

/// An order for a sandbox of a build that holds memory.
fn of_copy(world: &World) -> Order {
    let build = world.runtime.add_build(Content {
        memory: Some(vec!["serve".to_owned()]),
        ..Content::default()
    });
    Order {
        build,
        start: Some(StartCommand {
            command: "serve".to_owned(),
            user: "user".to_owned(),
            cwd: None,
        }),
        ..world.order()
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_of_a_build_with_memory_goes_on_as_somebody_else() {
    let world = durable();
    let order = of_copy(&world);
    world.node.start(order.clone()).await.unwrap();
    let [init] = &world.runtime.inits()[..] else {
        panic!()
    };
    assert!(init.restored && init.renew);
    assert_eq!(init.start_command, None, "it runs already");
    let id = init.machine_id.clone().unwrap();
    assert!(
        id.len() == 32
            && id
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
        "{id}"
    );
    let other = Order {
        build: order.build,
        ..of_copy(&world)
    };
    world.node.start(other.clone()).await.unwrap();
    assert_ne!(
        world.runtime.inits()[0].machine_id,
        Some(id),
        "no two copies are one machine"
    );
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_memory_cannot_be_used_here_boots_and_says_so() {
    let world = durable();
    let order = of_copy(&world);
    world.runtime.at("restore", Fault::Fail);
    world.node.start(order.clone()).await.unwrap();
    let [init] = &world.runtime.inits()[..] else {
        panic!()
    };
    assert!(!init.restored && !init.renew);
    assert_eq!(init.start_command.as_ref().unwrap().command, "serve");
    let warnings = world.warnings(&order).await;
    assert!(
        warnings[0].starts_with("it boots, and runs its start command"),
        "{warnings:?}"
    );
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_of_a_build_with_memory_that_fails_leaves_nothing() {
    for (at, fault) in [
        ("start", Fault::Fail),
        ("init", Fault::Fail),
        ("init", Fault::NoJournal),
    ] {
        let world = durable();
        let order = of_copy(&world);
        let is_away = matches!(fault, Fault::NoJournal);
        world.runtime.at(at, fault);
        world.node.start(order.clone()).await.unwrap_err();
        if is_away {
            world.runtime.mend_journal();
        }
        world.assert_nothing_of(&order).await;
        world.node.start(order.clone()).await.unwrap();
        world.assert_runs(&order).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_taken_and_the_sandbox_runs_on() {
    for (is_durable, memory, taken) in [
        (true, true, Memory::Durable),
        (true, false, Memory::None),
        (false, true, Memory::None),
    ] {
        let world = World::new();
        world.runtime.set_durable(is_durable);
        let (order, into) = (world.running().await, BuildId::random());
        world.runtime.steps();
        let copy = || {
            world
                .node
                .checkpoint(order.sandbox, order.execution, into, memory)
        };
        assert_eq!(copy().await.unwrap(), taken);
        let steps: &[&str] = match taken {
            Memory::None => &["checkpoint"],
            _ => &["quiesce", "checkpoint memory"],
        };
        assert_eq!(world.runtime.steps(), steps);
        assert_eq!(copy().await.unwrap(), taken, "asked again");
        assert_eq!(world.runtime.steps(), [""; 0]);
        assert!(world.runtime.content(into).is_some());
        world.assert_runs(&order).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_fails_costs_the_sandbox_nothing() {
    let world = durable();
    let order = world.running().await;
    let into = BuildId::random();
    world.runtime.at("checkpoint memory", Fault::Fail);
    let copied = world
        .node
        .checkpoint(order.sandbox, order.execution, into, true)
        .await;
    assert!(
        matches!(copied, Err(NodeError::CannotCheckpoint(_))),
        "{copied:?}"
    );
    world.runtime.at("checkpoint", Fault::Fail);
    world
        .node
        .checkpoint(order.sandbox, order.execution, into, false)
        .await
        .unwrap_err();
    world.runtime.at("quiesce", Fault::Fail);
    world
        .node
        .checkpoint(order.sandbox, order.execution, into, true)
        .await
        .unwrap();
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn only_what_runs_is_copied() {
    let world = durable();
    let (order, _) = world.paused(DISK).await;
    let copy = |execution| {
        world
            .node
            .checkpoint(order.sandbox, execution, BuildId::random(), true)
    };
    let copied = copy(order.execution).await;
    assert!(matches!(copied, Err(NodeError::Busy("paused"))), "{copied:?}");
    let copied = copy(world.order().execution).await;
    assert!(matches!(copied, Err(NodeError::Unknown)), "{copied:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_and_whoever_dials_wait_until_a_copy_is_taken() {
    let world = durable();
    let order = world.running().await;
    let (go, into) = (Arc::new(Notify::new()), BuildId::random());
    world
        .runtime
        .at("checkpoint memory", Fault::Wait(Arc::clone(&go)));
    let (node, id, execution) = (Arc::clone(&world.node), order.sandbox, order.execution);
    let copy = tokio::spawn(async move { node.checkpoint(id, execution, into, true).await });
    tokio::time::sleep(LIFE + SOON).await;
    assert_eq!(world.held(&order).await, Some((execution, HeldState::Running)));
    let route = Route {
        sandbox: id,
        seat: Seat {
            node: world.node.id(),
            execution,
        },
        envd_token: None,
        traffic_token: None,
        mask_host: None,
        version: 1,
    };
    let dial = world.node.dial(&route, ENVD_PORT);
    assert!(
        tokio::time::timeout(SOON, dial).await.is_err(),
        "what connects now could not be copied"
    );
    go.notify_one();
    copy.await.unwrap().unwrap();
    tokio::time::sleep(SOON).await;
    assert!(world.runtime.content(into).is_some());
    world.assert_nothing_of(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_keeps_somebody_waiting_keeps_nobody_from_a_copy() {
    let world = durable();
    let order = world.running().await;
    world.runtime.at("word", Fault::Wait(Arc::new(Notify::new())));
    let (node, id, execution) = (Arc::clone(&world.node), order.sandbox, order.execution);
    let probe = tokio::spawn(async move { node.is_healthy(id, execution).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let copy = world.node.checkpoint(id, execution, BuildId::random(), true);
    let copied = tokio::time::timeout(Duration::from_secs(5), copy).await.unwrap();
    assert_eq!(copied.unwrap(), Memory::Durable);
    assert!(!probe.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_caller_gave_up_is_taken() {
    let world = durable();
    let order = world.running().await;
    let (go, into) = (Arc::new(Notify::new()), BuildId::random());
    world.runtime.at("checkpoint", Fault::Wait(Arc::clone(&go)));
    let copy = world.node.checkpoint(order.sandbox, order.execution, into, false);
    tokio::time::timeout(SOON, copy).await.unwrap_err();
    go.notify_one();
    tokio::time::sleep(SOON).await;
    assert!(world.runtime.content(into).is_some());
}

#[tokio::test(start_paused = true)]
async fn builds_are_removed_but_those_that_a_sandbox_started_from() {
    let world = World::new();
    let (needed, paused, free) = (
        world.runtime.add_build(Content::default()),
        world.runtime.add_build(Content::default()),
        world.runtime.add_build(Content::default()),
    );
    let of = |build| Order {
        build,
        ..world.order()
    };
    let (running, sleeper) = (of(needed), of(paused));
    for order in [&running, &sleeper] {
        world.node.start(order.clone()).await.unwrap();
    }
    world.pause(&sleeper, BuildId::random(), DISK).await.unwrap();
    let all = world.node.builds().await.unwrap();
    assert_eq!(all.len(), 3);
    world.node.remove_builds(&all).await.unwrap();
    assert_eq!(world.runtime.content(free), None);
    assert_eq!(world.runtime.all_builds(), [needed, paused].into());
    world.kill(&running, KillReason::Requested).await.unwrap();
    world.kill(&sleeper, KillReason::Requested).await.unwrap();
    world.node.remove_builds(&all).await.unwrap();
    assert_eq!(world.runtime.all_builds(), [].into());
}

#[tokio::test(start_paused = true)]
async fn volumes_are_mounted_at_each_start() {
    let world = World::new();
    let volumes = vec![VolumeMount {
        volume: VolumeId::random(),
        name: "data".to_owned(),
        path: "/data".to_owned(),
    }];
    let order = Order {
        volumes: volumes.clone(),
        ..world.order()
    };
    world.node.start(order.clone()).await.unwrap();
    let into = BuildId::random();
    world.pause(&order, into, DISK).await.unwrap();
    let resumed = world.next(&order, OrderOrigin::Paused(into, DISK));
    world.node.start(resumed).await.unwrap();
    let specs = world.runtime.specs();
    assert_eq!(
        specs.iter().map(|spec| &spec.volumes).collect::<Vec<_>>(),
        [&volumes; 2]
    );
}
