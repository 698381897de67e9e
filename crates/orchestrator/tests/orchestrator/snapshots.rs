//! Snapshots and forks of running sandboxes.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{BuildId, Kind, Memory, Phase, SandboxId, TemplateOrigin, TemplateRef};
use ports::manager::Granted;
use ports::node::OrderOrigin;
use ports::store::contract;
use ports::templates::{SnapshotInfo, SnapshotQuery};
use ports::{ManagerError, NodeError, SandboxManager, TemplateError, TemplateManager};

use crate::world::{Fuse, World, eventually};

const MINUTE: Duration = Duration::from_secs(60);

fn name(text: &str) -> TemplateRef {
    text.parse().unwrap()
}

fn broken() -> NodeError {
    NodeError::Failed {
        step: "cloning the disk",
        kind: Kind::Internal,
        source: "no reflink".into(),
    }
}

async fn snapshot(world: &World, id: SandboxId, named: Option<&str>) -> Result<SnapshotInfo, ManagerError> {
    world
        .orchestrator
        .snapshot(world.team.id, id, named.map(name), true)
        .await
}

async fn fork(
    world: &World,
    id: SandboxId,
    count: u32,
) -> Result<Vec<Result<Granted, ManagerError>>, ManagerError> {
    world.orchestrator.fork(world.team.id, id, count, MINUTE).await
}

async fn snapshots(world: &World, query: SnapshotQuery) -> Vec<(String, BuildId)> {
    let found = world.orchestrator.snapshots(world.team.id, query).await.unwrap();
    found.into_iter().map(|info| (info.tag, info.build)).collect()
}

#[tokio::test]
async fn a_snapshot_is_a_template_and_what_it_was_taken_of_goes_on() {
    let world = World::new().await;
    let source = world
        .created_with(|request| drop(request.env.insert("MINE".to_owned(), "yes".to_owned())))
        .await;
    let before = world.stored(source).await;
    let info = snapshot(&world, source, None).await.unwrap();
    assert_eq!(info.template.origin, TemplateOrigin::Snapshot(source));
    assert_eq!((info.tag.as_str(), info.template.names.len()), ("default", 0));
    let after = world.stored(source).await;
    assert_eq!((after.phase, after.end_at), (before.phase, before.end_at));
    assert!(world.node.has_build(info.build));
    world.assert_agreed().await;
    // It outlives what it was taken of.
    world.kill(source).await.unwrap();
    let id = world
        .created_with(|request| request.template = name(&format!("{}:default", info.template.id)))
        .await;
    let order = world.node.held()[&id].order.clone();
    assert_eq!((order.build, order.origin), (info.build, OrderOrigin::Fresh));
    assert_eq!(order.env["MINE"], "yes");
    assert_eq!(world.stored(id).await.template, info.template.id);
    world.assert_agreed().await;
}

#[tokio::test]
async fn how_much_memory_was_copied_is_told_and_kept() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    for memory in [Memory::None, Memory::Durable] {
        world.node.copy_memory(memory);
        let info = snapshot(&world, id, None).await.unwrap();
        assert_eq!(info.template.builds[&info.build].memory, memory);
        assert_eq!(
            world.templates.get(info.template.id).await.unwrap(),
            Some(info.template)
        );
        let forked = fork(&world, id, 1).await.unwrap().pop().unwrap().unwrap();
        assert_eq!(forked.sandbox.settings.memory, memory);
    }
    let info = world
        .orchestrator
        .snapshot(world.team.id, id, None, false)
        .await
        .unwrap();
    assert_eq!(info.template.builds[&info.build].memory, Memory::None);
}

#[tokio::test]
async fn a_named_snapshot_is_taken_again_under_the_same_name_or_another_tag() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let first = snapshot(&world, id, Some("acme/work")).await.unwrap();
    assert_eq!(first.template.names, ["work"]);
    let tagged = snapshot(&world, id, Some("work:v1")).await.unwrap();
    assert_eq!(
        (tagged.template.id, tagged.tag.as_str()),
        (first.template.id, "v1")
    );
    let second = snapshot(&world, id, Some("work")).await.unwrap();
    let template = world.templates.get(first.template.id).await.unwrap().unwrap();
    assert_eq!(template.tags["default"], second.build);
    assert_eq!(template.tags["v1"], tagged.build);
    assert_eq!((template.builds.len(), template.build_count), (2, 3));
    // Its id is a name for it, as clients see one that has none.
    let bare = snapshot(&world, id, None).await.unwrap();
    let again = snapshot(&world, id, Some(bare.template.id.as_str()))
        .await
        .unwrap();
    assert_eq!(again.template.id, bare.template.id);
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_name_that_cannot_be_given_is_refused_before_anything_is_copied() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let uuid = format!("work:{}", BuildId::random());
    for (named, told) in [
        ("other/work", "namespace 'other' must match your team 'acme'"),
        (uuid.as_str(), "Invalid tag"),
        ("base", "'base' is the name of a template that is built"),
    ] {
        let error = snapshot(&world, id, Some(named)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().starts_with(told), "{error}");
    }
    assert_eq!(world.node.calls("checkpoint"), 0);
}

