//! Volumes of a fleet: each lies on one node, and several processes make, mount and delete them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::world::{FakeNode, Fuse, World, request};
use model::{Kind, NodeId, OnTimeout, PauseMode, SandboxId, Volume, VolumeId, VolumeState};
use orchestrator::Orchestrator;
use ports::manager::{Granted, NodeWish};
use ports::volumes::FileError;
use ports::{ManagerError, Node as _, NodeError, SandboxManager, VolumeError, VolumeManager};

/// What another process may be at is left to it for so long.
const LONG: Duration = Duration::from_secs(61);
/// A node that did not answer may make a volume for so long.
const VERY_LONG: Duration = Duration::from_secs(601);

/// Several nodes that all have what sandboxes start from.
async fn fleet(nodes: usize) -> (World, Vec<Arc<FakeNode>>) {
    let mut world = World::in_memory().await;
    world.configured(|config| config.shared = true);
    let base = world.base.tags["default"];
    let mut all = vec![world.node.clone()];
    for _ in 1..nodes {
        let node = world.add_node();
        node.add_build(base);
        all.push(node);
    }
    (world, all)
}

async fn make(world: &World, name: &str) -> Volume {
    try_make(&world.orchestrator, world, name).await.unwrap()
}

async fn try_make(by: &Orchestrator, world: &World, name: &str) -> Result<Volume, VolumeError> {
    VolumeManager::create(by, world.team.id, name).await
}

async fn delete(by: &Orchestrator, world: &World, id: VolumeId) -> Result<(), VolumeError> {
    VolumeManager::delete(by, world.team.id, id).await
}

async fn with(by: &Orchestrator, world: &World, names: &[&str]) -> Result<Granted, ManagerError> {
    let mut request = request();
    let mount = |name: &&str| ((*name).to_owned(), format!("/mnt/{name}"));
    request.volumes = names.iter().map(mount).collect();
    SandboxManager::create(by, world.team.id, request).await
}

fn node_of<'a>(nodes: &'a [Arc<FakeNode>], volume: &Volume) -> &'a Arc<FakeNode> {
    let home = volume.home.unwrap();
    nodes.iter().find(|node| node.id() == home).unwrap()
}

fn holds(node: &FakeNode, id: SandboxId) -> bool {
    node.held().contains_key(&id)
}

/// Every volume that any node has.
fn on_disks(world: &World, nodes: &[Arc<FakeNode>]) -> BTreeSet<VolumeId> {
    nodes
        .iter()
        .flat_map(|node| world.files_of(node).volumes())
        .collect()
}

async fn stored(world: &World) -> BTreeSet<VolumeId> {
    let all = world.volumes.all_volumes().await.unwrap();
    all.into_iter().map(|volume| volume.id).collect()
}

async fn remains(world: &World) -> usize {
    world.volumes.volume_remains().await.unwrap().len()
}

#[tokio::test]
async fn a_volume_lies_on_one_node_and_what_has_it_starts_there() {
    let (world, nodes) = fleet(3).await;
    let volume = make(&world, "data").await;
    let home = node_of(&nodes, &volume);
    assert_eq!(on_disks(&world, &nodes), BTreeSet::from([volume.id]));
    assert!(world.files_of(home).volumes().contains(&volume.id));
    for _ in 0..8 {
        let id = with(&world.orchestrator, &world, &["data"])
            .await
            .unwrap()
            .sandbox
            .id;
        assert!(holds(home, id));
        // Also when it goes on after a pause.
        world.pause(id).await.unwrap();
        let (team, life) = (world.team.id, Duration::from_secs(60));
        let full = PauseMode::Full;
        world.orchestrator.connect(team, id, life, full).await.unwrap();
        assert!(holds(home, id));
    }
    let used: BTreeSet<NodeId> = nodes
        .iter()
        .filter(|node| !node.held().is_empty())
        .map(|node| node.id())
        .collect();
    assert_eq!(used, BTreeSet::from([home.id()]));
}

