//! Nodes that are to be emptied: what is there goes on elsewhere, is carried, waited for, killed or left, as the plan says.

use std::sync::Arc;
use std::time::Duration;

use crate::world::{FakeNode, World, eventually, wakes};
use model::{Lifecycle, NodeId, OnTimeout, PauseMode, Phase, SandboxId};
use orchestrator::Orchestrator;
use ports::manager::{Connected, Drained, NodeWish};
use ports::node::{HeldState, OrderOrigin};
use ports::{ManagerError, Node, NodeError, SandboxManager, Wake};

const FULL: PauseMode = PauseMode::Full;
const DISK: PauseMode = PauseMode::Filesystem;
const LIFE: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);

/// Ends by a pause that keeps its disk: it agrees to be moved.
fn agrees() -> Lifecycle {
    Lifecycle {
        on_timeout: OnTimeout::Pause(DISK),
        auto_resume: false,
    }
}

/// A fleet of two nodes whose blobs hold builds; everything runs on the first.
struct Fleet {
    world: World,
    home: Arc<FakeNode>,
    other: Arc<FakeNode>,
}

impl Fleet {
    /// With sandboxes that live for so long, and then do so.
    async fn with<const N: usize>(lives: [(Duration, Lifecycle); N]) -> (Self, [SandboxId; N]) {
        let mut world = World::in_memory().await;
        world.configured(|config| {
            config.stow = true;
            config.shared = true;
        });
        let mut ids = Vec::new();
        for (timeout, lifecycle) in lives {
            let edit = |request: &mut ports::CreateSandbox| {
                (request.timeout, request.lifecycle) = (timeout, lifecycle);
            };
            ids.push(world.created_with(edit).await);
        }
        let other = world.add_node();
        other.add_build(world.base.tags["default"]);
        let fleet = Self {
            home: world.node.clone(),
            other,
            world,
        };
        (fleet, ids.try_into().unwrap())
    }

    async fn wish(&self, wish: NodeWish) {
        let told = self.world.orchestrator.set_node(self.home.id(), wish).await;
        told.unwrap();
    }

    async fn drain(&self, within: Duration, kills: bool) {
        self.wish(NodeWish::Draining { within, kills }).await;
    }

    async fn step(&self) -> usize {
        self.world.orchestrator.drain_now().await.unwrap()
    }

    async fn drained(&self) -> Drained {
        let drained = self.world.orchestrator.drained(self.home.id()).await;
        drained.unwrap().expect("it is to be emptied")
    }

    async fn runs_on(&self, id: SandboxId) -> Option<NodeId> {
        match self.world.stored(id).await.phase {
            Phase::Running { at } => Some(at.node),
            _ => None,
        }
    }

    /// It runs on the other node, is reachable there, and booted from the disk that it had at home.
    async fn assert_moved(&self, id: SandboxId) {
        let Phase::Running { at } = self.world.stored(id).await.phase else {
            panic!("{:?}", self.world.stored(id).await.phase)
        };
        assert_eq!(at.node, self.other.id());
        let held = self.other.held().remove(&id).expect("it is held");
        assert_eq!(
            (held.order.execution, held.state),
            (at.execution, HeldState::Running)
        );
        assert_eq!(held.order.origin, OrderOrigin::Fresh);
        assert_eq!(held.order.build, self.world.stored(id).await.build);
        assert_eq!(self.world.route(id).await.expect("a route").seat, at);
        let at_home = self.home.held().remove(&id);
        assert!(at_home.is_none_or(|held| matches!(held.state, HeldState::Paused(..))));
    }

    /// Whether it is paused, to be moved.
    async fn is_moving(&self, id: SandboxId) -> bool {
        let sandbox = self.world.stored(id).await;
        matches!(sandbox.phase, Phase::Paused { .. }) && sandbox.is_moving()
    }

    async fn connect(&self, id: SandboxId) -> Result<Connected, ManagerError> {
        self.world
            .orchestrator
            .connect(self.world.team.id, id, LIFE, FULL)
            .await
    }

