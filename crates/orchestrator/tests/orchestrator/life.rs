//! What owners do with sandboxes that are there.

use std::sync::Arc;
use std::time::Duration;

use model::{BuildId, KillReason, Kind, NetworkPolicy, PauseMode, Phase, SandboxId, State, TeamId};
use orchestrator::Orchestrator;
use ports::manager::Connected;
use ports::node::{HeldState, OrderOrigin};
use ports::store::{SandboxQuery, contract};
use ports::{Bus, LogQuery, ManagerError, NodeError, SandboxManager};

use crate::world::{World, stranger, wakes};
use tokio::task::JoinHandle;

const MINUTE: Duration = Duration::from_secs(60);
const FULL: PauseMode = PauseMode::Full;
const DISK: PauseMode = PauseMode::Filesystem;

fn broken() -> NodeError {
    NodeError::Failed {
        step: "thawing",
        kind: Kind::Internal,
        source: "frozen solid".into(),
    }
}

/// An operation beside the test.
fn spawn<T: Send + 'static, F>(
    world: &World,
    act: impl FnOnce(Arc<Orchestrator>, TeamId) -> F,
) -> JoinHandle<Result<T, ManagerError>>
where
    F: Future<Output = Result<T, ManagerError>> + Send + 'static,
{
    tokio::spawn(act(world.orchestrator.clone(), world.team.id))
}

#[tokio::test]
async fn a_paused_sandbox_is_unreachable_and_a_resume_brings_the_same_one_back() {
    let world = World::new().await;
    let mut happenings = world.bus.subscribe();
    let before = world.create().await;
    let id = before.sandbox.id;
    world.pause(id).await.unwrap();
    assert!(world.route(id).await.is_none());
    let shown = world.orchestrator.get(world.team.id, id).await.unwrap();
    assert_eq!(shown.sandbox.phase.state(), Some(State::Paused));
    world.assert_agreed().await;
    world.clock.advance(MINUTE);
    let Connected::Resumed(after) = world
        .orchestrator
        .connect(world.team.id, id, MINUTE, FULL)
        .await
        .unwrap()
    else {
        panic!("it was paused")
    };
    assert_eq!(after.envd_token, before.envd_token);
    assert_ne!(after.sandbox.phase.seat(), before.sandbox.phase.seat());
    assert!(after.sandbox.started_at > before.sandbox.started_at);
    assert_eq!(after.sandbox.end_at, after.sandbox.started_at + MINUTE);
    assert_eq!(after.sandbox.template, before.sandbox.template);
    world.assert_agreed().await;
    for what in ["sandbox.created", "sandbox.paused", "sandbox.resumed"] {
        assert_eq!(happenings.recv().await.unwrap().what, what);
    }
}

