//! What nodes tell, and what traffic wakes.

use std::sync::Arc;
use std::time::Duration;

use model::{BuildId, ExecutionId, KillReason, Kind, PauseMode, Phase, SandboxId};
use ports::guest::ENVD_PORT;
use ports::manager::Connected;
use ports::node::{HeldState, PauseOutcome};
use ports::{ManagerError, NodeError, NodeEvent, Presented, SandboxManager, Wake, WakeRefused};

use crate::world::{World, eventually, wakes};

const FULL: PauseMode = PauseMode::Full;

/// A world that hears its node.
async fn hearing() -> (World, tokio_util::sync::DropGuard) {
    let world = World::new().await;
    let running = world.run();
    eventually(async || world.node.is_heard()).await;
    (world, running)
}

async fn execution(world: &World, id: SandboxId) -> ExecutionId {
    world.stored(id).await.phase.seat().unwrap().execution
}

#[tokio::test]
async fn one_that_ended_by_itself_is_gone_with_its_reason() {
    let (world, _running) = hearing().await;
    let id = world.create().await.sandbox.id;
    let execution = execution(&world, id).await;
    world.node.meddle(std::collections::BTreeMap::clear);
    world
        .node
        .tell(NodeEvent::Ended(id, execution, KillReason::Timeout));
    world.until(id, "gone").await;
    assert_eq!(
        world.stored(id).await.phase,
        Phase::Gone {
            why: KillReason::Timeout
        }
    );
    eventually(async || world.route(id).await.is_none()).await;
    world.assert_agreed().await;
}

#[tokio::test]
async fn one_that_is_about_to_end_is_unroutable_and_gone_when_it_has_ended() {
    let (world, _running) = hearing().await;
    let id = world.create().await.sandbox.id;
    let execution = execution(&world, id).await;
    world
        .node
        .tell(NodeEvent::Ending(id, execution, KillReason::Timeout));
    eventually(async || world.route(id).await.is_none()).await;
    world.until(id, "killing").await;
    world.node.meddle(std::collections::BTreeMap::clear);
    world
        .node
        .tell(NodeEvent::Ended(id, execution, KillReason::Timeout));
    world.until(id, "gone").await;
    assert_eq!(
        world.stored(id).await.phase,
        Phase::Gone {
            why: KillReason::Timeout
        }
    );
    assert!(world.route(id).await.is_none());
    world.assert_agreed().await;
}