    /// Another process over the same stores and nodes, which knows what nodes report.
    async fn another(&mut self) -> Arc<Orchestrator> {
        let before = Arc::clone(&self.world.orchestrator);
        self.world.reborn(None);
        self.world.orchestrator.settle_now().await.unwrap();
        before
    }
}

#[tokio::test(start_paused = true)]
async fn what_agrees_is_moved_what_is_paused_is_carried_and_the_rest_is_waited_for() {
    let lives = [
        (LIFE, agrees()),
        (LIFE, Lifecycle::default()),
        (LIFE, wakes()),
        (LIFE, wakes()),
    ];
    let (fleet, [agreed, killed, keeps, paused]) = Fleet::with(lives).await;
    fleet.world.pause(paused).await.unwrap();
    fleet.drain(HOUR, true).await;
    let before = fleet.drained().await;
    assert_eq!(
        (before.moving, before.waiting, before.carried, before.is_over),
        (2, 2, 0, false)
    );
    assert_eq!(fleet.step().await, 2);
    fleet.assert_moved(agreed).await;
    for id in [killed, keeps] {
        assert_eq!(fleet.runs_on(id).await, Some(fleet.home.id()));
    }
    assert_eq!(fleet.home.stowed().len(), 2);
    let after = fleet.drained().await;
    assert_eq!(
        (after.moving, after.waiting, after.carried, after.is_over),
        (0, 2, 1, false)
    );
    assert_eq!(fleet.step().await, 0, "nothing is done twice");
    // What is held at home of what moved is no one's.
    fleet.world.orchestrator.settle_now().await.unwrap();
    assert!(!fleet.home.held().contains_key(&agreed));
    fleet.assert_moved(agreed).await;
    // Paused ones are resumed when somebody asks, with their memory while it is there.
    assert!(matches!(
        fleet.connect(paused).await.unwrap(),
        Connected::Resumed(_)
    ));
    assert_eq!(fleet.runs_on(paused).await, Some(fleet.home.id()));
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_everything_that_can_is_moved_with_its_disk() {
    let (fleet, [killed, keeps]) = Fleet::with([(HOUR, Lifecycle::default()), (HOUR, wakes())]).await;
    fleet.drain(LIFE, false).await;
    assert_eq!(fleet.step().await, 0);
    let end_at = fleet.world.stored(killed).await.end_at;
    fleet.world.clock.advance(LIFE);
    assert_eq!(fleet.step().await, 2);
    for id in [killed, keeps] {
        fleet.assert_moved(id).await;
        // Its processes are gone, and its owner can read why.
        let at = fleet.world.stored(id).await.phase.seat().unwrap();
        let said = fleet.other.said(id, at.execution);
        assert!(said[0].contains("to be emptied"), "{said:?}");
    }
    assert_eq!(
        fleet.world.stored(killed).await.end_at,
        end_at,
        "it ends when it would have"
    );
    assert!(fleet.drained().await.is_over);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_moved_is_killed_at_the_deadline_or_left_as_the_operator_wants() {
    for kills in [false, true] {
        let (mut fleet, [id]) = Fleet::with([(HOUR, Lifecycle::default())]).await;
        // Without blobs nothing is had elsewhere.
        fleet.world.configured(|config| config.stow = false);
        fleet.drain(LIFE, kills).await;
        assert_eq!((fleet.step().await, fleet.drained().await.waiting), (0, 1));
        fleet.world.clock.advance(LIFE);
        assert_eq!(fleet.step().await, usize::from(kills));
        let drained = fleet.drained().await;
        assert_eq!((drained.left, drained.is_over), (usize::from(!kills), true));
        let phase = if kills { "gone" } else { "running" };
        assert_eq!(fleet.world.phase(id).await, phase);
        assert_eq!(fleet.home.held().contains_key(&id), !kills);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_stopped_early_while_there_is_nowhere_to_go() {
    let (fleet, [id]) = Fleet::with([(HOUR, agrees())]).await;
    fleet.other.set_accepts(false).await.unwrap();
    fleet.world.orchestrator.settle_now().await.unwrap();
    fleet.drain(LIFE, false).await;
    assert_eq!((fleet.step().await, fleet.drained().await.waiting), (0, 1));
    assert_eq!(fleet.runs_on(id).await, Some(fleet.home.id()));
    // At the deadline its disk is saved, and it goes on as soon as somebody takes it.
    fleet.world.clock.advance(LIFE);
    assert_eq!(fleet.step().await, 1);
    assert!(fleet.is_moving(id).await && fleet.home.stowed().len() == 1);
    assert!(!fleet.drained().await.is_over);
    fleet.other.set_accepts(true).await.unwrap();
    fleet.world.orchestrator.settle_now().await.unwrap();
    assert_eq!(fleet.step().await, 0, "it rests");
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(fleet.step().await, 1);
    fleet.assert_moved(id).await;
}

#[tokio::test(start_paused = true)]
async fn a_move_whose_process_died_is_gone_on_with_by_another() {
    for at in ["copy_paused", "start"] {
        let (mut fleet, [id]) = Fleet::with([(LIFE, agrees())]).await;
        fleet.drain(HOUR, false).await;
        let (node, what) = match at {
            "start" => (&fleet.other, "start"),
            _ => (&fleet.home, at),
        };
        node.fail(what, NodeError::Timeout("it"));
        if at == "start" {
            node.fail(what, NodeError::Timeout("it"));
        }
        fleet.step().await;
        if at == "copy_paused" {
            assert!(fleet.is_moving(id).await);
        }
        // Nothing of the process before is known but what is stored.
        let _before = fleet.another().await;
        for _ in 0..4 {
            fleet.step().await;
            tokio::time::advance(Duration::from_secs(80)).await;
            fleet.world.orchestrator.settle_now().await.unwrap();
        }
        fleet.assert_moved(id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_processes_that_empty_one_node_are_as_good_as_one() {
    let lives = [
        (LIFE, agrees()),
        (LIFE, agrees()),
        (LIFE, wakes()),
        (LIFE, agrees()),
    ];
    let (mut fleet, ids) = Fleet::with(lives).await;
    fleet.world.pause(ids[2]).await.unwrap();
    fleet.drain(HOUR, true).await;
    let one = fleet.another().await;
    let two = Arc::clone(&fleet.world.orchestrator);
    for _ in 0..3 {
        let (first, second) = tokio::join!(one.drain_now(), two.drain_now());
        first.unwrap();
        second.unwrap();
    }
    two.settle_now().await.unwrap();
    for id in [ids[0], ids[1], ids[3]] {
        let Phase::Running { at } = fleet.world.stored(id).await.phase else {
            panic!("{:?}", fleet.world.stored(id).await.phase)
        };
        assert_eq!(at.node, fleet.other.id());
        assert!(!fleet.home.held().contains_key(&id), "it runs twice");
        assert_eq!(fleet.other.held()[&id].order.execution, at.execution);
    }
    let drained = fleet.drained().await;
    assert_eq!((drained.carried, drained.is_over), (1, true));
}

#[tokio::test(start_paused = true)]
async fn whoever_pauses_what_is_being_moved_has_it_paused() {
    let (fleet, [id]) = Fleet::with([(LIFE, agrees())]).await;
    fleet.drain(HOUR, false).await;
    let gate = fleet.home.hold_back("copy_paused");
    let moving = tokio::spawn({
        let orchestrator = Arc::clone(&fleet.world.orchestrator);
        async move { orchestrator.drain_now().await }
    });
    gate.reached().await;
    assert!(fleet.is_moving(id).await);
    fleet.world.pause(id).await.unwrap();
    assert!(matches!(
        fleet.world.pause(id).await.unwrap_err(),
        ManagerError::AlreadyPaused(_)
    ));
    drop(gate);
    moving.await.unwrap().unwrap();
    assert_eq!(fleet.world.phase(id).await, "paused");
    assert_eq!((fleet.step().await, fleet.drained().await.carried), (0, 1));
    // Nothing is lost by going elsewhere with a disk.
    assert!(matches!(fleet.connect(id).await.unwrap(), Connected::Resumed(_)));
    fleet.assert_moved(id).await;
}

#[tokio::test(start_paused = true)]
async fn who_connects_or_calls_meanwhile_gets_it_where_it_goes() {
    let (fleet, [id]) = Fleet::with([(LIFE, agrees())]).await;
    fleet.drain(HOUR, false).await;
    let gate = fleet.home.hold_back("copy_paused");
    let moving = tokio::spawn({
        let orchestrator = Arc::clone(&fleet.world.orchestrator);
        async move { orchestrator.drain_now().await }
    });
    gate.reached().await;
    let calls = tokio::spawn({
        let orchestrator = Arc::clone(&fleet.world.orchestrator);
        async move { orchestrator.wake(id, ports::Presented::default()).await }
    });
    let open = async { drop(gate) };
    let (connected, ()) = tokio::join!(fleet.connect(id), open);
    moving.await.unwrap().unwrap();
    calls.await.unwrap().unwrap();
    assert!(matches!(connected.unwrap(), Connected::Running(_)));
    fleet.assert_moved(id).await;
}

#[tokio::test(start_paused = true)]
async fn past_the_deadline_a_pause_with_memory_is_woken_where_it_can_stay() {
    let (fleet, [id]) = Fleet::with([(HOUR, wakes())]).await;
    fleet.world.pause(id).await.unwrap();
    fleet.drain(LIFE, false).await;
    assert_eq!(fleet.step().await, 1);
    fleet.world.clock.advance(LIFE);
    assert!(matches!(fleet.connect(id).await.unwrap(), Connected::Resumed(_)));
    fleet.assert_moved(id).await;
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_node_gets_nothing_new_and_keeps_what_it_has_until_it_is_ready_again() {
    let (fleet, [id]) = Fleet::with([(LIFE, agrees())]).await;
    fleet.drain(HOUR, true).await;
    fleet.wish(NodeWish::Cordoned).await;
    assert_eq!(fleet.step().await, 0);
    let (node, orchestrator) = (fleet.home.id(), &fleet.world.orchestrator);
    assert_eq!(orchestrator.drained(node).await.unwrap(), None);
    for _ in 0..6 {
        let made = fleet.world.create().await.sandbox.id;
        assert_eq!(fleet.runs_on(made).await, Some(fleet.other.id()));
    }
    assert_eq!(fleet.runs_on(id).await, Some(node));
    fleet.other.set_accepts(false).await.unwrap();
    fleet.world.orchestrator.settle_now().await.unwrap();
    let refused = fleet.world.try_create(crate::world::request()).await.unwrap_err();
    assert!(
        matches!(&refused, ManagerError::NoCapacity(why) if why.contains("cordoned: 2")),
        "{refused}"
    );
    fleet.wish(NodeWish::Ready).await;
    let made = fleet.world.create().await.sandbox.id;
    assert_eq!(fleet.runs_on(made).await, Some(node));
}

#[tokio::test(start_paused = true)]
async fn a_node_is_emptied_behind_everybodys_back() {
    let (fleet, [id]) = Fleet::with([(LIFE, agrees())]).await;
    // Told past this process.
    let deadline = std::time::SystemTime::now() + HOUR;
    fleet
        .home
        .drain(ports::node::Draining {
            deadline,
            kills: false,
        })
        .await
        .unwrap();
    let _running = fleet.world.run();
    eventually(async || fleet.runs_on(id).await == Some(fleet.other.id())).await;
    fleet.assert_moved(id).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_is_refused() {
    let mut world = World::in_memory().await;
    let draining = NodeWish::Draining {
        within: HOUR,
        kills: true,
    };
    let id = world.node.id();
    let told = world.orchestrator.set_node(id, draining).await.unwrap_err();
    assert!(told.to_string().contains("one machine"), "{told}");
    assert_eq!(world.node.calls("drain"), 0);
    world.configured(|config| config.shared = true);
    for wish in [NodeWish::Ready, NodeWish::Cordoned, draining] {
        let told = world.orchestrator.set_node(NodeId::random(), wish).await;
        assert!(matches!(told, Err(ManagerError::NoNode(_))));
    }
    world.node.fail("drain", NodeError::Timeout("a word"));
    let told = world.orchestrator.set_node(id, draining).await.unwrap_err();
    assert!(matches!(told, ManagerError::Timeout(_)), "{told}");
}