#[tokio::test]
async fn a_failed_resume_keeps_the_pause() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    let before = world.stored(id).await;
    world.node.fail("start", broken());
    world
        .orchestrator
        .connect(world.team.id, id, MINUTE, FULL)
        .await
        .unwrap_err();
    let after = world.stored(id).await;
    assert_eq!(
        (after.phase, after.started_at, after.end_at),
        (before.phase, before.started_at, before.end_at)
    );
    world.assert_agreed().await;
    world.node.fail("start", NodeError::MemoryLost);
    let error = world
        .orchestrator
        .connect(world.team.id, id, MINUTE, FULL)
        .await
        .unwrap_err();
    assert!(matches!(error, ManagerError::MemoryLost(_)));
    assert_eq!(error.kind(), Kind::Conflict);
    world
        .node
        .fail("start", NodeError::MemoryUnusable("it was saved by another CRIU"));
    let error = world
        .orchestrator
        .connect(world.team.id, id, MINUTE, FULL)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (Kind::Conflict, Some("sandbox_memory_lost"))
    );
    let told = error.to_string();
    assert!(
        told.contains("cannot be used any more: it was saved by another CRIU") && !told.contains("restart"),
        "{told}"
    );
    world
        .orchestrator
        .connect(world.team.id, id, MINUTE, DISK)
        .await
        .unwrap();
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_pause_of_the_disk_alone_is_never_resumed_with_memory() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world
        .orchestrator
        .pause(world.team.id, id, DISK, false)
        .await
        .unwrap();
    world
        .orchestrator
        .resume(world.team.id, id, MINUTE, FULL, None)
        .await
        .unwrap();
    assert!(matches!(
        world.node.held()[&id].order.origin,
        OrderOrigin::Paused(_, PauseMode::Filesystem)
    ));
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_failed_pause_leaves_it_running_and_reachable() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("pause");
    let pause = spawn(&world, move |orchestrator, team| async move {
        orchestrator.pause(team, id, FULL, false).await
    });
    gate.reached().await;
    assert!(world.route(id).await.is_none(), "unreachable before it is paused");
    assert_eq!(world.phase(id).await, "pausing");
    world.node.fail("pause", broken());
    drop(gate);
    pause.await.unwrap().unwrap_err();
    assert_eq!(world.phase(id).await, "running");
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_pause_without_a_clear_answer_is_settled_by_what_the_node_holds() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.fail("pause", NodeError::Timeout("the pause"));
    let error = world.pause(id).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    world.assert_agreed().await;
    world.node.meddle(std::collections::BTreeMap::clear);
    let ended = world.pause(id).await;
    assert!(matches!(ended, Err(ManagerError::NotFound(_))), "{ended:?}");
    assert_eq!(
        world.stored(id).await.phase,
        Phase::Gone {
            why: KillReason::NodeLost
        }
    );
    world.assert_agreed().await;
}

#[tokio::test]
async fn what_is_paused_or_on_its_way_is_not_paused_again() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("pause");
    let pause = spawn(&world, move |orchestrator, team| async move {
        orchestrator.pause(team, id, FULL, false).await
    });
    gate.reached().await;
    let busy = |outcome: Result<(), ManagerError>| {
        matches!(outcome, Err(ManagerError::Busy { state: "pausing", .. }))
    };
    assert!(busy(world.pause(id).await));
    assert!(busy(
        world.orchestrator.set_timeout(world.team.id, id, MINUTE).await
    ));
    assert!(busy(
        world
            .orchestrator
            .set_network(world.team.id, id, NetworkPolicy::default())
            .await
    ));
    assert!(busy(
        world.orchestrator.restart(world.team.id, id).await.map(drop)
    ));
    drop(gate);
    pause.await.unwrap().unwrap();
    assert!(matches!(
        world.pause(id).await,
        Err(ManagerError::AlreadyPaused(_))
    ));
    assert_eq!(world.node.calls("pause"), 1);
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_not_paused_where_that_matters_and_not_resumed_with_memory() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.wedge_guest();
    for (mode, require_healthy) in [(FULL, true), (DISK, false)] {
        let error = world
            .orchestrator
            .pause(world.team.id, id, mode, require_healthy)
            .await
            .unwrap_err();
        assert!(matches!(error, ManagerError::GuestUnhealthy(_)));
        assert_eq!(world.phase(id).await, "running");
    }
    world.pause(id).await.unwrap();
    assert!(world.stored(id).await.envd_unresponsive_at_pause);
    let error = world
        .orchestrator
        .connect(world.team.id, id, MINUTE, FULL)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("sandbox_snapshot_guest_agent_unresponsive"));
    world
        .orchestrator
        .connect(world.team.id, id, MINUTE, DISK)
        .await
        .unwrap();
    assert!(!world.stored(id).await.envd_unresponsive_at_pause);
}

#[tokio::test]
async fn a_connect_extends_and_never_shortens() {
    let world = World::new().await;
    let created = world.create().await.sandbox;
    let connect = async |seconds| {
        let connect =
            world
                .orchestrator
                .connect(world.team.id, created.id, Duration::from_secs(seconds), FULL);
        match connect.await.unwrap() {
            Connected::Running(granted) => granted.sandbox,
            Connected::Resumed(_) => panic!("it was running"),
        }
    };
    assert_eq!(connect(10).await.end_at, created.end_at);
    let extended = connect(900).await;
    assert!(extended.end_at > created.end_at);
    assert_eq!(extended.timeout_seconds, 900);
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_connect_waits_for_a_pause_and_then_resumes() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("pause");
    let pause = spawn(&world, move |orchestrator, team| async move {
        orchestrator.pause(team, id, FULL, false).await
    });
    gate.reached().await;
    let connect = spawn(&world, move |orchestrator, team| async move {
        orchestrator.connect(team, id, MINUTE, FULL).await
    });
    drop(gate);
    pause.await.unwrap().unwrap();
    assert!(matches!(connect.await.unwrap().unwrap(), Connected::Resumed(_)));
    world.assert_agreed().await;
}