#[tokio::test]
async fn news_of_an_old_execution_is_no_news() {
    let (world, _running) = hearing().await;
    let (id, marker) = (world.create().await.sandbox.id, world.create().await.sandbox.id);
    let (old, into) = (ExecutionId::random(), BuildId::random());
    let outcome = PauseOutcome {
        memory: model::Memory::Volatile,
        mode: FULL,
        envd_unresponsive: false,
    };
    world.node.tell(NodeEvent::Ending(id, old, KillReason::Timeout));
    world.node.tell(NodeEvent::Ended(id, old, KillReason::Timeout));
    world.node.tell(NodeEvent::Pausing(id, old, into, FULL));
    world.node.tell(NodeEvent::Paused(id, old, into, outcome));
    world.node.tell(NodeEvent::PauseFailed(id, old, into));
    world
        .node
        .tell(NodeEvent::Ended(SandboxId::random(), old, KillReason::Timeout));
    // Events are heard in order: when the last is heard, all are.
    let last = execution(&world, marker).await;
    world.node.meddle(|held| drop(held.remove(&marker)));
    world
        .node
        .tell(NodeEvent::Ended(marker, last, KillReason::Crashed));
    world.until(marker, "gone").await;
    assert_eq!(world.phase(id).await, "running");
    eventually(async || world.route(marker).await.is_none()).await;
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_pause_at_the_end_of_its_time_is_followed() {
    let (world, _running) = hearing().await;
    let id = world.created_with(|request| request.lifecycle = wakes()).await;
    let (execution, into) = (execution(&world, id).await, BuildId::random());
    world.node.set_state(id, HeldState::Pausing(into, FULL));
    world.node.tell(NodeEvent::Pausing(id, execution, into, FULL));
    world.until(id, "pausing").await;
    eventually(async || world.route(id).await.is_none()).await;
    world.node.set_state(id, HeldState::Paused(into, FULL));
    let outcome = PauseOutcome {
        memory: model::Memory::Volatile,
        mode: FULL,
        envd_unresponsive: true,
    };
    world.node.tell(NodeEvent::Paused(id, execution, into, outcome));
    world.until(id, "paused").await;
    assert!(world.stored(id).await.envd_unresponsive_at_pause);
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_pause_that_failed_at_the_end_of_its_time_leaves_it_running_a_little_longer() {
    let (world, _running) = hearing().await;
    let id = world.created_with(|request| request.lifecycle = wakes()).await;
    let (execution, into) = (execution(&world, id).await, BuildId::random());
    let end_at = world.stored(id).await.end_at;
    world.clock.advance(Duration::from_secs(300));
    world.node.tell(NodeEvent::Pausing(id, execution, into, FULL));
    world.until(id, "pausing").await;
    world.node.tell(NodeEvent::PauseFailed(id, execution, into));
    world.until(id, "running").await;
    assert_eq!(world.stored(id).await.end_at, end_at + Duration::from_secs(60));
    assert!(world.route(id).await.is_some());
}

#[tokio::test]
async fn the_first_word_of_a_pause_may_be_lost() {
    let (world, _running) = hearing().await;
    let id = world.created_with(|request| request.lifecycle = wakes()).await;
    let (execution, into) = (execution(&world, id).await, BuildId::random());
    world.node.set_state(id, HeldState::Paused(into, FULL));
    let outcome = PauseOutcome {
        memory: model::Memory::Volatile,
        mode: FULL,
        envd_unresponsive: false,
    };
    world.node.tell(NodeEvent::Paused(id, execution, into, outcome));
    world.until(id, "paused").await;
    eventually(async || world.route(id).await.is_none()).await;
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_connect_at_the_end_of_its_time_meets_the_pause_and_resumes() {
    let (world, _running) = hearing().await;
    for silent in [false, true] {
        let id = world.created_with(|request| request.lifecycle = wakes()).await;
        let (execution, into) = (execution(&world, id).await, BuildId::random());
        let gate = world.node.hold_back("set_deadline");
        let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
        let timeout = Duration::from_secs(900);
        let connect = tokio::spawn(async move { orchestrator.connect(team, id, timeout, FULL).await });
        gate.reached().await;
        world.node.set_state(id, HeldState::Paused(into, FULL));
        drop(gate);
        if !silent {
            let outcome = PauseOutcome {
                memory: model::Memory::Volatile,
                mode: FULL,
                envd_unresponsive: false,
            };
            world.node.tell(NodeEvent::Pausing(id, execution, into, FULL));
            world.node.tell(NodeEvent::Paused(id, execution, into, outcome));
        }
        assert!(matches!(connect.await.unwrap().unwrap(), Connected::Resumed(_)));
        world.assert_agreed().await;
    }
}

#[tokio::test]
async fn a_setting_for_what_has_just_ended_finds_nothing() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.meddle(std::collections::BTreeMap::clear);
    let set = world
        .orchestrator
        .set_timeout(world.team.id, id, Duration::from_secs(60))
        .await;
    assert!(matches!(set, Err(ManagerError::NotFound(_))));
    let connect = world
        .orchestrator
        .connect(world.team.id, id, Duration::from_secs(60), FULL)
        .await;
    assert!(matches!(connect, Err(ManagerError::NotFound(_))));
    world.assert_agreed().await;
}

fn to(port: u16, token: Option<&str>) -> Presented {
    let token = token.map(str::to_owned);
    Presented {
        port,
        envd_token: token.clone(),
        traffic_token: token,
    }
}

#[tokio::test]
async fn traffic_wakes_a_sandbox_that_may_be_woken() {
    let world = World::new().await;
    let id = world
        .created_with(|request| {
            request.lifecycle = wakes();
            request.timeout = Duration::from_secs(30);
        })
        .await;
    world.orchestrator.wake(id, to(80, None)).await.unwrap();
    assert_eq!(world.node.calls("start"), 1, "it has a route");
    world.pause(id).await.unwrap();
    let wakes = (0..10).map(|_| world.orchestrator.wake(id, to(80, None)));
    assert!(
        futures_util::future::join_all(wakes)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(world.node.calls("start"), 2, "many wake it once");
    assert!(world.route(id).await.is_some());
    let sandbox = world.stored(id).await;
    // At least five minutes; the next wake begins from what the user asked for again.
    assert_eq!(sandbox.end_at, sandbox.started_at + Duration::from_secs(300));
    assert_eq!(sandbox.timeout_seconds, 30);
    world.assert_agreed().await;
}

#[tokio::test]
async fn traffic_wakes_nothing_else() {
    let world = World::new().await;
    let sleeper = world.create().await.sandbox.id;
    world.pause(sleeper).await.unwrap();
    let disk = world.created_with(|request| request.lifecycle = wakes()).await;
    world
        .orchestrator
        .pause(world.team.id, disk, PauseMode::Filesystem, false)
        .await
        .unwrap();
    let killed = world.created_with(|request| request.lifecycle = wakes()).await;
    world.kill(killed).await.unwrap();
    for id in [sleeper, disk, killed, SandboxId::random()] {
        assert_eq!(
            world.orchestrator.wake(id, to(80, None)).await,
            Err(WakeRefused::NotFound)
        );
    }
    assert_eq!(world.node.calls("start"), 3);
}

#[tokio::test]
async fn strangers_wake_nothing() {
    let world = World::new().await;
    let mut request = crate::world::request();
    request.lifecycle = wakes();
    request.network.public_traffic = Some(false);
    let granted = world.try_create(request).await.unwrap();
    let id = granted.sandbox.id;
    world.pause(id).await.unwrap();
    for presented in [
        to(80, None),
        to(80, Some("wrong")),
        to(ENVD_PORT, None),
        to(ENVD_PORT, Some("wrong")),
    ] {
        assert_eq!(
            world.orchestrator.wake(id, presented).await,
            Err(WakeRefused::Denied)
        );
    }
    assert_eq!(world.phase(id).await, "paused");
    let token = granted.envd_token.unwrap();
    world
        .orchestrator
        .wake(id, to(ENVD_PORT, Some(token.expose())))
        .await
        .unwrap();
    world.pause(id).await.unwrap();
    let token = granted.traffic_token.unwrap();
    world
        .orchestrator
        .wake(id, to(80, Some(token.expose())))
        .await
        .unwrap();
}

#[tokio::test]
async fn traffic_during_a_pause_waits_and_wakes() {
    let world = World::new().await;
    let id = world.created_with(|request| request.lifecycle = wakes()).await;
    let gate = world.node.hold_back("pause");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let pause = tokio::spawn(async move { orchestrator.pause(team, id, FULL, false).await });
    gate.reached().await;
    let waker = Arc::clone(&world.orchestrator);
    let wake = tokio::spawn(async move { waker.wake(id, to(80, None)).await });
    drop(gate);
    pause.await.unwrap().unwrap();
    wake.await.unwrap().unwrap();
    world.assert_agreed().await;
}

#[tokio::test]
async fn traffic_during_a_restart_waits() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let gate = world.node.hold_back("start");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let restart = tokio::spawn(async move { orchestrator.restart(team, id).await });
    gate.reached().await;
    let waker = Arc::clone(&world.orchestrator);
    let wake = tokio::spawn(async move { waker.wake(id, to(80, None)).await });
    drop(gate);
    restart.await.unwrap().unwrap();
    wake.await.unwrap().unwrap();
    world.assert_agreed().await;
}

#[tokio::test(start_paused = true)]
async fn traffic_waits_for_a_minute_at_most() {
    let world = World::in_memory().await;
    let id = world.created_with(|request| request.lifecycle = wakes()).await;
    let _gate = world.node.hold_back("pause");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    tokio::spawn(async move { orchestrator.pause(team, id, FULL, false).await });
    world.until(id, "pausing").await;
    assert_eq!(
        world.orchestrator.wake(id, to(80, None)).await,
        Err(WakeRefused::Transitioning)
    );
    let connect = world
        .orchestrator
        .connect(team, id, Duration::from_secs(60), FULL)
        .await;
    assert!(matches!(
        connect,
        Err(ManagerError::Busy { state: "pausing", .. })
    ));
}

#[tokio::test]
async fn a_wake_that_fails_says_so_and_keeps_the_pause() {
    let world = World::with_team(|team| team.quota.sandboxes = 1).await;
    let id = world.created_with(|request| request.lifecycle = wakes()).await;
    world.pause(id).await.unwrap();
    let failure = NodeError::Failed {
        step: "thawing",
        kind: Kind::Internal,
        source: "frozen solid".into(),
    };
    world.node.fail("start", failure);
    assert_eq!(
        world.orchestrator.wake(id, to(80, None)).await,
        Err(WakeRefused::Failed)
    );
    world.create().await;
    let refused = world.orchestrator.wake(id, to(80, None)).await;
    assert!(matches!(refused, Err(WakeRefused::Exhausted(_))));
    assert_eq!(world.phase(id).await, "paused");
    world.assert_agreed().await;
}
