//! Pauses that outlive their nodes: brought to the blobs, resumed where their node is not, and ended where they do not belong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::world::{FakeNode, Fuse, World, eventually, wakes};
use model::{
    BuildId, KillReason, Kind, Lifecycle, Memory, OnTimeout, Origin, PauseMode, Phase, SandboxId, Seat,
};
use ports::manager::Connected;
use ports::node::{HeldState, OrderOrigin, PauseOutcome};
use ports::{ManagerError, Node, NodeError, NodeEvent, Presented, SandboxManager, Wake, WakeRefused};

const FULL: PauseMode = PauseMode::Full;
const DISK: PauseMode = PauseMode::Filesystem;
const LIFE: Duration = Duration::from_secs(300);
/// Until the reconciler takes nobody for being at a start.
const LONG: Duration = Duration::from_secs(80);

/// A fleet of two nodes whose blobs hold builds, and a sandbox that is paused on the first.
struct Fleet {
    world: World,
    home: Arc<FakeNode>,
    other: Arc<FakeNode>,
    id: SandboxId,
    snapshot: BuildId,
}

impl Fleet {
    async fn new() -> Self {
        Self::paused(FULL, Lifecycle::default()).await
    }

    /// Where nothing was brought to the blobs yet.
    async fn paused(mode: PauseMode, lifecycle: Lifecycle) -> Self {
        let mut world = World::in_memory().await;
        world.configured(|config| {
            config.stow = true;
            config.shared = true;
            config.node_lost_after = Duration::ZERO;
        });
        let id = world.created_with(|request| request.lifecycle = lifecycle).await;
        world
            .orchestrator
            .pause(world.team.id, id, mode, false)
            .await
            .unwrap();
        let other = world.add_node();
        let snapshot = snapshot_of(&world, id).await;
        Self {
            home: world.node.clone(),
            other,
            world,
            id,
            snapshot,
        }
    }

    /// What is paused is in the blobs, and its node is away.
    async fn without_home() -> Self {
        Self::new().await.brought().await.left()
    }

    async fn brought(self) -> Self {
        assert_eq!(self.world.orchestrator.stow_pauses_now().await.unwrap(), 1);
        self
    }

    fn left(self) -> Self {
        self.world.leaves(&self.home);
        self
    }

    async fn connect(&self, mode: PauseMode) -> Result<Connected, ManagerError> {
        let (team, id) = (self.world.team.id, self.id);
        self.world.orchestrator.connect(team, id, LIFE, mode).await
    }

    async fn resume(&self, mode: PauseMode) -> Result<(), ManagerError> {
        let (team, id) = (self.world.team.id, self.id);
        let resumed = self.world.orchestrator.resume(team, id, LIFE, mode, None);
        resumed.await.map(drop)
    }

    /// It runs on this node alone, is routed there, and its home holds nothing of it, or a pause.
    async fn assert_runs_on(&self, node: &FakeNode) -> Seat {
        let sandbox = self.world.stored(self.id).await;
        let Phase::Running { at } = sandbox.phase else {
            panic!("{:?}", sandbox.phase)
        };
        assert_eq!(at.node, node.id());
        let held = node.held().remove(&self.id).expect("it is held");
        assert_eq!(
            (held.order.execution, held.state, held.order.deadline),
            (at.execution, HeldState::Running, sandbox.end_at)
        );
        assert_eq!(held.order.build, sandbox.build);
        assert_eq!(self.world.route(self.id).await.expect("a route").seat, at);
        for other in [&self.home, &self.other] {
            let held = other.held().remove(&self.id);
            let is_still = held.is_none_or(|held| matches!(held.state, HeldState::Paused(..)));
            assert!(other.id() == node.id() || is_still, "it runs twice");
        }
        at
    }

    async fn assert_paused_at_home(&self, mode: PauseMode) {
        let (snapshot, home) = (self.snapshot, self.home.id());
        let phase = Phase::Paused { snapshot, mode, home };
        assert_eq!(self.world.stored(self.id).await.phase, phase);
        assert_eq!(
            self.home.held()[&self.id].state,
            HeldState::Paused(snapshot, FULL)
        );
        assert!(self.world.route(self.id).await.is_none());
    }