#[tokio::test]
async fn many_connects_resume_once() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    let connects = (0..10).map(|_| world.orchestrator.connect(world.team.id, id, MINUTE, FULL));
    let outcomes = futures_util::future::join_all(connects).await;
    let resumed = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Ok(Connected::Resumed(_))))
        .count();
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!((resumed, world.node.calls("start")), (1, 2));
}

#[tokio::test]
async fn a_resume_of_what_runs_is_refused() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let error = world
        .orchestrator
        .resume(world.team.id, id, MINUTE, FULL, None)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), format!("Sandbox {id} is already running"));
}

#[tokio::test]
async fn a_restart_keeps_id_tokens_and_time_and_changes_the_execution() {
    let world = World::new().await;
    let before = world.create().await;
    let id = before.sandbox.id;
    let after = world.orchestrator.restart(world.team.id, id).await.unwrap();
    assert_eq!(after.envd_token, before.envd_token);
    assert_eq!(after.sandbox.end_at, before.sandbox.end_at);
    let old = before.sandbox.phase.seat().unwrap().execution;
    assert_eq!(world.node.held()[&id].order.origin, OrderOrigin::Reboot(old));
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_restart_that_meets_a_pause_of_its_node_keeps_what_was_paused() {
    for (held, phase) in [
        (HeldState::Paused as fn(BuildId, PauseMode) -> HeldState, "paused"),
        (HeldState::Pausing, "starting"),
    ] {
        let world = World::new().await;
        let id = world.create().await.sandbox.id;
        let gate = world.node.hold_back("start");
        let restart = spawn(&world, move |orchestrator, team| async move {
            orchestrator.restart(team, id).await
        });
        gate.reached().await;
        let into = BuildId::random();
        world.node.set_state(id, held(into, FULL));
        drop(gate);
        let error = restart.await.unwrap().unwrap_err();
        assert!(matches!(error, ManagerError::Busy { .. }), "{error}");
        assert_eq!(world.phase(id).await, phase);
        world.node.set_state(id, HeldState::Paused(into, FULL));
        world.settle().await;
        let kept = world.stored(id).await.phase;
        assert!(
            matches!(kept, Phase::Paused { snapshot, .. } if snapshot == into),
            "{kept:?}"
        );
        world
            .orchestrator
            .connect(world.team.id, id, MINUTE, FULL)
            .await
            .unwrap();
        world.assert_agreed().await;
    }
}

#[tokio::test]
async fn a_restart_that_was_not_begun_leaves_what_runs() {
    for error in [NodeError::Busy("being changed"), NodeError::Timeout("the start")] {
        let world = World::with_team(|team| team.quota.sandboxes = 1).await;
        let id = world.create().await.sandbox.id;
        let before = world.stored(id).await;
        world.node.fail("start", error);
        world.orchestrator.restart(world.team.id, id).await.unwrap_err();
        let after = world.stored(id).await;
        assert_eq!((after.phase, after.end_at), (before.phase, before.end_at));
        world.assert_agreed().await;
        let more = world.try_create(crate::world::request()).await;
        assert_eq!(more.unwrap_err().kind(), Kind::Exhausted);
    }
}

#[tokio::test]
async fn a_resume_sets_whether_it_is_paused_at_its_end_and_nothing_else() {
    let world = World::new().await;
    let lifecycle = wakes();
    let id = world.created_with(|r| r.lifecycle = lifecycle).await;
    for auto_pause in [None, Some(true), Some(false)] {
        world.pause(id).await.unwrap();
        world
            .orchestrator
            .resume(world.team.id, id, MINUTE, FULL, auto_pause)
            .await
            .unwrap();
        let expected = lifecycle.with_auto_pause(auto_pause != Some(false));
        assert_eq!(world.stored(id).await.lifecycle, expected);
        assert_eq!(world.node.held()[&id].order.lifecycle, expected);
    }
}

#[tokio::test]
async fn a_failed_restart_keeps_the_disk() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.fail("start", broken());
    world.orchestrator.restart(world.team.id, id).await.unwrap_err();
    assert_eq!(world.phase(id).await, "paused");
    world.assert_agreed().await;
    world
        .orchestrator
        .connect(world.team.id, id, MINUTE, FULL)
        .await
        .unwrap();
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_kill_makes_unreachable_before_its_node_is_asked() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("kill");
    let kill = spawn(&world, move |orchestrator, team| async move {
        orchestrator.kill(team, id).await
    });
    gate.reached().await;
    assert!(world.route(id).await.is_none());
    assert_eq!(world.phase(id).await, "killing");
    let seen = world.orchestrator.get(world.team.id, id).await;
    assert!(matches!(seen, Err(ManagerError::NotFound(_))));
    let connected = world.orchestrator.connect(world.team.id, id, MINUTE, FULL).await;
    assert!(matches!(
        connected,
        Err(ManagerError::Busy { state: "killing", .. })
    ));
    drop(gate);
    kill.await.unwrap().unwrap();
    assert_eq!(
        world.stored(id).await.phase,
        Phase::Gone {
            why: KillReason::Requested
        }
    );
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_kill_ends_a_paused_one_and_a_second_kill_finds_nothing() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    world.kill(id).await.unwrap();
    let error = world.kill(id).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Sandbox \"{id}\" doesn't exist or you don't have access to it")
    );
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_resume_and_wins() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    let gate = world.node.hold_back("start");
    let resume = spawn(&world, move |orchestrator, team| async move {
        orchestrator.resume(team, id, MINUTE, FULL, None).await
    });
    gate.reached().await;
    let mut late = world.node.held()[&id].clone();
    late.order.execution = world.stored(id).await.phase.seat().unwrap().execution;
    late.state = HeldState::Running;
    world.kill(id).await.unwrap();
    assert_eq!(world.phase(id).await, "gone");
    // What comes up after the kill is ended too.
    world.node.meddle(|held| drop(held.insert(id, late)));
    drop(gate);
    assert!(resume.await.unwrap().is_err());
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_kill_wins_over_a_pause_under_way() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("pause");
    let pause = spawn(&world, move |orchestrator, team| async move {
        orchestrator.pause(team, id, FULL, false).await
    });
    gate.reached().await;
    world.kill(id).await.unwrap();
    drop(gate);
    assert!(pause.await.unwrap().is_err());
    assert_eq!(
        world.stored(id).await.phase,
        Phase::Gone {
            why: KillReason::Requested
        }
    );
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_timeout_is_set_from_now_and_may_shorten() {
    let world = World::with_team(|team| team.quota.life_hours = 1).await;
    let id = world.create().await.sandbox.id;
    let end = async || world.stored(id).await.end_at;
    let started = world.stored(id).await.started_at;
    world
        .orchestrator
        .set_timeout(world.team.id, id, MINUTE)
        .await
        .unwrap();
    assert_eq!(end().await, started + MINUTE);
    world
        .orchestrator
        .refresh(world.team.id, id, Duration::from_secs(15))
        .await
        .unwrap();
    assert_eq!(end().await, started + MINUTE);
    world
        .orchestrator
        .refresh(world.team.id, id, 2 * MINUTE)
        .await
        .unwrap();
    assert_eq!(end().await, started + 2 * MINUTE);
    world.clock.advance(MINUTE);
    world
        .orchestrator
        .set_timeout(world.team.id, id, 60 * MINUTE)
        .await
        .unwrap();
    assert_eq!(end().await, started + 60 * MINUTE);
    let error = world
        .orchestrator
        .set_timeout(world.team.id, id, 61 * MINUTE)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::Invalid, "Max instance length exceeded")
    );
    world.assert_agreed().await;
    world.pause(id).await.unwrap();
    let paused = world.orchestrator.set_timeout(world.team.id, id, MINUTE).await;
    assert!(matches!(paused, Err(ManagerError::NotFound(_))));
}