#[tokio::test]
async fn volumes_of_a_team_lie_together_while_their_node_takes_them() {
    let (world, nodes) = fleet(3).await;
    let first = make(&world, "a").await;
    let home = node_of(&nodes, &first);
    for name in ["b", "c", "d"] {
        assert_eq!(make(&world, name).await.home, first.home);
    }
    with(&world.orchestrator, &world, &["a", "b", "c", "d"])
        .await
        .unwrap();
    world
        .orchestrator
        .set_node(home.id(), NodeWish::Cordoned)
        .await
        .unwrap();
    let elsewhere = make(&world, "e").await;
    assert_ne!(elsewhere.home, first.home);
}

#[tokio::test]
async fn volumes_of_two_nodes_in_one_sandbox_are_refused_and_both_are_named() {
    let (world, nodes) = fleet(2).await;
    let a = make(&world, "a").await;
    let home = node_of(&nodes, &a);
    let closed = NodeWish::Cordoned;
    world.orchestrator.set_node(home.id(), closed).await.unwrap();
    let b = make(&world, "b").await;
    world
        .orchestrator
        .set_node(home.id(), NodeWish::Ready)
        .await
        .unwrap();
    let error = with(&world.orchestrator, &world, &["a", "b"]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    let told = error.to_string();
    let (x, y) = (a.home.unwrap(), b.home.unwrap());
    let both = format!("volume 'a' lies on node {x} and volume 'b' on node {y}");
    assert!(told.contains(&both) && told.contains("one node"), "{told}");
    assert!(world.store.live().await.unwrap().is_empty());
    for name in ["a", "b"] {
        with(&world.orchestrator, &world, &[name]).await.unwrap();
    }
}

#[tokio::test]
async fn a_home_that_takes_nothing_is_told_with_the_volume_and_no_other_node_is_asked() {
    let (world, nodes) = fleet(2).await;
    let volume = make(&world, "data").await;
    let home = node_of(&nodes, &volume);
    let other = nodes.iter().find(|node| node.id() != home.id()).unwrap();
    let place = format!("volume 'data' lies on node {}", home.id());
    let full = || NodeError::Full {
        what: "memory",
        retry_after: None,
    };
    let refused = async |why: &str| {
        let error = with(&world.orchestrator, &world, &["data"]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        let told = error.to_string();
        assert!(told.contains(&place) && told.contains(why), "{told}");
    };
    home.fail("start", full());
    refused("is out of memory").await;
    for (wish, why) in [
        (NodeWish::Cordoned, "(cordoned)"),
        (
            NodeWish::Draining {
                within: Duration::from_secs(60),
                kills: false,
            },
            "(draining)",
        ),
    ] {
        world.orchestrator.set_node(home.id(), wish).await.unwrap();
        refused(why).await;
    }
    world
        .orchestrator
        .set_node(home.id(), NodeWish::Ready)
        .await
        .unwrap();
    let away = NodeError::Failed {
        step: "reaching the node",
        kind: Kind::Unavailable,
        source: "refused".into(),
    };
    home.fail("start", away);
    refused("is away").await;
    world.leaves(home);
    refused("is away").await;
    assert_eq!(other.calls("start"), 0);
    world.all_are_there();
    let id = with(&world.orchestrator, &world, &["data"])
        .await
        .unwrap()
        .sandbox
        .id;
    assert!(holds(home, id));
    // What is paused there waits for it, too.
    world.pause(id).await.unwrap();
    world.leaves(home);
    let (team, life) = (world.team.id, Duration::from_secs(60));
    let resumed = world.orchestrator.connect(team, id, life, PauseMode::Full).await;
    let told = resumed.unwrap_err().to_string();
    assert!(told.contains(&place) && told.contains("is away"), "{told}");
}

#[tokio::test]
async fn a_home_that_lost_a_volume_is_told_with_it() {
    let (world, nodes) = fleet(2).await;
    let volume = make(&world, "data").await;
    let home = node_of(&nodes, &volume);
    world.files_of(home).clear();
    home.fail("start", NodeError::NoVolume(volume.id));
    let error = with(&world.orchestrator, &world, &["data"]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    let told = error.to_string();
    assert!(
        told.contains(&format!("volume 'data' lies on node {}", home.id())) && told.contains("lost"),
        "{told}"
    );
    let files = world.orchestrator.volume_files();
    let told = files.stat(volume.id, "/").await.unwrap_err();
    assert!(
        matches!(told, FileError::Lost { volume: lost, node } if lost == volume.id && node == home.id()),
        "{told}"
    );
    assert_eq!(told.kind(), Kind::Conflict);
    // It is not made anew in silence, and can be deleted.
    assert_eq!(world.orchestrator.compare_homes().await.unwrap(), 1);
    world.orchestrator.settle_volumes().await.unwrap();
    assert!(on_disks(&world, &nodes).is_empty());
    delete(&world.orchestrator, &world, volume.id).await.unwrap();
    assert_eq!(world.orchestrator.compare_homes().await.unwrap(), 0);
}

#[tokio::test]
async fn what_a_second_node_claims_is_neither_used_nor_removed() {
    let (world, nodes) = fleet(2).await;
    let volume = make(&world, "data").await;
    let home = node_of(&nodes, &volume);
    let other = nodes.iter().find(|node| node.id() != home.id()).unwrap();
    // As with a data directory that was copied, and made another node.
    world.files_of(other).has(volume.id);
    assert_eq!(world.orchestrator.compare_homes().await.unwrap(), 1);
    // And one that no backup of the database knows.
    world.files_of(other).has(VolumeId::random());
    assert_eq!(world.orchestrator.compare_homes().await.unwrap(), 2);
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!(world.files_of(other).volumes().len(), 2);
    let id = with(&world.orchestrator, &world, &["data"])
        .await
        .unwrap()
        .sandbox
        .id;
    assert!(holds(home, id));
    // A home that does not answer does not make the other one the home.
    world.kill(id).await.unwrap();
    world.leaves(home);
    let told = world
        .orchestrator
        .volume_files()
        .stat(volume.id, "/")
        .await
        .unwrap_err();
    assert!(
        matches!(told, FileError::Away { node, .. } if node == home.id()),
        "{told}"
    );
    with(&world.orchestrator, &world, &["data"]).await.unwrap_err();
    // Nor is it told to remove its copy when the volume is deleted.
    world.all_are_there();
    delete(&world.orchestrator, &world, volume.id).await.unwrap();
    assert_eq!(world.files_of(other).volumes().len(), 2);
    assert!(world.files_of(home).volumes().is_empty());
}

#[tokio::test]
async fn files_are_had_through_every_process() {
    let (mut world, _nodes) = fleet(3).await;
    let volume = make(&world, "data").await;
    let first = world.orchestrator.clone();
    world.reborn(None);
    for process in [&first, &world.orchestrator] {
        process.volume_files().stat(volume.id, "/").await.unwrap();
        let told = process.volume_files().stat(VolumeId::random(), "/").await;
        assert!(matches!(told, Err(FileError::NoVolume)));
    }
    delete(&world.orchestrator, &world, volume.id).await.unwrap();
    let told = first.volume_files().stat(volume.id, "/").await;
    assert!(matches!(told, Err(FileError::NoVolume)));
}

#[tokio::test]
async fn a_volume_is_deleted_while_its_home_is_away_and_removed_when_it_is_back() {
    let (world, nodes) = fleet(2).await;
    let volume = make(&world, "data").await;
    let home = node_of(&nodes, &volume);
    world.leaves(home);
    delete(&world.orchestrator, &world, volume.id).await.unwrap();
    assert!(matches!(
        delete(&world.orchestrator, &world, volume.id).await,
        Err(VolumeError::NotFound)
    ));
    let error = with(&world.orchestrator, &world, &["data"]).await.unwrap_err();
    assert!(error.to_string().contains("volume 'data' not found"), "{error}");
    // Its name is free, and what has it is another.
    let again = make(&world, "data").await;
    assert_ne!(again.home, volume.home);
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!((remains(&world).await, on_disks(&world, &nodes).len()), (1, 2));
    world.all_are_there();
    // It is no volume that nobody knows.
    assert_eq!(world.orchestrator.compare_homes().await.unwrap(), 0);
    world.files_of(home).fail(FileError::InUse(volume.id));
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!(
        remains(&world).await,
        1,
        "a sandbox is still on its way off the node"
    );
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!(remains(&world).await, 0);
    assert_eq!(on_disks(&world, &nodes), BTreeSet::from([again.id]));
}

#[tokio::test(start_paused = true)]
async fn what_was_killed_on_a_node_that_is_away_does_not_hold_its_volume() {
    let (world, nodes) = fleet(2).await;
    let volume = make(&world, "data").await;
    let home = node_of(&nodes, &volume);
    let id = with(&world.orchestrator, &world, &["data"])
        .await
        .unwrap()
        .sandbox
        .id;
    world.leaves(home);
    let error = delete(&world.orchestrator, &world, volume.id).await.unwrap_err();
    assert!(
        matches!(error, VolumeError::InUse { sandbox, .. } if sandbox == id),
        "{error}"
    );
    world.kill(id).await.unwrap();
    assert!(holds(home, id), "its node was not told");
    delete(&world.orchestrator, &world, volume.id).await.unwrap();
    assert_eq!(remains(&world).await, 1);
    world.all_are_there();
    for _ in 0..2 {
        // Whoever killed it may be at it still.
        world.orchestrator.settle_now().await.unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    assert!(!holds(home, id));
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!(remains(&world).await, 0);
    assert_eq!(on_disks(&world, &nodes), BTreeSet::new());
}

#[tokio::test]
async fn a_volume_is_made_elsewhere_where_one_node_cannot_and_nothing_is_left_behind() {
    let (world, nodes) = fleet(2).await;
    let failures: [fn(NodeId) -> FileError; 3] = [
        |_| FileError::Full,
        |_| FileError::Invalid("this node does not support volumes".to_owned()),
        |_| FileError::Failed {
            step: "making a volume",
            source: std::io::Error::other("the disk is broken"),
        },
    ];
    for fails in failures {
        // Whichever is asked first.
        world.files_of(&nodes[0]).fail(fails(nodes[0].id()));
        let volume = make(&world, "data").await;
        assert_eq!(on_disks(&world, &nodes), BTreeSet::from([volume.id]));
        assert_eq!((stored(&world).await.len(), remains(&world).await), (1, 0));
        assert_eq!(volume.state, VolumeState::Ready);
        delete(&world.orchestrator, &world, volume.id).await.unwrap();
        // What was not asked for fails with the next volume.
        let _ = world.files_of(&nodes[0]).take_failure();
    }
    for node in &nodes {
        world.files_of(node).fail(FileError::Full);
    }
    let error = try_make(&world.orchestrator, &world, "data").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(stored(&world).await.is_empty() && on_disks(&world, &nodes).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_did_not_answer_may_make_it_later_and_is_told_to_remove_it_then() {
    let (world, nodes) = fleet(1).await;
    let files = world.files_of(&nodes[0]);
    files.fail(FileError::Away {
        volume: VolumeId::random(),
        node: nodes[0].id(),
    });
    try_make(&world.orchestrator, &world, "data").await.unwrap_err();
    let late = world.volumes.volume_remains().await.unwrap().pop().unwrap().id;
    for _ in 0..3 {
        world.orchestrator.settle_volumes().await.unwrap();
    }
    assert_eq!(remains(&world).await, 1);
    // Nobody waits for it any more, and it comes.
    files.has(late);
    world.orchestrator.settle_volumes().await.unwrap();
    assert!(files.volumes().is_empty());
    tokio::time::advance(VERY_LONG).await;
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!(remains(&world).await, 0);
    make(&world, "data").await;
}

#[tokio::test]
async fn a_team_has_no_more_volumes_than_it_may_whichever_processes_make_them() {
    let (mut world, nodes) = fleet(2).await;
    world.configured(|config| config.volumes_max = 3);
    make(&world, "a").await;
    let first = world.orchestrator.clone();
    for seed in 0..40 {
        world.reborn(Some(Fuse::jitter(seed)));
        let second = world.orchestrator.clone();
        let made = tokio::join!(
            try_make(&first, &world, "b"),
            try_make(&second, &world, "c"),
            try_make(&first, &world, "d"),
            try_make(&second, &world, "e"),
        );
        let made: Vec<_> = [made.0, made.1, made.2, made.3].into_iter().flatten().collect();
        assert!(made.len() <= 2, "{made:?}");
        assert_eq!(stored(&world).await.len(), made.len() + 1);
        assert_eq!(on_disks(&world, &nodes), stored(&world).await);
        for volume in made {
            delete(&second, &world, volume.id).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_volume_is_deleted_by_one_process_or_mounted_by_another_and_never_both() {
    let (mut world, nodes) = fleet(2).await;
    let (mut deleted, mut mounted) = (0, 0);
    for seed in 0..300 {
        let volume = make(&world, "data").await;
        world.reborn(Some(Fuse::jitter(seed)));
        let first = world.orchestrator.clone();
        world.reborn(Some(Fuse::jitter(seed + 1000)));
        let second = world.orchestrator.clone();
        let (created, gone) = tokio::join!(
            with(&first, &world, &["data"]),
            delete(&second, &world, volume.id),
        );
        let is_stored = stored(&world).await.contains(&volume.id);
        assert_eq!(is_stored, gone.is_err(), "{seed}");
        if let Ok(granted) = &created {
            assert!(is_stored, "{seed}: it is mounted and deleted");
            assert!(on_disks(&world, &nodes).contains(&volume.id), "{seed}");
            assert!(matches!(gone, Err(VolumeError::InUse { .. })), "{seed}: {gone:?}");
            mounted += 1;
            SandboxManager::kill(&*second, world.team.id, granted.sandbox.id)
                .await
                .unwrap();
        } else {
            assert!(
                nodes.iter().all(|node| node.held().is_empty()),
                "{seed}: it was started"
            );
            assert!(world.store.live().await.unwrap().is_empty(), "{seed}");
        }
        deleted += usize::from(gone.is_ok());
        if is_stored {
            // Whoever was in the way lets it be afterwards.
            delete(&second, &world, volume.id).await.unwrap();
        }
        assert!(
            on_disks(&world, &nodes).is_empty() && remains(&world).await == 0,
            "{seed}"
        );
    }
    assert!(
        deleted > 10 && mounted > 10,
        "{deleted} {mounted}: only one of them was ever first"
    );
}

#[tokio::test(start_paused = true)]
async fn a_death_at_any_step_leaves_a_volume_that_works_or_none_whoever_comes_next() {
    for is_deletion in [false, true] {
        for last_happens in [false, true] {
            for effects in 0..40 {
                let (mut world, nodes) = fleet(2).await;
                let volume = match is_deletion {
                    true => Some(make(&world, "data").await),
                    false => None,
                };
                let fuse = Fuse::new(effects, last_happens);
                world.reborn(Some(fuse.clone()));
                let done = match &volume {
                    Some(volume) => delete(&world.orchestrator, &world, volume.id).await.is_ok(),
                    None => try_make(&world.orchestrator, &world, "data").await.is_ok(),
                };
                world.reborn(None);
                // Whoever is at it is let be, and then taken for dead.
                for wait in [Duration::ZERO, LONG, VERY_LONG] {
                    tokio::time::advance(wait).await;
                    world.orchestrator.settle_volumes().await.unwrap();
                }
                let context = format!("deletion: {is_deletion}, {effects} effects, {last_happens}");
                assert_eq!(remains(&world).await, 0, "{context}");
                assert_eq!(on_disks(&world, &nodes), stored(&world).await, "{context}");
                assert_eq!(world.orchestrator.compare_homes().await.unwrap(), 0, "{context}");
                for left in world.volumes.all_volumes().await.unwrap() {
                    assert_eq!(left.state, VolumeState::Ready, "{context}");
                    delete(&world.orchestrator, &world, left.id)
                        .await
                        .expect(&context);
                }
                make(&world, "data").await;
                if !fuse.is_burnt() {
                    assert!(done, "{context}");
                    break;
                }
                assert!(effects < 39, "{context}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_whose_process_died_is_not_finished_over_a_sandbox_that_has_it() {
    let (world, nodes) = fleet(2).await;
    let mut volume = make(&world, "data").await;
    let id = with(&world.orchestrator, &world, &["data"])
        .await
        .unwrap()
        .sandbox
        .id;
    // As it is where the process died between its mark and its second look.
    volume.state = VolumeState::Doomed;
    world.volumes.update_volume(&volume).await.unwrap();
    let error = with(&world.orchestrator, &world, &["data"]).await.unwrap_err();
    assert!(error.to_string().contains("is being deleted"), "{error}");
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!(
        world.volumes.volume(volume.id).await.unwrap().unwrap().state,
        VolumeState::Doomed
    );
    tokio::time::advance(LONG).await;
    world.orchestrator.settle_volumes().await.unwrap();
    assert_eq!(
        world.volumes.volume(volume.id).await.unwrap().unwrap().state,
        VolumeState::Ready
    );
    with(&world.orchestrator, &world, &["data"]).await.unwrap();
    assert_eq!(on_disks(&world, &nodes), BTreeSet::from([volume.id]));
    assert!(holds(node_of(&nodes, &volume), id));
}

#[tokio::test]
async fn a_drain_waits_for_what_has_a_volume_and_the_volume_stays() {
    let (mut world, _) = fleet(2).await;
    world.configured(|config| config.stow = true);
    let volume = make(&world, "data").await;
    let mut with = request();
    with.volumes = vec![("data".to_owned(), "/data".to_owned())];
    with.lifecycle.on_timeout = OnTimeout::Pause(PauseMode::Filesystem);
    let id = world.try_create(with).await.unwrap().sandbox.id;
    let home = volume.home.unwrap();
    let drain = NodeWish::Draining {
        within: Duration::from_secs(3600),
        kills: false,
    };
    world.orchestrator.set_node(home, drain).await.unwrap();
    assert_eq!(
        world.orchestrator.drain_now().await.unwrap(),
        0,
        "it is not moved"
    );
    let drained = world.orchestrator.drained(home).await.unwrap().unwrap();
    assert_eq!((drained.waiting, drained.is_over), (1, false));
    assert_eq!(world.phase(id).await, "running");
    world.clock.advance(Duration::from_secs(3601));
    world.orchestrator.drain_now().await.unwrap();
    let drained = world.orchestrator.drained(home).await.unwrap().unwrap();
    assert_eq!((drained.left, drained.is_over), (1, true));
    // Volumes are no reason to wait: they stay, and are there while the node is.
    world.kill(id).await.unwrap();
    let drained = world.orchestrator.drained(home).await.unwrap().unwrap();
    assert_eq!((drained.left, drained.is_over), (0, true));
    world
        .orchestrator
        .volume_files()
        .stat(volume.id, "/")
        .await
        .unwrap();
}
