//! Creating sandboxes.

use std::time::Duration;

use model::{BuildId, KillReason, Kind, MiB, PauseMode, State};
use ports::store::contract;
use ports::{Bus, ManagerError, NodeError, NodeEvent, SandboxManager};

use crate::world::{World, request};

fn broken() -> NodeError {
    NodeError::Failed {
        step: "mounting the disk",
        kind: Kind::Internal,
        source: "no loop device".into(),
    }
}

#[tokio::test]
async fn a_created_sandbox_runs_and_is_routed_with_its_tokens() {
    let world = World::new().await;
    let mut happenings = world.bus.subscribe();
    let mut request = request();
    request.network.public_traffic = Some(false);
    request.env.insert("A".to_owned(), "mine".to_owned());
    let granted = world.try_create(request).await.unwrap();
    let id = granted.sandbox.id;
    assert_eq!(granted.sandbox, world.stored(id).await);
    assert_eq!(granted.sandbox.phase.state(), Some(State::Running));
    assert_eq!(granted.sandbox.alias.as_deref(), Some("base"));
    let route = world.route(id).await.unwrap();
    assert_eq!(route.envd_token, granted.envd_token);
    assert_eq!(route.traffic_token, granted.traffic_token);
    assert!(route.envd_token.is_some() && route.traffic_token.is_some());
    let order = &world.node.held()[&id].order;
    assert_eq!(order.envd_token, granted.envd_token);
    assert_eq!(order.deadline, granted.sandbox.end_at);
    assert_eq!(order.env["A"], "mine");
    assert_eq!(world.orchestrator.get(world.team.id, id).await.unwrap(), granted);
    let happening = happenings.recv().await.unwrap();
    assert_eq!((&*happening.what, happening.sandbox), ("sandbox.created", id));
    world.assert_agreed().await;
}

