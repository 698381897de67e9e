//! After a crash, and whenever store and node disagree.

use std::time::{Duration, SystemTime};

use model::{BuildId, ExecutionId, KillReason, OnTimeout, PauseMode, Phase, SandboxId, Seat};
use ports::node::{Held, HeldState};
use ports::store::contract;
use ports::{Catalog, ManagerError, NodeError, SandboxManager};

use crate::world::{Fuse, World, request};

/// What a process was doing when it died.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Create,
    Pause,
    Resume,
    Restart,
    Snapshot,
    Fork,
    Kill,
    KillPaused,
    SetTimeout,
    SetNetwork,
}

const ALL: [Doing; 10] = [
    Doing::Create,
    Doing::Pause,
    Doing::Resume,
    Doing::Restart,
    Doing::Snapshot,
    Doing::Fork,
    Doing::Kill,
    Doing::KillPaused,
    Doing::SetTimeout,
    Doing::SetNetwork,
];

/// An operation takes fewer effects than this.
const EFFECTS_MAX: usize = 40;

async fn act(world: &World, doing: Doing, id: SandboxId) -> bool {
    let (orchestrator, team) = (&world.orchestrator, world.team.id);
    let minute = Duration::from_secs(60);
    match doing {
        Doing::Create => orchestrator.create(team, request()).await.is_ok(),
        Doing::Pause => orchestrator.pause(team, id, PauseMode::Full, false).await.is_ok(),
        Doing::Resume => orchestrator
            .resume(team, id, minute, PauseMode::Full, None)
            .await
            .is_ok(),
        Doing::Restart => orchestrator.restart(team, id).await.is_ok(),
        Doing::Snapshot => orchestrator.snapshot(team, id, None, true).await.is_ok(),
        Doing::Fork => orchestrator
            .fork(team, id, 2, minute)
            .await
            .is_ok_and(|forks| forks.iter().all(Result::is_ok)),
        Doing::Kill | Doing::KillPaused => orchestrator.kill(team, id).await.is_ok(),
        Doing::SetTimeout => orchestrator.set_timeout(team, id, minute).await.is_ok(),
        Doing::SetNetwork => {
            let policy = model::NetworkPolicy {
                internet: Some(false),
                ..Default::default()
            };
            orchestrator.set_network(team, id, policy).await.is_ok()
        }
    }
}

/// Lets the process die at every step of an operation, before and after the step's effect; each time, the next process
/// settles everything.
async fn die_everywhere(doing: Doing) {
    for last_happens in [false, true] {
        for effects in 0..=EFFECTS_MAX {
            let mut world = World::new().await;
            let id = world.create().await.sandbox.id;
            let data = matches!(doing, Doing::Resume | Doing::KillPaused);
            if data {
                world.pause(id).await.unwrap();
            }
            let fuse = Fuse::new(effects, last_happens);
            world.reborn(Some(fuse.clone()));
            let done = act(&world, doing, id).await;
            world.reborn(None);
            world.settle().await;
            let phase = world.phase(id).await;
            let context =
                format!("{doing:?}, dead after {effects} effects (last happens: {last_happens}): {phase}");
            match doing {
                Doing::Kill | Doing::KillPaused if done => assert_eq!(phase, "gone", "{context}"),
                // The kill may be lost, and the sandbox never: it is either as before, or ended as was wished.
                Doing::Kill | Doing::KillPaused => {
                    assert!(["running", "paused", "gone"].contains(&phase), "{context}")
                }
                _ => assert!(["running", "paused"].contains(&phase), "{context}"),
            }
            // What is there can be used and ended.
            if phase == "paused" {
                world
                    .orchestrator
                    .resume(world.team.id, id, Duration::from_secs(60), PauseMode::Full, None)
                    .await
                    .expect(&context);
            }
            world.orchestrator.down().await.expect(&context);
            world.assert_agreed().await;
            assert_eq!(world.store.live().await.unwrap(), [], "{context}");
            if !fuse.is_burnt() {
                assert!(done, "{context}");
                break;
            }
            assert!(effects < EFFECTS_MAX, "{doing:?} has no end");
        }
    }
}