#[tokio::test]
async fn a_setting_that_its_node_missed_is_told_again() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.fail("set_deadline", NodeError::Timeout("the word"));
    world
        .orchestrator
        .set_timeout(world.team.id, id, MINUTE)
        .await
        .unwrap_err();
    world.node.fail("set_network", broken());
    let closed = NetworkPolicy {
        internet: Some(false),
        ..NetworkPolicy::default()
    };
    world
        .orchestrator
        .set_network(world.team.id, id, closed.clone())
        .await
        .unwrap_err();
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.node.held()[&id].order.network, closed);
    world.assert_agreed().await;
}

#[tokio::test]
async fn new_rules_reach_node_and_route_and_keep_what_is_not_given() {
    let world = World::new().await;
    let id = world
        .created_with(|request| request.network.internet = Some(false))
        .await;
    let policy = NetworkPolicy {
        allow: vec!["1.1.1.1".parse().unwrap()],
        mask_host: Some("localhost:${PORT}".parse().unwrap()),
        public_traffic: Some(false),
        ..NetworkPolicy::default()
    };
    world
        .orchestrator
        .set_network(world.team.id, id, policy.clone())
        .await
        .unwrap();
    assert_eq!(
        world.stored(id).await.network,
        NetworkPolicy {
            internet: Some(false),
            ..policy.clone()
        }
    );
    let route = world.route(id).await.unwrap();
    assert_eq!(route.mask_host, policy.mask_host);
    assert!(route.traffic_token.is_some());
    world.assert_agreed().await;
}