#[tokio::test]
async fn the_intent_is_stored_and_nothing_is_shown_before_the_node_has_it() {
    let world = World::new().await;
    let gate = world.node.hold_back("start");
    let create = tokio::spawn({
        let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
        async move { orchestrator.create(team, request()).await }
    });
    gate.reached().await;
    let sandbox = world.only().await;
    assert_eq!(sandbox.phase.name(), "starting");
    // Nobody knows the id yet.
    let route = world.route(sandbox.id).await;
    assert_eq!(route.map(|route| route.seat), sandbox.phase.seat());
    let seen = world.orchestrator.get(world.team.id, sandbox.id).await;
    assert!(matches!(seen, Err(ManagerError::NotFound(_))));
    assert_eq!(
        world
            .orchestrator
            .list(contract::everything(world.team.id))
            .await
            .unwrap()
            .sandboxes,
        []
    );
    // The reconciler leaves what is being started alone.
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(sandbox.id).await, "starting");
    drop(gate);
    create.await.unwrap().unwrap();
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_failed_start_leaves_nothing() {
    let world = World::with_team(|team| team.quota.sandboxes = 1).await;
    world.node.fail("start", broken());
    let error = world.try_create(request()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(
        !error.to_string().contains("loop"),
        "inner causes stay inside: {error}"
    );
    assert_eq!(world.store.live().await.unwrap(), []);
    world.assert_agreed().await;
    // Nor does it hold a share of the quota.
    world.create().await;
}

#[tokio::test]
async fn a_full_node_is_no_capacity_with_its_reason() {
    let world = World::new().await;
    world.node.fail(
        "start",
        NodeError::Full {
            what: "memory",
            retry_after: None,
        },
    );
    let error = world.try_create(request()).await.unwrap_err();
    assert!(matches!(error, ManagerError::NoCapacity(_)));
    assert!(error.to_string().contains("out of memory"), "{error}");
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_a_whole_sandbox() {
    let world = World::new().await;
    let gate = world.node.hold_back("start");
    let create = tokio::spawn({
        let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
        async move { orchestrator.create(team, request()).await }
    });
    gate.reached().await;
    create.abort();
    assert!(create.await.unwrap_err().is_cancelled());
    let id = world.only().await.id;
    drop(gate);
    world.until(id, "running").await;
    world.assert_agreed().await;
}

#[tokio::test]
async fn one_that_ends_while_it_starts_is_a_failed_create() {
    let world = World::new().await;
    let _running = world.run();
    crate::world::eventually(async || world.node.is_heard()).await;
    let gate = world.node.hold_back("start");
    let create = tokio::spawn({
        let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
        async move { orchestrator.create(team, request()).await }
    });
    gate.reached().await;
    let sandbox = world.only().await;
    let execution = sandbox.phase.seat().unwrap().execution;
    world
        .node
        .tell(NodeEvent::Ended(sandbox.id, execution, KillReason::Crashed));
    world.until(sandbox.id, "gone").await;
    drop(gate);
    let error = create.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    world.assert_agreed().await;
}

#[tokio::test]
async fn a_template_is_found_by_name_namespace_id_and_tag() {
    let world = World::new().await;
    let mut public = contract::template(crate::world::stranger(), "shared");
    public.public = true;
    public.tag(["v1".to_owned()], BuildId::random(), model::Settings::default());
    world.templates.insert(&public).await.unwrap();
    let other = contract::team("other");
    world.teams.insert_team(&other).await.unwrap();
    let private = contract::template(other.id, "private");
    world.templates.insert(&private).await.unwrap();

    let create = async |text: &str| {
        let mut request = request();
        request.template = text.parse().unwrap();
        world
            .try_create(request)
            .await
            .map(|granted| (granted.sandbox.template, granted.sandbox.build))
    };
    let base = (world.base.id, world.base.tags["default"]);
    assert_eq!(create("base").await.unwrap(), base);
    assert_eq!(create("acme/base:default").await.unwrap(), base);
    assert_eq!(create(world.base.id.as_str()).await.unwrap(), base);
    assert_eq!(create("shared:v1").await.unwrap(), (public.id, public.tags["v1"]));
    let error = create("base:nope").await.unwrap_err();
    assert_eq!(error.to_string(), "tag 'nope' does not exist for template 'base'");
    let error = create("nope").await.unwrap_err();
    assert_eq!(error.to_string(), "template 'nope' not found");
    // What a team may not see is not there, however it is called.
    let error = create("other/private").await.unwrap_err();
    assert_eq!(error.to_string(), "template 'other/private' not found");
    assert!(matches!(
        create("private").await,
        Err(ManagerError::NoTemplate(_))
    ));
    assert!(matches!(
        create("nobody/base").await,
        Err(ManagerError::NoTemplate(_))
    ));
    assert!(matches!(
        create(private.id.as_str()).await,
        Err(ManagerError::NoTemplate(_))
    ));
    world.assert_agreed().await;
}

#[tokio::test]
async fn spawns_are_counted() {
    let world = World::new().await;
    world.create().await;
    let counted = async || {
        world
            .templates
            .get(world.base.id)
            .await
            .unwrap()
            .unwrap()
            .spawn_count
            == 1
    };
    crate::world::eventually(counted).await;
}

#[tokio::test]
async fn a_request_that_is_sent_twice_makes_one_sandbox() {
    let world = World::new().await;
    let keyed = |digest: u8| {
        let mut request = request();
        request.idempotency = Some(("key".to_owned(), [digest; 32]));
        request
    };
    let gate = world.node.hold_back("start");
    let first = tokio::spawn({
        let (orchestrator, team, request) = (world.orchestrator.clone(), world.team.id, keyed(1));
        async move { orchestrator.create(team, request).await }
    });
    gate.reached().await;
    assert!(matches!(
        world.try_create(keyed(1)).await,
        Err(ManagerError::IdempotencyInProgress)
    ));
    drop(gate);
    let first = first.await.unwrap().unwrap();
    assert_eq!(world.try_create(keyed(1)).await.unwrap(), first);
    assert!(matches!(
        world.try_create(keyed(2)).await,
        Err(ManagerError::IdempotencyMismatch)
    ));
    assert_eq!(world.only().await.id, first.sandbox.id);
}

#[tokio::test]
async fn a_key_whose_sandbox_is_forgotten_says_so_and_makes_no_second_one() {
    let world = World::new().await;
    let mut request = request();
    request.idempotency = Some(("key".to_owned(), [1; 32]));
    let id = world.try_create(request.clone()).await.unwrap().sandbox.id;
    world.kill(id).await.unwrap();
    assert_eq!(world.try_create(request.clone()).await.unwrap().sandbox.id, id);
    world.clock.advance(Duration::from_secs(3700));
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(world.phase(id).await, "forgotten");
    let error = world.try_create(request).await.unwrap_err();
    assert!(matches!(error, ManagerError::IdempotencyOutcomeUnknown));
    assert_eq!(world.store.live().await.unwrap(), []);
}

#[tokio::test]
async fn a_keyed_request_that_failed_may_be_sent_again() {
    let world = World::new().await;
    let mut request = request();
    request.idempotency = Some(("key".to_owned(), [1; 32]));
    world.node.fail("start", broken());
    world.try_create(request.clone()).await.unwrap_err();
    world.try_create(request).await.unwrap();
}

#[tokio::test]
async fn concurrent_sandboxes_are_limited_and_pauses_and_kills_give_back() {
    let world = World::with_team(|team| team.quota.sandboxes = 2).await;
    let (one, two) = (world.create().await.sandbox.id, world.create().await.sandbox.id);
    let error = world.try_create(request()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (Kind::Exhausted, None));
    world.kill(one).await.unwrap();
    let three = world.create().await.sandbox.id;
    world.pause(two).await.unwrap();
    world.create().await;
    // A resume needs a share again, and without one it stays paused.
    let resumed = world
        .orchestrator
        .resume(world.team.id, two, Duration::from_secs(60), PauseMode::Full, None)
        .await;
    assert_eq!(resumed.unwrap_err().kind(), Kind::Exhausted);
    assert_eq!(world.phase(two).await, "paused");
    world.kill(three).await.unwrap();
    world
        .orchestrator
        .resume(world.team.id, two, Duration::from_secs(60), PauseMode::Full, None)
        .await
        .unwrap();
    world.assert_agreed().await;
}

#[tokio::test]
async fn quotas_hold_among_creates_at_the_same_time_and_over_a_restart() {
    let mut world = World::with_team(|team| team.quota.memory = MiB(3 * 1024)).await;
    let creates = (0..8).map(|_| world.try_create(request()));
    let created = futures_util::future::join_all(creates)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert_eq!(created, 3);
    world.reborn(None);
    world.orchestrator.settle_now().await.unwrap();
    assert_eq!(
        world.try_create(request()).await.unwrap_err().kind(),
        Kind::Exhausted
    );
}

#[tokio::test]
async fn a_pass_counts_what_is_stored_and_was_not_counted() {
    let mut world = World::with_team(|team| team.quota.sandboxes = 1).await;
    let id = world.create().await.sandbox.id;
    // A new process whose first word with its store failed.
    world.reborn(None);
    let _running = world.run();
    crate::world::eventually(async || world.route(id).await.is_some()).await;
    assert_eq!(
        world.try_create(request()).await.unwrap_err().kind(),
        Kind::Exhausted
    );
}

#[tokio::test(start_paused = true)]
async fn starts_are_limited_in_rate_with_twice_as_many_at_once() {
    let world = World::in_memory().await;
    let mut team = contract::team("slow");
    team.quota.creates_per_second = 2;
    world.teams.insert_team(&team).await.unwrap();
    let mut base = contract::template(team.id, "base");
    base.public = true;
    world.templates.insert(&base).await.unwrap();
    let slow = || ports::CreateSandbox {
        starts_per_second: team.quota.creates_per_second,
        ..request()
    };
    for _ in 0..4 {
        world.orchestrator.create(team.id, slow()).await.unwrap();
    }
    let error = world.orchestrator.create(team.id, slow()).await.unwrap_err();
    let wait = error.retry_after().expect("waiting helps");
    assert!(wait <= Duration::from_millis(500), "{wait:?}");
    tokio::time::advance(wait + Duration::from_millis(1)).await;
    world.orchestrator.create(team.id, slow()).await.unwrap();
}

#[tokio::test]
async fn a_life_beyond_the_longest_is_refused() {
    let world = World::with_team(|team| team.quota.life_hours = 1).await;
    let mut request = request();
    request.timeout = Duration::from_secs(3601);
    let error = world.try_create(request).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::Invalid, "Timeout cannot be greater than 1 hours")
    );
    assert_eq!(world.node.calls("start"), 0);
}