#[tokio::test]
async fn a_death_at_any_step_of_any_operation_is_settled() {
    for doing in ALL {
        die_everywhere(doing).await;
    }
}

#[tokio::test]
async fn a_new_process_adopts_what_runs_with_ids_deadlines_routes_and_tokens() {
    let mut world = World::new().await;
    let granted = world.create().await;
    let id = granted.sandbox.id;
    let paused = world.create().await.sandbox.id;
    world.pause(paused).await.unwrap();
    let route = world.route(id).await.unwrap();
    world.reborn(None);
    let settled = world.orchestrator.settle_now().await.unwrap();
    assert_eq!((settled.live, settled.settled, settled.strays), (2, 1, 0));
    let again = world.route(id).await.unwrap();
    // It is published again, as of what is stored now.
    let version = route.version;
    assert_eq!(
        ports::Route {
            version,
            ..(*again).clone()
        },
        *route
    );
    assert_eq!(world.orchestrator.get(world.team.id, id).await.unwrap(), granted);
    world.assert_agreed().await;
    let settled = world.orchestrator.settle_now().await.unwrap();
    assert_eq!((settled.agreed, settled.settled), (2, 0));
}

#[tokio::test]
async fn what_a_node_lost_is_gone_and_says_why() {
    let world = World::new().await;
    let (lost, late) = (world.create().await.sandbox.id, world.create().await.sandbox.id);
    world
        .orchestrator
        .set_timeout(world.team.id, late, Duration::ZERO)
        .await
        .unwrap();
    world.clock.advance(Duration::from_secs(1));
    world.node.meddle(std::collections::BTreeMap::clear);
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(
        world.stored(lost).await.phase,
        Phase::Gone {
            why: KillReason::NodeLost
        }
    );
    assert_eq!(
        world.stored(late).await.phase,
        Phase::Gone {
            why: KillReason::Timeout
        }
    );
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_paused_sandbox_is_looked_for_more_than_once_before_it_is_given_up() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    let mut held = None;
    world.node.meddle(|all| held = all.remove(&id));
    world.orchestrator.settle_now().await.unwrap();
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "paused");
    world
        .node
        .meddle(|all| drop(all.insert(id, held.take().unwrap())));
    world.orchestrator.settle_now().await.unwrap();
    world.node.meddle(|all| drop(all.remove(&id)));
    world.orchestrator.settle_now().await.unwrap();
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "paused");
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "gone");
}

#[tokio::test]
async fn what_nobody_knows_is_ended_on_its_node() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let mut stray = world.node.held()[&id].clone();
    stray.order.sandbox = SandboxId::random();
    world
        .node
        .meddle(|all| drop(all.insert(stray.order.sandbox, stray.clone())));
    let settled = world.orchestrator.settle_now().await.unwrap();
    assert_eq!(settled.strays, 1);
    world.assert_agreed().await;
}

#[tokio::test]
async fn another_execution_than_the_stored_one_is_ended() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world
        .node
        .meddle(|all| all.get_mut(&id).unwrap().order.execution = ExecutionId::random());
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "gone");
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_resume_that_came_up_after_it_was_given_up_is_adopted() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    let deadline = world.stored(id).await.end_at + Duration::from_secs(77);
    world.node.meddle(|all| {
        let Held { order, state, .. } = all.get_mut(&id).unwrap();
        order.execution = ExecutionId::random();
        order.deadline = deadline;
        *state = HeldState::Running;
    });
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.stored(id).await.end_at, deadline);
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_pause_that_a_node_made_by_itself_is_learnt_of() {
    let world = World::new().await;
    let id = world
        .created_with(|r| r.lifecycle.on_timeout = OnTimeout::Pause(PauseMode::Filesystem))
        .await;
    let into = BuildId::random();
    world
        .node
        .set_state(id, HeldState::Pausing(into, PauseMode::Filesystem));
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "pausing");
    assert!(world.route(id).await.is_none());
    world
        .node
        .set_state(id, HeldState::Paused(into, PauseMode::Filesystem));
    world.settle().await;
    assert_eq!(world.phase(id).await, "paused");
}