#[tokio::test]
async fn another_teams_sandbox_is_an_unknown_sandbox() {
    let world = World::new().await;
    let running = world.create().await.sandbox.id;
    let (it, they) = (&world.orchestrator, stranger());
    for id in [running, SandboxId::random()] {
        let unknown = |outcome: Result<(), ManagerError>| {
            assert!(matches!(outcome, Err(ManagerError::NotFound(unknown)) if unknown == id));
        };
        let query = LogQuery {
            from: None,
            limit: 10,
            forward: true,
            level: None,
            search: None,
        };
        unknown(it.get(they, id).await.map(drop));
        unknown(it.connect(they, id, MINUTE, FULL).await.map(drop));
        unknown(it.resume(they, id, MINUTE, FULL, None).await.map(drop));
        unknown(it.restart(they, id).await.map(drop));
        unknown(it.pause(they, id, FULL, false).await);
        unknown(it.kill(they, id).await);
        unknown(it.set_timeout(they, id, MINUTE).await);
        unknown(it.refresh(they, id, MINUTE).await);
        unknown(it.set_network(they, id, NetworkPolicy::default()).await);
        unknown(it.metrics(they, id, None, None).await.map(drop));
        unknown(it.logs(they, id, query).await.map(drop));
    }
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_list_pages_and_counts_what_runs() {
    let world = World::new().await;
    for _ in 0..5 {
        world.create().await;
        world.clock.advance(Duration::from_millis(1));
    }
    let paused = world.create().await.sandbox.id;
    world.pause(paused).await.unwrap();
    let query = SandboxQuery {
        limit: 4,
        ..contract::everything(world.team.id)
    };
    let first = world.orchestrator.list(query.clone()).await.unwrap();
    assert_eq!((first.sandboxes.len(), first.total_running), (4, Some(5)));
    let rest = world
        .orchestrator
        .list(SandboxQuery {
            after: first.next,
            ..query.clone()
        })
        .await
        .unwrap();
    assert_eq!((rest.sandboxes.len(), rest.next), (2, None));
    let states = vec![State::Paused];
    let only_paused = world
        .orchestrator
        .list(SandboxQuery { states, ..query })
        .await
        .unwrap();
    assert_eq!(
        (only_paused.sandboxes.len(), only_paused.total_running),
        (1, None)
    );
}
