//! Pauses that write memory down, and resumes from it.
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use model::{BuildId, KillReason, Memory, OnTimeout, StartCommand};
use ports::node::{HeldState, Order, OrderOrigin, PauseOutcome};
use ports::{Level, LogQuery, Node, NodeError, NodeEvent};
use tokio::sync::Notify;

use crate::world::{DISK, FULL, Fault, LIFE, SOON, World, told};

const DURABLE: PauseOutcome = PauseOutcome {
    mode: FULL,
    memory: Memory::Durable,
    envd_unresponsive: false,
};
const VOLATILE: PauseOutcome = PauseOutcome {
    memory: Memory::Volatile,
    ..DURABLE
};

pub(crate) fn durable() -> World {
    let world = World::new();
    world.runtime.set_durable(true);
    world
}

impl World {
    async fn outcome(&self, order: &Order) -> Option<PauseOutcome> {
        let report = self.node.report().await.unwrap();
        let held = report
            .held
            .into_iter()
            .find(|held| held.order.sandbox == order.sandbox);
        held.unwrap().pause
    }

    /// What matters in its log.
    pub(crate) async fn warnings(&self, order: &Order) -> Vec<String> {
        let query = LogQuery {
            from: None,
            limit: 100,
            forward: true,
            level: Some(Level::Warn),
            search: None,
        };
        let lines = self.node.logs(order.sandbox, query).await.unwrap();
        lines.into_iter().map(|line| line.message).collect()
    }

    /// It is paused, its memory lies beside its disk, and nothing else of it is there.
    async fn assert_on_disk(&self, order: &Order, into: BuildId) {
        let state = self.held(order).await.map(|held| held.1);
        assert_eq!(state, Some(HeldState::Paused(into, FULL)));
        assert_eq!(self.outcome(order).await, Some(DURABLE));
        assert_eq!(self.runtime.machines(order.sandbox), [""; 0]);
        assert!(self.runtime.has_disk(order.sandbox));
        assert!(self.runtime.has_memory(order.sandbox));
    }