    async fn settle(&self) {
        for _ in 0..4 {
            self.world.orchestrator.settle_now().await.unwrap();
            tokio::time::advance(LONG).await;
        }
    }

    /// Lets the collector see what nothing names, long enough.
    async fn collect(&self) {
        for _ in 0..3 {
            self.world.clock.advance(Duration::from_secs(601));
            self.world.orchestrator.collect_now().await.unwrap();
        }
    }

    async fn noted(&self) -> BTreeSet<BuildId> {
        self.world.builds.stowed().await.unwrap().into_keys().collect()
    }
}

async fn snapshot_of(world: &World, id: SandboxId) -> BuildId {
    match world.stored(id).await.phase {
        Phase::Paused { snapshot, .. } => snapshot,
        phase => panic!("{phase:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_paused_is_brought_to_the_blobs_once_and_in_a_fleet_alone() {
    let mut fleet = Fleet::new().await;
    for (stow, shared) in [(true, false), (false, true), (false, false)] {
        fleet
            .world
            .configured(|config| (config.stow, config.shared) = (stow, shared));
        assert_eq!(fleet.world.orchestrator.stow_pauses_now().await.unwrap(), 0);
        assert_eq!(fleet.home.calls("copy_paused"), 0);
    }
    fleet
        .world
        .configured(|config| (config.stow, config.shared) = (true, true));
    assert_eq!(fleet.world.orchestrator.stow_pauses_now().await.unwrap(), 1);
    assert_eq!(fleet.home.stowed(), BTreeSet::from([fleet.snapshot]));
    assert_eq!(fleet.noted().await, BTreeSet::from([fleet.snapshot]));
    assert_eq!(fleet.world.orchestrator.stow_pauses_now().await.unwrap(), 0);
    assert_eq!(fleet.home.calls("copy_paused"), 1);
    fleet.assert_paused_at_home(FULL).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_brought_behind_its_back_within_seconds() {
    let fleet = Fleet::new().await;
    assert_eq!(
        fleet.home.calls("copy_paused"),
        0,
        "the pause does not wait for it"
    );
    let _running = fleet.world.run();
    let begun = tokio::time::Instant::now();
    eventually(async || fleet.noted().await.contains(&fleet.snapshot)).await;
    assert!(begun.elapsed() < Duration::from_secs(16), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_is_not_brought_rests_longer_each_time() {
    let fleet = Fleet::new().await;
    for what in ["copy_paused", "stow_build"] {
        fleet.home.fail(what, NodeError::Timeout("the disk"));
    }
    let bring = async || fleet.world.orchestrator.stow_pauses_now().await.unwrap();
    for (wait, tries) in [(0, 1), (9, 1), (2, 2), (19, 2)] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        assert_eq!(bring().await, 0);
        assert_eq!(fleet.home.calls("copy_paused"), tries, "after {wait} s");
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(bring().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_offers_no_copies_is_not_asked_all_the_time() {
    let fleet = Fleet::new().await;
    let refused = NodeError::Refused("this runtime does not".to_owned());
    fleet.home.fail("copy_paused", refused);
    for wait in [0, 11, 580] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        assert_eq!(fleet.world.orchestrator.stow_pauses_now().await.unwrap(), 0);
        assert_eq!(fleet.home.calls("copy_paused"), 1);
    }
    fleet.assert_paused_at_home(FULL).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_resumed_or_away_while_others_are_brought_is_no_failure() {
    let fleet = Fleet::new().await;
    let gate = fleet.home.hold_back("copy_paused");
    let bringing = tokio::spawn({
        let orchestrator = fleet.world.orchestrator.clone();
        async move { orchestrator.stow_pauses_now().await }
    });
    gate.reached().await;
    fleet.resume(FULL).await.unwrap();
    drop(gate);
    assert_eq!(bringing.await.unwrap().unwrap(), 0);
    assert_eq!(fleet.noted().await, BTreeSet::new());
    fleet.world.pause(fleet.id).await.unwrap();
    let fleet = fleet.left();
    assert_eq!(fleet.world.orchestrator.stow_pauses_now().await.unwrap(), 0);
    fleet.world.all_are_there();
    assert_eq!(fleet.world.orchestrator.stow_pauses_now().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_whose_node_is_away_is_resumed_on_another_and_says_what_it_lost() {
    let fleet = Fleet::without_home().await;
    assert!(matches!(
        fleet.connect(FULL).await.unwrap(),
        Connected::Resumed(_)
    ));
    let at = fleet.assert_runs_on(&fleet.other).await;
    let order = &fleet.other.held()[&fleet.id].order;
    assert_eq!((order.origin, order.build), (OrderOrigin::Fresh, fleet.snapshot));
    let said = fleet.other.said(fleet.id, at.execution);
    assert!(said[0].contains("its memory stayed on the node"), "{said:?}");
    // Paused again, it is at home there, and has its memory there.
    fleet.world.pause(fleet.id).await.unwrap();
    let sandbox = fleet.world.stored(fleet.id).await;
    let Phase::Paused { snapshot, home, .. } = sandbox.phase else {
        panic!("{:?}", sandbox.phase)
    };
    assert_eq!((home, sandbox.kept), (fleet.other.id(), Memory::Volatile));
    fleet.resume(FULL).await.unwrap();
    fleet.assert_runs_on(&fleet.other).await;
    let order = &fleet.other.held()[&fleet.id].order;
    assert_eq!(order.origin, OrderOrigin::Paused(snapshot, FULL));
    assert_eq!(order.build, fleet.snapshot, "what its disk is over");
    fleet.home.assert_right();
    fleet.other.assert_right();
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_asks_for_memory_is_told_that_it_is_away() {
    let fleet = Fleet::without_home().await;
    let error = fleet.resume(FULL).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (Kind::Conflict, Some("sandbox_memory_lost"))
    );
    let told = error.to_string();
    assert!(
        told.contains("is away") && told.contains("memory:false") && !told.contains("restart"),
        "{told}"
    );
    fleet.assert_paused_at_home(FULL).await;
    fleet.resume(DISK).await.unwrap();
    fleet.assert_runs_on(&fleet.other).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_disk_alone_loses_nothing_elsewhere() {
    let fleet = Fleet::paused(DISK, Lifecycle::default())
        .await
        .brought()
        .await
        .left();
    let begun = tokio::time::Instant::now();
    fleet.resume(FULL).await.unwrap();
    assert_eq!(
        begun.elapsed(),
        Duration::ZERO,
        "there is no memory that is worth a wait"
    );
    let at = fleet.assert_runs_on(&fleet.other).await;
    let said = fleet.other.said(fleet.id, at.execution);
    assert!(!said[0].contains("memory"), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_out_of_sight_for_a_moment_costs_no_memory() {
    let fleet = Fleet::without_home().await;
    let back = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        fleet.world.all_are_there();
    };
    let (connected, ()) = tokio::join!(fleet.connect(FULL), back);
    connected.unwrap();
    fleet.assert_runs_on(&fleet.home).await;
    let origin = fleet.home.held()[&fleet.id].order.origin;
    assert_eq!(origin, OrderOrigin::Paused(fleet.snapshot, FULL));
}

#[tokio::test(start_paused = true)]
async fn traffic_wakes_it_on_another_node() {
    let fleet = Fleet::paused(FULL, wakes()).await.brought().await.left();
    let envd = {
        let granted = fleet.world.orchestrator.get(fleet.world.team.id, fleet.id).await;
        granted.unwrap().envd_token.map(|token| token.expose().clone())
    };
    let to_envd = Presented {
        port: ports::guest::ENVD_PORT,
        envd_token: envd,
        traffic_token: None,
    };
    fleet.world.orchestrator.wake(fleet.id, to_envd).await.unwrap();
    fleet.assert_runs_on(&fleet.other).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_blobs_do_not_hold_waits_for_its_node() {
    let fleet = Fleet::paused(FULL, wakes()).await.left();
    for mode in [FULL, DISK] {
        let error = fleet.connect(mode).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        let told = error.to_string();
        assert!(told.contains("is away") && told.contains("try again"), "{told}");
    }
    let to = Presented {
        port: 80,
        ..Presented::default()
    };
    let woken = fleet.world.orchestrator.wake(fleet.id, to).await;
    assert!(matches!(woken, Err(WakeRefused::Failed)), "{woken:?}");
    fleet.settle().await;
    fleet.assert_paused_at_home(FULL).await;
    assert_eq!(fleet.other.calls("start"), 0);
    fleet.world.all_are_there();
    fleet.connect(FULL).await.unwrap();
    fleet.assert_runs_on(&fleet.home).await;
}

#[tokio::test(start_paused = true)]
async fn a_home_that_is_back_ends_what_has_moved_and_its_old_news_are_none() {
    let fleet = Fleet::without_home().await;
    let old = fleet.home.held()[&fleet.id].order.execution;
    fleet.connect(FULL).await.unwrap();
    let at = fleet.assert_runs_on(&fleet.other).await;
    fleet.world.all_are_there();
    let _running = fleet.world.run();
    eventually(async || fleet.home.is_heard() && fleet.other.is_heard()).await;
    let outcome = PauseOutcome {
        mode: FULL,
        memory: Memory::Volatile,
        envd_unresponsive: false,
    };
    for event in [
        NodeEvent::Pausing(fleet.id, old, fleet.snapshot, FULL),
        NodeEvent::Paused(fleet.id, old, fleet.snapshot, outcome),
        NodeEvent::Ended(fleet.id, old, KillReason::Timeout),
    ] {
        fleet.home.tell(event);
    }
    eventually(async || !fleet.home.held().contains_key(&fleet.id)).await;
    assert_eq!(
        fleet.assert_runs_on(&fleet.other).await,
        at,
        "nothing of it is another"
    );
    assert_eq!(fleet.other.calls("kill"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_older_pause_is_never_taken_for_the_newer_one() {
    let fleet = Fleet::without_home().await;
    fleet.connect(FULL).await.unwrap();
    fleet.world.pause(fleet.id).await.unwrap();
    let newer = snapshot_of(&fleet.world, fleet.id).await;
    assert_eq!(fleet.world.orchestrator.stow_pauses_now().await.unwrap(), 1);
    // Its first home is back, with the older pause, when the second one goes.
    fleet.world.all_are_there();
    fleet.world.leaves(&fleet.other);
    let error = fleet.connect(DISK).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(fleet.home.calls("start"), 1, "the first one alone");
    assert_eq!(snapshot_of(&fleet.world, fleet.id).await, newer);
    fleet.settle().await;
    assert!(
        !fleet.home.held().contains_key(&fleet.id),
        "the older one is ended"
    );
    assert_eq!(snapshot_of(&fleet.world, fleet.id).await, newer);
    fleet.connect(FULL).await.unwrap();
    fleet.assert_runs_on(&fleet.home).await;
    assert_eq!(fleet.home.held()[&fleet.id].order.build, newer);
    // And the second one.
    fleet.world.all_are_there();
    fleet.settle().await;
    assert!(!fleet.other.held().contains_key(&fleet.id));
    fleet.assert_runs_on(&fleet.home).await;
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_fails_elsewhere_costs_nothing() {
    let fleet = Fleet::without_home().await;
    let broken = || NodeError::Failed {
        step: "starting",
        kind: Kind::Internal,
        source: "as the test says".into(),
    };
    for (what, error) in [
        ("fetch_build", broken()),
        ("start", broken()),
        ("start", NodeError::Refused("another runtime".to_owned())),
        (
            "start",
            NodeError::Full {
                what: "memory",
                retry_after: None,
            },
        ),
    ] {
        fleet.other.fail(what, error);
        fleet.connect(FULL).await.unwrap_err();
        fleet.assert_paused_at_home(FULL).await;
        assert!(!fleet.other.held().contains_key(&fleet.id));
    }
    // Its memory is where it was.
    fleet.world.all_are_there();
    fleet.resume(FULL).await.unwrap();
    fleet.assert_runs_on(&fleet.home).await;
    let order = &fleet.home.held()[&fleet.id].order;
    assert_eq!(order.origin, OrderOrigin::Paused(fleet.snapshot, FULL));
    assert_ne!(order.build, fleet.snapshot);
}

#[tokio::test(start_paused = true)]
async fn another_node_is_asked_where_one_cannot() {
    let mut fleet = Fleet::new().await.brought().await;
    let third = fleet.world.add_node();
    let fleet = fleet.left();
    fleet.other.fail("report", NodeError::Timeout("the report"));
    fleet
        .other
        .fail("start", NodeError::Refused("another runtime".to_owned()));
    third.fail("fetch_build", NodeError::Timeout("the blobs"));
    let mut tries = 0;
    while fleet.connect(FULL).await.is_err() {
        tries += 1;
        assert!(tries < 3);
        fleet.settle().await;
        fleet.assert_paused_at_home(FULL).await;
    }
    let sandbox = fleet.world.stored(fleet.id).await;
    assert_ne!(sandbox.phase.seat().unwrap().node, fleet.home.id());
}

#[tokio::test(start_paused = true)]
async fn a_home_that_has_lost_it_has_it_again_or_another() {
    for is_alone in [false, true] {
        let fleet = Fleet::new().await.brought().await;
        fleet.home.meddle(|held| held.clear());
        fleet.settle().await;
        assert_eq!(
            fleet.world.phase(fleet.id).await,
            "paused",
            "the blobs hold it: it is not given up"
        );
        if is_alone {
            fleet.world.leaves(&fleet.other);
        }
        let refused = fleet.resume(FULL).await.unwrap_err();
        assert_eq!(refused.code(), Some("sandbox_memory_lost"));
        fleet.resume(DISK).await.unwrap();
        let sandbox = fleet.world.stored(fleet.id).await;
        assert_eq!(sandbox.build, fleet.snapshot);
        let node = sandbox.phase.seat().unwrap().node;
        assert!(!is_alone || node == fleet.home.id());
        fleet.settle().await;
        assert_eq!(fleet.world.phase(fleet.id).await, "running");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_brought_and_its_node_has_lost_is_lost() {
    let fleet = Fleet::new().await;
    fleet.home.meddle(|held| held.clear());
    fleet.settle().await;
    assert_eq!(fleet.world.phase(fleet.id).await, "gone");
}

#[tokio::test(start_paused = true)]
async fn a_kill_of_a_pause_whose_node_is_away_is_carried_out_when_it_is_back() {
    let fleet = Fleet::without_home().await;
    fleet.world.kill(fleet.id).await.unwrap();
    for mode in [FULL, DISK] {
        fleet.connect(mode).await.unwrap_err();
        assert!(matches!(
            fleet.resume(mode).await.unwrap_err(),
            ManagerError::NotFound(_)
        ));
    }
    assert_eq!(fleet.world.phase(fleet.id).await, "killing");
    assert_eq!(fleet.other.calls("start"), 0);
    fleet.collect().await;
    assert_eq!(fleet.noted().await, BTreeSet::new(), "nothing of it is had again");
    fleet.world.orchestrator.stow_now().await.unwrap();
    assert!(
        !fleet.home.stowed().contains(&fleet.snapshot),
        "the blobs are swept"
    );
    fleet.world.all_are_there();
    fleet.settle().await;
    assert_eq!(fleet.world.phase(fleet.id).await, "gone");
    assert!(fleet.home.held().is_empty() && fleet.other.held().is_empty());
    fleet.collect().await;
    assert!(!fleet.home.has_build(fleet.snapshot));
}

#[tokio::test(start_paused = true)]
async fn the_copy_of_a_pause_is_kept_as_long_as_something_is_resumed_from_it() {
    let fleet = Fleet::new().await.brought().await;
    fleet.collect().await;
    assert!(fleet.home.has_build(fleet.snapshot) && fleet.noted().await.contains(&fleet.snapshot));
    // At home it is of no use any more.
    fleet.resume(FULL).await.unwrap();
    fleet.collect().await;
    assert!(!fleet.home.has_build(fleet.snapshot) && fleet.noted().await.is_empty());
    // Elsewhere its machine is over it.
    fleet.world.pause(fleet.id).await.unwrap();
    let fleet = fleet.brought().await.left();
    fleet.connect(FULL).await.unwrap();
    let second = fleet.world.stored(fleet.id).await.build;
    fleet.collect().await;
    assert!(fleet.other.has_build(second) && fleet.noted().await.contains(&second));
    fleet.world.all_are_there();
    fleet.world.kill(fleet.id).await.unwrap();
    fleet.settle().await;
    fleet.collect().await;
    assert!(!fleet.other.has_build(second) && !fleet.home.has_build(second));
    assert!(fleet.noted().await.is_empty());
    fleet.home.assert_right();
    fleet.other.assert_right();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_goes_while_it_resumes_something_loses_nothing() {
    for on_timeout in [OnTimeout::Kill, OnTimeout::Pause(FULL)] {
        let lifecycle = Lifecycle {
            on_timeout,
            auto_resume: false,
        };
        let fleet = Fleet::paused(FULL, lifecycle).await.brought().await;
        // Its last run would be over by now.
        fleet.world.clock.advance(Duration::from_secs(3600));
        let mut starting = fleet.world.stored(fleet.id).await;
        starting.phase = Phase::Starting {
            at: Seat {
                node: fleet.other.id(),
                execution: model::ExecutionId::random(),
            },
            from: Origin::Snapshot {
                build: fleet.snapshot,
                mode: FULL,
                home: fleet.home.id(),
            },
        };
        fleet.world.store.update(&starting).await.unwrap();
        fleet.world.leaves(&fleet.other);
        fleet.settle().await;
        fleet.assert_paused_at_home(FULL).await;
    }
}

/// Lets the process die at every step of a resume elsewhere: it is paused at home, or it runs elsewhere, and nothing else.
#[tokio::test(start_paused = true)]
async fn a_resume_elsewhere_that_is_cut_short_leaves_one_sandbox() {
    let (mut ran, mut paused) = (0, 0);
    for last_happens in [false, true] {
        for effects in 0.. {
            let mut fleet = Fleet::new().await.brought().await;
            let fuse = Fuse::new(effects, last_happens);
            fleet.world.reborn(Some(fuse.clone()));
            fleet.world.leaves(&fleet.home);
            let _cut_short = fleet.connect(FULL).await;
            fleet.world.reborn(None);
            fleet.world.leaves(&fleet.home);
            fleet.settle().await;
            let context = format!("dead after {effects} effects (last happens: {last_happens})");
            match fleet.world.phase(fleet.id).await {
                "running" => {
                    ran += 1;
                    fleet.assert_runs_on(&fleet.other).await;
                }
                "paused" => {
                    paused += 1;
                    fleet.assert_paused_at_home(FULL).await;
                    assert!(!fleet.other.held().contains_key(&fleet.id), "{context}");
                }
                phase => panic!("{context}: {phase}"),
            }
            // Whatever it was: with all nodes there it is had, once.
            fleet.world.all_are_there();
            fleet.settle().await;
            fleet.connect(FULL).await.unwrap();
            let at = fleet.world.stored(fleet.id).await.phase.seat().unwrap();
            let node = if at.node == fleet.home.id() {
                &fleet.home
            } else {
                &fleet.other
            };
            fleet.assert_runs_on(node).await;
            if !fuse.is_burnt() {
                break;
            }
        }
    }
    assert!(ran > 2 && paused > 2, "{ran} ran, {paused} were paused");
}

/// Lets the process die at every step of bringing a pause to the blobs.
#[tokio::test(start_paused = true)]
async fn a_pause_whose_bringing_is_cut_short_is_brought_by_the_next() {
    for last_happens in [false, true] {
        for effects in 0.. {
            let mut fleet = Fleet::new().await;
            let fuse = Fuse::new(effects, last_happens);
            fleet.world.reborn(Some(fuse.clone()));
            let _cut_short = fleet.world.orchestrator.stow_pauses_now().await;
            fleet.world.reborn(None);
            fleet.world.orchestrator.stow_pauses_now().await.unwrap();
            assert_eq!(fleet.noted().await, BTreeSet::from([fleet.snapshot]));
            fleet.assert_paused_at_home(FULL).await;
            if !fuse.is_burnt() {
                break;
            }
        }
    }
}
