//! What the blobs hold of builds: brought there once, had again from there, gone with what named it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::world::{World, eventually, request};
use model::recipe::{Base, Recipe};
use model::{BuildId, Kind, TemplateRef};
use ports::templates::RegisterBuild;
use ports::{ManagerError, NodeError, SandboxManager, TemplateManager};

fn name(text: &str) -> TemplateRef {
    text.parse().unwrap()
}

async fn stowing() -> World {
    let mut world = World::new().await;
    world.configured(|config| config.stow = true);
    world
}

async fn snapshot(world: &World) -> BuildId {
    let source = world.create().await.sandbox.id;
    let taken = world
        .orchestrator
        .snapshot(world.team.id, source, Some(name("work")), true)
        .await;
    let build = taken.unwrap().build;
    world.orchestrator.kill(world.team.id, source).await.unwrap();
    build
}

async fn from_snapshot(world: &World) -> Result<BuildId, ManagerError> {
    let mut request = request();
    request.template = name("work");
    Ok(world.try_create(request).await?.sandbox.build)
}

/// As long as a build that was not brought rests.
async fn rest(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_build_is_brought_beside_those_that_it_is_akin_to() {
    let world = stowing().await;
    let (base, gone) = (world.base.tags["default"], BuildId::random());
    world.orchestrator.stow_now().await.unwrap();
    let build = snapshot(&world).await;
    world.node.is_akin(build, vec![gone, base]);
    assert_eq!(world.orchestrator.stow_now().await.unwrap(), 1);
    assert_eq!(world.node.told_kin(build), [format!("of {base}")]);
}

#[tokio::test]
async fn what_is_not_brought_rests_longer_each_time() {
    let world = stowing().await;
    let build = snapshot(&world).await;
    world.orchestrator.stow_now().await.unwrap();
    let second = snapshot(&world).await;
    for _ in 0..3 {
        world.node.fail("stow_build", NodeError::Timeout("the disk"));
    }
    let before = world.node.calls("stow_build");
    let tried = || world.node.calls("stow_build") - before;
    for (wait, tries) in [(0, 1), (9, 1), (2, 2), (18, 2), (3, 3), (38, 3)] {
        rest(wait).await;
        assert_eq!(world.orchestrator.stow_now().await.unwrap(), 0);
        assert_eq!(tried(), tries, "after {wait} s");
    }
    rest(3).await;
    assert_eq!(world.orchestrator.stow_now().await.unwrap(), 1);
    assert!(world.node.stowed().is_superset(&BTreeSet::from([build, second])));
}

#[tokio::test]
async fn what_is_named_is_brought_to_the_blobs_once() {
    let world = stowing().await;
    let build = snapshot(&world).await;
    world.node.add_build(BuildId::random());
    let base = world.base.tags["default"];
    assert_eq!(world.orchestrator.stow_now().await.unwrap(), 2);
    assert_eq!(world.node.stowed(), BTreeSet::from([base, build]));
    assert_eq!(world.orchestrator.stow_now().await.unwrap(), 0);
    world.node.assert_right();
}

#[tokio::test]
async fn nothing_is_brought_where_nobody_wants_it() {
    let world = World::new().await;
    snapshot(&world).await;
    assert_eq!(world.orchestrator.stow_now().await.unwrap(), 0);
    assert!(world.node.stowed().is_empty());
}

#[tokio::test]
async fn what_a_node_has_lost_is_had_again_from_the_blobs() {
    let mut world = stowing().await;
    let build = snapshot(&world).await;
    world.node.fail("stow_build", NodeError::Timeout("the disk"));
    assert_eq!(world.orchestrator.stow_now().await.unwrap(), 1, "the other");
    rest(10).await;
    assert_eq!(
        world.orchestrator.stow_now().await.unwrap(),
        1,
        "the one that failed"
    );
    world.reborn(None);
    world.node.lose_build(build);
    assert_eq!(from_snapshot(&world).await.unwrap(), build);
    assert!(world.node.has_build(build));
    // Also as what a template is built on.
    world.node.lose_build(build);
    let wish = RegisterBuild {
        name: name("over"),
        tags: Vec::new(),
        cpu: None,
        memory: None,
        free_disk: None,
    };
    let (template, over) = world.orchestrator.register(world.team.id, wish).await.unwrap();
    let recipe = Recipe {
        from: Base::Template(name("work")),
        steps: Vec::new(),
        start: None,
        ready: None,
        force: false,
    };
    let started = world
        .orchestrator
        .start(world.team.id, template.id, over.id, recipe)
        .await;
    started.unwrap();
    eventually(async || {
        let stored = world.builds.build(over.id).await.unwrap().unwrap();
        stored.status.is_over()
    })
    .await;
    assert!(world.node.has_build(build) && world.node.has_build(over.id));
    world.node.assert_right();
}

#[tokio::test]
async fn what_the_blobs_do_not_hold_is_a_fault_that_leaves_nothing() {
    let world = stowing().await;
    let build = snapshot(&world).await;
    world.node.lose_build(build);
    let before = world.store.live().await.unwrap().len();
    assert!(from_snapshot(&world).await.is_err());
    assert_eq!(world.store.live().await.unwrap().len(), before);
    world.node.assert_right();
}

#[tokio::test]
async fn a_start_whose_layers_cannot_be_had_leaves_nothing_and_may_be_tried_again() {
    let world = stowing().await;
    let build = snapshot(&world).await;
    world.orchestrator.stow_now().await.unwrap();
    let failed = |kind| NodeError::Failed {
        step: "bringing the layers of a build from the blobs",
        kind,
        source: "as the test says".into(),
    };
    let live = async || world.store.live().await.unwrap().len();
    let before = live().await;
    // They are nowhere, the blobs are away, what is there was changed.
    for error in [
        NodeError::NoBuild(build),
        failed(Kind::Unavailable),
        failed(Kind::Internal),
    ] {
        world.node.lose_build(build);
        world.node.fail("fetch_build", error);
        from_snapshot(&world).await.unwrap_err();
        assert_eq!(live().await, before);
        let mut request = request();
        request.template = name("work");
        let started = world.try_create(request).await.unwrap().sandbox;
        assert_eq!(started.build, build);
        let killed = world.orchestrator.kill(world.team.id, started.id).await;
        killed.unwrap();
    }
    world.node.assert_right();
}

#[tokio::test]
async fn what_nothing_names_goes_from_the_blobs_too() {
    let world = stowing().await;
    let build = snapshot(&world).await;
    world.orchestrator.stow_now().await.unwrap();
    // Whether or not a node has it still.
    world.node.lose_build(build);
    let gone = world.orchestrator.delete(world.team.id, &name("work")).await;
    gone.unwrap();
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(61));
        world.orchestrator.collect_now().await.unwrap();
    }
    let base = world.base.tags["default"];
    let noted: BTreeSet<_> = world.builds.stowed().await.unwrap().into_keys().collect();
    assert_eq!(noted, BTreeSet::from([base]));
    world.node.assert_right();
}