    /// Its memory is lost and told to be, and its disk is what it goes on from.
    async fn assert_disk_only(&self, order: &Order, into: BuildId) {
        let resumed = self.next(order, OrderOrigin::Paused(into, FULL));
        let refused = self.node.start(resumed).await;
        let is_lost = matches!(refused, Err(NodeError::MemoryLost | NodeError::MemoryUnusable(_)));
        assert!(is_lost, "{refused:?}");
        let resumed = self.next(order, OrderOrigin::Paused(into, DISK));
        self.node.start(resumed.clone()).await.unwrap();
        self.assert_runs(&resumed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn memory_that_was_written_down_outlives_the_daemon_and_the_machine() {
    let mut world = durable();
    let (order, into) = (world.running().await, BuildId::random());
    world.runtime.steps();
    assert_eq!(world.pause(&order, into, FULL).await.unwrap(), DURABLE);
    assert_eq!(world.runtime.steps()[2..], ["quiesce", "hibernate"]);
    assert_eq!(
        world.pause(&order, into, FULL).await.unwrap(),
        DURABLE,
        "asked again"
    );
    world.assert_on_disk(&order, into).await;
    assert_eq!(world.restart().await.unwrap().paused, 1);
    world.assert_on_disk(&order, into).await;
    world.runtime.inits();
    let resumed = Order {
        start: Some(StartCommand {
            command: "serve".to_owned(),
            user: "user".to_owned(),
            cwd: None,
        }),
        ..world.next(&order, OrderOrigin::Paused(into, FULL))
    };
    world.node.start(resumed.clone()).await.unwrap();
    let [init] = &world.runtime.inits()[..] else {
        panic!()
    };
    assert!(init.restored && !init.renew, "it is the same sandbox");
    assert_eq!(
        (&init.start_command, &init.machine_id),
        (&None, &None),
        "it runs already"
    );
    assert_eq!(world.held(&resumed).await.unwrap().1, HeldState::Running);
    assert!(!world.runtime.has_memory(order.sandbox) && !world.runtime.has_disk(order.sandbox));
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn memory_that_cannot_be_written_down_stays_in_the_machine_and_its_owner_is_told() {
    let mut world = durable();
    let (order, into) = (world.running().await, BuildId::random());
    world.runtime.at("hibernate", Fault::Fail);
    assert_eq!(world.pause(&order, into, FULL).await.unwrap(), VOLATILE);
    world.assert_paused(&order, into, FULL).await;
    assert_eq!(world.outcome(&order).await, Some(VOLATILE));
    let warnings = world.warnings(&order).await;
    assert!(
        warnings[0].contains("until this machine restarts") && warnings[0].contains("as the script says")
    );
    world.restart().await.unwrap();
    assert_eq!(world.outcome(&order).await, Some(VOLATILE));
    let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_keeps_no_memory_in_any_way_leaves_it_running() {
    let world = durable();
    let order = world.running().await;
    world.runtime.at("hibernate", Fault::Fail);
    world.runtime.at("freeze", Fault::Fail);
    world.pause(&order, BuildId::random(), FULL).await.unwrap_err();
    assert_eq!(world.outcome(&order).await, None);
    world.assert_runs(&order).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_dies_while_it_is_written_down_keeps_its_disk() {
    let mut world = durable();
    let (order, into) = (world.running().await, BuildId::random());
    world.runtime.at("hibernate", Fault::FailDead);
    let paused = world.pause(&order, into, FULL).await;
    assert!(matches!(paused, Err(NodeError::Busy("paused"))), "{paused:?}");
    tokio::time::sleep(SOON).await;
    assert_eq!(
        world.held(&order).await,
        Some((order.execution, HeldState::Paused(into, FULL)))
    );
    assert!(world.runtime.has_disk(order.sandbox));
    world.restart().await.unwrap();
    world.assert_disk_only(&order, into).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_was_written_down_is_one_whether_the_journal_knows_or_not() {
    let mut world = durable();
    let (order, into) = (world.running().await, BuildId::random());
    world.runtime.at("hibernate", Fault::NoJournal);
    assert_eq!(world.pause(&order, into, FULL).await.unwrap(), DURABLE);
    world.runtime.mend_journal();
    world.assert_on_disk(&order, into).await;
    world.restart().await.unwrap();
    world.assert_on_disk(&order, into).await;
    let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_dies_while_memory_is_written_down_finds_it_running() {
    for at in ["quiesce", "hibernate"] {
        let mut world = durable();
        let order = world.running().await;
        world.runtime.at(at, Fault::Wait(Arc::new(Notify::new())));
        let pause = world.pause(&order, BuildId::random(), FULL);
        tokio::time::timeout(Duration::from_millis(10), pause)
            .await
            .unwrap_err();
        world.restart().await.unwrap();
        assert_eq!(world.outcome(&order).await, None);
        world.assert_runs(&order).await;
    }
}

#[tokio::test(start_paused = true)]
async fn memory_that_cannot_be_used_any_more_is_lost_and_the_disk_is_not() {
    let world = durable();
    let (order, into) = world.paused(FULL).await;
    world.runtime.at("restore", Fault::Fail);
    let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
    let refused = world.node.start(resumed).await.unwrap_err().to_string();
    // Its owner is told the kind of reason, and nothing of the host.
    let warnings = world.warnings(&order).await;
    assert_eq!(warnings, [refused.as_str()]);
    assert!(
        refused.contains("kernel, processor or CRIU") && !refused.contains("restart"),
        "{refused}"
    );
    assert!(!refused.contains("as the script says"), "{refused}");
    world.runtime.at("restore", Fault::Fail);
    world.assert_disk_only(&order, into).await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_for_which_there_is_no_room_now_is_tried_again() {
    let world = durable();
    let (order, into) = world.paused(FULL).await;
    world.runtime.at("start", Fault::Fail);
    let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
    world.node.start(resumed.clone()).await.unwrap_err();
    world.assert_on_disk(&order, into).await;
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_restored_and_not_resumed_loses_nothing() {
    for fault in [Fault::Fail, Fault::NoJournal] {
        let mut world = durable();
        let (order, into) = world.paused(FULL).await;
        let is_away = matches!(fault, Fault::NoJournal);
        world.runtime.at("init", fault);
        let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
        world.node.start(resumed.clone()).await.unwrap_err();
        if is_away {
            world.runtime.mend_journal();
        }
        world.assert_paused(&order, into, FULL).await;
        assert_eq!(
            world.outcome(&order).await,
            Some(VOLATILE),
            "its processes have gone on"
        );
        world.restart().await.unwrap();
        world.assert_paused(&order, into, FULL).await;
        world.node.start(resumed.clone()).await.unwrap();
        world.assert_runs(&resumed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_dies_between_a_restore_and_its_news_keeps_what_went_on() {
    let mut world = durable();
    let (order, into) = world.paused(FULL).await;
    world.runtime.at("init", Fault::Wait(Arc::new(Notify::new())));
    let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
    let start = world.node.start(resumed.clone());
    tokio::time::timeout(Duration::from_millis(10), start)
        .await
        .unwrap_err();
    world.restart().await.unwrap();
    world.assert_paused(&order, into, FULL).await;
    assert_eq!(world.outcome(&order).await, Some(VOLATILE));
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}

#[tokio::test(start_paused = true)]
async fn what_boots_from_a_disk_gives_up_the_memory_beside_it_first() {
    for (at, fault) in [("start", Fault::Fail), ("init", Fault::Fail)] {
        let world = durable();
        let (order, into) = world.paused(FULL).await;
        world.runtime.at(at, fault);
        let from_disk = world.next(&order, OrderOrigin::Paused(into, DISK));
        world.node.start(from_disk).await.unwrap_err();
        world.assert_disk_only(&order, into).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_paused_sandbox_whose_memory_lay_on_disk() {
    let world = durable();
    let (order, _) = world.paused(FULL).await;
    world.kill(&order, KillReason::Requested).await.unwrap();
    world.assert_nothing_of(&order).await;
    assert!(!world.runtime.has_memory(order.sandbox));
}

#[tokio::test(start_paused = true)]
async fn an_auto_pause_tells_where_memory_is_and_whether_envd_answered() {
    let world = durable();
    let order = world.running_until(OnTimeout::Pause(FULL)).await;
    let mut events = world.node.events();
    world.runtime.at("word", Fault::Fail);
    tokio::time::sleep(LIFE + SOON).await;
    let heard = told(&mut events);
    let outcome = PauseOutcome {
        envd_unresponsive: true,
        ..DURABLE
    };
    let [NodeEvent::Pausing(..), NodeEvent::Paused(id, _, into, how)] = heard[..] else {
        panic!("{heard:?}");
    };
    assert_eq!((id, how), (order.sandbox, outcome));
    assert_eq!(
        world.outcome(&order).await,
        Some(outcome),
        "who missed the event is told by the report"
    );
    assert_eq!(world.held(&order).await.unwrap().1, HeldState::Paused(into, FULL));
}

#[tokio::test(start_paused = true)]
async fn pauses_of_before_memory_could_be_written_down_are_understood() {
    let mut world = World::new();
    let (order, into) = world.paused(FULL).await;
    let text = fs::read_to_string(world.entry(&order)).unwrap();
    let old = text.replace(r#","kept":{"memory":"volatile","envd_unresponsive":false}"#, "");
    let old = old.replace(r#","volumes":[]"#, "");
    assert!(old.len() + 60 < text.len(), "{text}");
    fs::write(world.entry(&order), old).unwrap();
    world.restart().await.unwrap();
    world.assert_paused(&order, into, FULL).await;
    assert_eq!(world.outcome(&order).await, Some(VOLATILE));
    let resumed = world.next(&order, OrderOrigin::Paused(into, FULL));
    world.node.start(resumed.clone()).await.unwrap();
    world.assert_runs(&resumed).await;
}