#[tokio::test]
async fn only_what_runs_is_copied() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    assert!(matches!(
        snapshot(&world, id, None).await,
        Err(ManagerError::NotFound(_))
    ));
    let error = fork(&world, id, 1).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Sandbox '{id}' is paused and cannot be forked; resume it first")
    );
    let unknown = SandboxId::random();
    assert!(matches!(
        snapshot(&world, unknown, None).await,
        Err(ManagerError::NotFound(_))
    ));
    assert!(matches!(
        fork(&world, unknown, 1).await,
        Err(ManagerError::NotFound(_))
    ));
    assert_eq!(world.node.calls("checkpoint"), 0);
}

#[tokio::test]
async fn a_copy_that_fails_leaves_what_runs_and_nothing_else() {
    let failures: [fn() -> NodeError; 5] = [
        broken,
        || NodeError::CannotCheckpoint("it uses io_uring".to_owned()),
        || NodeError::Timeout("the copy"),
        || NodeError::Busy("starting"),
        || NodeError::Unknown,
    ];
    for failure in failures {
        let world = World::new().await;
        let id = world.create().await.sandbox.id;
        let before = world.node.build_ids();
        for is_fork in [false, true] {
            world.node.fail("checkpoint", failure());
            let error = if is_fork {
                fork(&world, id, 2).await.unwrap_err()
            } else {
                snapshot(&world, id, Some("work")).await.unwrap_err()
            };
            if let NodeError::CannotCheckpoint(why) = failure() {
                assert_eq!(
                    error.to_string(),
                    format!("The memory of sandbox {id} cannot be saved: {why}; it runs on")
                );
                assert_eq!(error.code(), Some("sandbox_memory_not_saved"));
            }
        }
        assert_eq!(world.phase(id).await, "running");
        world.assert_agreed().await;
        assert_eq!(world.node.build_ids(), before);
        assert_eq!(world.templates.list(world.team.id).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_is_being_copied_is_usable_and_not_changed_and_can_be_ended() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("checkpoint");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let taking = tokio::spawn(async move { orchestrator.snapshot(team, id, Some(name("work")), true).await });
    gate.reached().await;
    assert_eq!(world.phase(id).await, "snapshotting");
    assert!(world.route(id).await.is_some(), "it is reachable all the time");
    let busy = snapshot(&world, id, None).await.unwrap_err();
    assert_eq!(
        busy.to_string(),
        format!("Sandbox {id} is snapshotting; try again when that is over")
    );
    assert!(matches!(world.pause(id).await, Err(ManagerError::Busy { .. })));
    assert!(matches!(
        fork(&world, id, 1).await,
        Err(ManagerError::Busy { .. })
    ));
    world.kill(id).await.unwrap();
    drop(gate);
    let outcome = taking.await.unwrap();
    assert!(matches!(outcome, Err(ManagerError::NotFound(_))), "{outcome:?}");
    assert_eq!(world.phase(id).await, "gone");
    world.assert_agreed().await;
    assert_eq!(world.templates.list(world.team.id).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_copy_under_way_when_the_process_dies_leaves_a_sandbox_that_runs() {
    let mut world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("checkpoint");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let taking = tokio::spawn(async move { orchestrator.snapshot(team, id, None, true).await });
    gate.reached().await;
    taking.abort();
    world.reborn(None);
    world.settle().await;
    assert_eq!(world.phase(id).await, "running");
    drop(gate);
}

#[tokio::test]
async fn forks_are_the_source_but_for_ids_tokens_and_time() {
    let world = World::new().await;
    let source = world
        .created_with(|request| {
            request.env.insert("MINE".to_owned(), "yes".to_owned());
            request.metadata.insert("team".to_owned(), "red".to_owned());
            request.network.internet = Some(false);
            request.lifecycle = crate::world::wakes();
        })
        .await;
    let before = world.orchestrator.get(world.team.id, source).await.unwrap();
    let forks = fork(&world, source, 3).await.unwrap();
    let forks: Vec<Granted> = forks.into_iter().map(Result::unwrap).collect();
    let mut ids = BTreeSet::from([source]);
    let mut tokens = BTreeSet::from([before.envd_token.clone().unwrap().expose().clone()]);
    for forked in &forks {
        let (copy, original) = (&forked.sandbox, &before.sandbox);
        assert!(ids.insert(copy.id) && tokens.insert(forked.envd_token.clone().unwrap().expose().clone()));
        assert_eq!(copy.metadata, original.metadata);
        assert_eq!((&copy.env, &copy.network), (&original.env, &original.network));
        assert_eq!(
            (copy.template, copy.lifecycle),
            (original.template, original.lifecycle)
        );
        assert_eq!(copy.resources, original.resources);
        assert_ne!(copy.build, original.build);
        assert_eq!(copy.end_at, copy.started_at + MINUTE);
        assert!(world.node.has_build(copy.build));
    }
    assert_eq!(world.node.calls("checkpoint"), 1, "one copy for all");
    let after = world.stored(source).await;
    assert_eq!(
        (after.phase, after.end_at),
        (before.sandbox.phase, before.sandbox.end_at)
    );
    world.assert_agreed().await;
    assert_eq!(
        world.templates.list(world.team.id).await.unwrap().len(),
        1,
        "it is no template"
    );
}

#[tokio::test]
async fn each_fork_fails_by_itself() {
    let world = World::with_team(|team| team.quota.sandboxes = 4).await;
    let source = world.create().await.sandbox.id;
    world.create().await;
    world.node.fail("start", broken());
    let forks = fork(&world, source, 3).await.unwrap();
    let came_up = forks.iter().filter(|fork| fork.is_ok()).count();
    let kinds: Vec<_> = forks
        .iter()
        .filter_map(|fork| fork.as_ref().err().map(ManagerError::kind))
        .collect();
    // One did not start; which gives its share back, so that the third may or may not have had one.
    assert!(came_up >= 1 && kinds.contains(&Kind::Internal), "{kinds:?}");
    assert!(
        kinds
            .iter()
            .all(|kind| [Kind::Internal, Kind::Exhausted].contains(kind)),
        "{kinds:?}"
    );
    world.assert_agreed().await;
    let too_many = fork(&world, source, 4).await.unwrap_err();
    assert_eq!(
        (too_many.kind(), too_many.to_string().as_str()),
        (
            Kind::Invalid,
            "Count must be lower than the maximum number of concurrent sandboxes (4)"
        )
    );
    let too_long = world
        .orchestrator
        .fork(world.team.id, source, 1, Duration::from_secs(u64::from(u32::MAX)))
        .await;
    assert_eq!(too_long.unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_source_that_is_killed_while_its_forks_come_up_takes_none_of_them_with_it() {
    let world = World::new().await;
    let source = world.create().await.sandbox.id;
    let gate = world.node.hold_back("start");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let forking = tokio::spawn(async move { orchestrator.fork(team, source, 2, MINUTE).await });
    gate.reached().await;
    world.kill(source).await.unwrap();
    drop(gate);
    let forks = forking.await.unwrap().unwrap();
    assert!(forks.iter().all(Result::is_ok));
    world.assert_agreed().await;
}

#[tokio::test]
async fn snapshots_are_listed_newest_first_with_filters() {
    let world = World::new().await;
    let (one, two) = (world.create().await.sandbox.id, world.create().await.sandbox.id);
    let mut taken = Vec::new();
    for (id, named) in [(one, None), (two, Some("work")), (two, Some("work:v1"))] {
        world.clock.advance(Duration::from_secs(1));
        taken.push(snapshot(&world, id, named).await.unwrap());
    }
    let all = snapshots(&world, SnapshotQuery::default()).await;
    let newest_first: Vec<_> = taken
        .iter()
        .rev()
        .map(|info| (info.tag.clone(), info.build))
        .collect();
    assert_eq!(all, newest_first);
    let of = async |sandbox, named: Option<&str>| {
        let query = SnapshotQuery {
            sandbox,
            name: named.map(name),
        };
        snapshots(&world, query).await.len()
    };
    assert_eq!(of(Some(one), None).await, 1);
    assert_eq!(of(Some(two), None).await, 2);
    assert_eq!(of(Some(SandboxId::random()), None).await, 0);
    assert_eq!(of(None, Some("work")).await, 2);
    assert_eq!(of(None, Some("acme/work:v1")).await, 1);
    assert_eq!(of(None, Some(taken[0].template.id.as_str())).await, 1);
    assert_eq!(of(Some(one), Some("work")).await, 0);
    assert_eq!(of(None, Some("nope")).await, 0);
    let foreign = SnapshotQuery {
        sandbox: None,
        name: Some(name("other/work")),
    };
    let error = world
        .orchestrator
        .snapshots(world.team.id, foreign)
        .await
        .unwrap_err();
    assert!(matches!(error, TemplateError::Namespace { .. }));
    let others = world
        .orchestrator
        .snapshots(crate::world::stranger(), SnapshotQuery::default())
        .await;
    assert!(others.unwrap().is_empty());
}

#[tokio::test]
async fn a_snapshot_is_deleted_by_what_it_is_called_and_only_once() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let delete = async |text: &str| world.orchestrator.delete(world.team.id, &name(text)).await;
    let bare = snapshot(&world, id, None).await.unwrap().template.id;
    delete(&format!("{bare}:default")).await.unwrap();
    assert_eq!(world.templates.get(bare).await.unwrap(), None);
    let again = delete(&format!("{bare}:default")).await.unwrap_err();
    assert!(matches!(again, TemplateError::NotFound(_)), "{again}");

    let named = snapshot(&world, id, Some("work")).await.unwrap().template.id;
    snapshot(&world, id, Some("work:v1")).await.unwrap();
    delete("acme/work:default").await.unwrap();
    let left = world.templates.get(named).await.unwrap().unwrap();
    assert_eq!(left.tags.keys().collect::<Vec<_>>(), ["v1"]);
    let gone = delete("acme/work:v2").await.unwrap_err();
    assert_eq!(gone.kind(), Kind::NotFound);
    delete("acme/work:v1").await.unwrap();
    assert_eq!(world.templates.get(named).await.unwrap(), None);
    assert_eq!(delete("acme/work:v1").await.unwrap_err().kind(), Kind::NotFound);
}

/// Lets the process die at every step of a removal: what is left goes when it is asked for again by the same name.
#[tokio::test]
async fn a_removal_of_a_snapshot_that_is_cut_short_leaves_nothing_that_nobody_finds() {
    for last_happens in [false, true] {
        for effects in 0.. {
            let mut world = World::in_memory().await;
            let id = world.create().await.sandbox.id;
            let snapshot = snapshot(&world, id, None).await.unwrap().template.id;
            let (called, team) = (name(&format!("{snapshot}:default")), world.team.id);
            let fuse = Fuse::new(effects, last_happens);
            world.reborn(Some(fuse.clone()));
            let _cut_short = world.orchestrator.delete(team, &called).await;
            world.reborn(None);
            let context = format!("dead after {effects} effects (last happens: {last_happens})");
            match world.orchestrator.delete(team, &called).await {
                Ok(()) | Err(TemplateError::NotFound(_)) => {}
                Err(error) => panic!("{context}: {error}"),
            }
            assert_eq!(world.templates.get(snapshot).await.unwrap(), None, "{context}");
            if !fuse.is_burnt() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_sandboxes_began_as_is_not_deleted() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    snapshot(&world, id, Some("work")).await.unwrap();
    let v1 = snapshot(&world, id, Some("work:v1")).await.unwrap();
    let user = world
        .created_with(|request| request.template = name("work:v1"))
        .await;
    let delete = async |text: &str| world.orchestrator.delete(world.team.id, &name(text)).await;
    let told = async |text: &str| delete(text).await.unwrap_err().to_string();
    let text = |state: &str| {
        let id = v1.template.id;
        format!("cannot delete template '{id}' because there are {state} sandboxes using it")
    };
    assert_eq!(told("work:v1").await, text("running"));
    world.pause(user).await.unwrap();
    assert_eq!(told("work:v1").await, text("paused"));
    // It is of the other one alone.
    delete("work").await.unwrap();
    world.kill(user).await.unwrap();
    delete("work:v1").await.unwrap();
    let error = world
        .orchestrator
        .delete(contract::team("x").id, &name("base"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn what_its_node_began_to_pause_while_it_was_copied_is_paused() {
    let world = World::new().await;
    let _running = world.run();
    let id = world.create().await.sandbox.id;
    eventually(async || world.node.is_heard()).await;
    let gate = world.node.hold_back("checkpoint");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let taking = tokio::spawn(async move { orchestrator.snapshot(team, id, None, true).await });
    gate.reached().await;
    let execution = world.stored(id).await.phase.seat().unwrap().execution;
    let (into, mode) = (BuildId::random(), model::PauseMode::Full);
    world
        .node
        .tell(ports::NodeEvent::Pausing(id, execution, into, mode));
    world.until(id, "pausing").await;
    let outcome = ports::node::PauseOutcome {
        mode,
        memory: Memory::Durable,
        envd_unresponsive: false,
    };
    world.node.meddle(|held| {
        let held = held.get_mut(&id).unwrap();
        held.state = ports::node::HeldState::Paused(into, mode);
        held.pause = Some(outcome);
    });
    drop(gate);
    taking.await.unwrap().unwrap_err();
    world
        .node
        .tell(ports::NodeEvent::Paused(id, execution, into, outcome));
    world.until(id, "paused").await;
    let stored = world.stored(id).await;
    assert!(matches!(stored.phase, Phase::Paused { snapshot, .. } if snapshot == into));
    eventually(async || world.stored(id).await.kept == Memory::Durable).await;
}