#[tokio::test]
async fn a_silent_node_costs_nothing() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.fail("report", NodeError::Timeout("the report"));
    let settled = world.orchestrator.settle_now().await.unwrap();
    assert_eq!((settled.silent_nodes, settled.settled, settled.strays), (1, 0, 0));
    assert_eq!(world.phase(id).await, "running");
    world.assert_agreed().await;
}

#[tokio::test]
async fn what_was_on_a_node_that_is_away_can_be_killed_and_ends_at_its_time() {
    let mut world = World::with_team(|team| team.quota.sandboxes = 2).await;
    let (killed, expired) = (world.create().await.sandbox.id, world.create().await.sandbox.id);
    let old = world.node.clone();
    world.moved();
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(expired).await, "running", "its node may come back");
    world.kill(killed).await.unwrap();
    assert_eq!(world.phase(killed).await, "killing");
    world.create().await;
    world.clock.advance(Duration::from_secs(301));
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(expired).await, "killing");
    // The node comes back.
    world.orchestrator.down().await.unwrap();
    world.node = old;
    world.reborn(None);
    world.settle().await;
    assert_eq!(
        (world.phase(killed).await, world.phase(expired).await),
        ("gone", "gone")
    );
}

#[tokio::test]
async fn a_route_of_what_does_not_run_is_withdrawn() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let mut stale = (*world.route(id).await.unwrap()).clone();
    world.kill(id).await.unwrap();
    world.catalog.publish(stale.clone()).await.unwrap();
    stale.sandbox = SandboxId::random();
    stale.seat = Seat {
        execution: ExecutionId::random(),
        ..stale.seat
    };
    world.catalog.publish(stale).await.unwrap();
    world.orchestrator.settle_now().await.unwrap();
    world.assert_agreed().await;
}

#[tokio::test]
async fn more_time_that_a_node_gave_is_kept() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    let end_at = world.stored(id).await.end_at;
    world.clock.advance(Duration::from_secs(301));
    world
        .node
        .meddle(|all| all.get_mut(&id).unwrap().order.deadline = end_at + Duration::from_secs(60));
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.stored(id).await.end_at, end_at + Duration::from_secs(60));
    world.assert_agreed().await;
}

#[tokio::test]
async fn the_gone_are_forgotten_after_an_hour() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.kill(id).await.unwrap();
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "gone");
    world.clock.advance(Duration::from_secs(3700));
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "forgotten");
}

#[tokio::test]
async fn a_kill_that_failed_is_finished_by_the_running_reconciler() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.fail("kill", NodeError::Timeout("the kill"));
    world.kill(id).await.unwrap_err();
    assert_eq!(world.phase(id).await, "killing");
    assert!(world.route(id).await.is_none());
    let _running = world.run();
    world.until(id, "gone").await;
    world.assert_agreed().await;
}

#[tokio::test]
async fn down_ends_everything_whatever_its_phase() {
    let world = World::new().await;
    for _ in 0..20 {
        world.create().await;
    }
    let paused = world.create().await.sandbox.id;
    world.pause(paused).await.unwrap();
    let mut starting = contract::sandbox(world.team.id);
    let at = Seat {
        node: ports::Node::id(&*world.node),
        execution: ExecutionId::random(),
    };
    starting.phase = Phase::Starting {
        at,
        from: model::Origin::Template(starting.build),
    };
    starting.started_at = SystemTime::now();
    world.store.insert(&starting).await.unwrap();
    assert_eq!(world.orchestrator.down().await.unwrap(), 22);
    assert_eq!(world.store.live().await.unwrap(), []);
    world.assert_agreed().await;
}

/// Runs an operation between a pass's reading of the store and its node's report.
async fn within_a_pass<T>(world: &World, act: impl Future<Output = T>) -> T {
    let report = world.node.hold_back("report");
    let pass = tokio::spawn({
        let orchestrator = world.orchestrator.clone();
        async move { orchestrator.settle_now().await }
    });
    report.reached().await;
    let outcome = act.await;
    drop(report);
    pass.await.unwrap().unwrap();
    outcome
}

#[tokio::test]
async fn what_came_up_during_a_pass_keeps_its_route() {
    for doing in [Doing::Create, Doing::Resume, Doing::Restart] {
        let world = World::new().await;
        let known = world.create().await.sandbox.id;
        if matches!(doing, Doing::Resume) {
            world.pause(known).await.unwrap();
        }
        let start = world.node.hold_back("start");
        let world = std::sync::Arc::new(world);
        let under_way = tokio::spawn({
            let world = world.clone();
            async move { act(&world, doing, known).await }
        });
        start.reached().await;
        let finish = async {
            drop(start);
            assert!(under_way.await.unwrap());
        };
        within_a_pass(&world, finish).await;
        // Withdrawn in between, its streams would be cut.
        world.assert_agreed().await;
    }
}

#[tokio::test]
async fn what_was_set_during_a_pass_stays_in_force() {
    for doing in [Doing::SetTimeout, Doing::SetNetwork] {
        let world = World::new().await;
        let id = world.create().await.sandbox.id;
        assert!(within_a_pass(&world, act(&world, doing, id)).await);
        world.assert_agreed().await;
    }
}

#[tokio::test]
async fn what_was_resumed_during_a_pass_counts_against_the_quota() {
    let world = World::with_team(|team| team.quota.sandboxes = 1).await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    assert!(within_a_pass(&world, act(&world, Doing::Resume, id)).await);
    world.assert_agreed().await;
    let more = world.try_create(request()).await;
    assert_eq!(more.unwrap_err().kind(), model::Kind::Exhausted);
}

#[tokio::test]
async fn what_was_killed_during_a_pass_does_not_count_against_the_quota() {
    let world = World::with_team(|team| team.quota.sandboxes = 1).await;
    let id = world.create().await.sandbox.id;
    assert!(within_a_pass(&world, act(&world, Doing::Kill, id)).await);
    world.create().await;
    world.assert_agreed().await;
}

#[tokio::test]
async fn what_a_node_paused_under_another_name_is_kept() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.pause(id).await.unwrap();
    let other = BuildId::random();
    world
        .node
        .set_state(id, HeldState::Paused(other, PauseMode::Filesystem));
    world.settle().await;
    assert!(act(&world, Doing::Resume, id).await);
    world.assert_agreed().await;
}

#[tokio::test]
async fn an_end_of_time_that_its_node_could_not_carry_out_is_carried_out() {
    let world = World::new().await;
    let id = world.create().await.sandbox.id;
    world.node.set_state(id, HeldState::Stopping);
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "running", "its node is at it");
    world.clock.advance(Duration::from_secs(301));
    world.settle().await;
    assert_eq!(
        world.stored(id).await.phase,
        Phase::Gone {
            why: KillReason::Timeout
        }
    );
}

#[tokio::test]
async fn down_lets_nothing_start_and_ends_what_is_being_started() {
    let world = World::new().await;
    let (running, paused) = (world.create().await.sandbox.id, world.create().await.sandbox.id);
    world.pause(paused).await.unwrap();
    let start = world.node.hold_back("start");
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let create = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.create(team, request()).await }
    });
    start.reached().await;
    let down = tokio::spawn(async move { orchestrator.down().await });
    world.until(running, "gone").await;
    let refused = world.try_create(request()).await;
    assert!(matches!(refused, Err(ManagerError::ShuttingDown)), "{refused:?}");
    assert!(!down.is_finished(), "a start is under way");
    drop(start);
    create.await.unwrap().unwrap_err();
    assert_eq!(down.await.unwrap().unwrap(), 3);
    assert_eq!(world.store.live().await.unwrap(), []);
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_kill_that_fails_once_stops_no_down() {
    let world = World::new().await;
    for _ in 0..3 {
        world.create().await;
    }
    world.node.fail("kill", NodeError::Timeout("the kill"));
    assert_eq!(world.orchestrator.down().await.unwrap(), 3);
    world.assert_agreed().await;
}
