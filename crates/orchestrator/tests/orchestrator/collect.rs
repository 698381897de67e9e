//! What nothing names is removed, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use model::recipe::{Action, Base, Recipe, Step};
use model::{BuildId, BuildStatus, Kind, TemplateRef};
use orchestrator::Collected;
use ports::blobs::ByteStream;
use ports::templates::RegisterBuild;
use ports::{Blobs, Clock, NodeError, SandboxManager, TemplateManager};

use crate::world::{Dice, Fuse, World, eventually};
use futures_util::StreamExt;

const GRACE: Duration = Duration::from_secs(61);
const MINUTE: Duration = Duration::from_secs(60);

fn name(text: &str) -> TemplateRef {
    text.parse().unwrap()
}

fn recipe(base: &str, command: &str) -> Recipe {
    Recipe {
        from: Base::Template(name(base)),
        steps: vec![Step {
            action: Action::Run {
                command: command.to_owned(),
                user: None,
            },
            force: false,
        }],
        start: None,
        ready: None,
        force: false,
    }
}

async fn build(world: &World, text: &str, recipe: Recipe) -> BuildId {
    let wish = RegisterBuild {
        name: name(text),
        tags: Vec::new(),
        cpu: None,
        memory: None,
        free_disk: None,
    };
    let (template, build) = world.orchestrator.register(world.team.id, wish).await.unwrap();
    let started = world
        .orchestrator
        .start(world.team.id, template.id, build.id, recipe)
        .await;
    started.unwrap();
    eventually(async || {
        world
            .builds
            .build(build.id)
            .await
            .unwrap()
            .unwrap()
            .status
            .is_over()
    })
    .await;
    build.id
}

async fn collect(world: &World) -> Collected {
    world.orchestrator.collect_now().await.unwrap()
}

/// Collects until nothing is left to be collected.
async fn collect_all(world: &World) {
    for _ in 0..3 {
        world.clock.advance(GRACE);
        collect(world).await;
    }
    world.node.assert_right();
}

#[tokio::test]
async fn what_nothing_names_is_removed_when_it_was_seen_twice_and_is_old_enough() {
    let world = World::new().await;
    let stray = BuildId::random();
    world.node.add_build(stray);
    let first = collect(&world).await;
    assert_eq!(
        (first.builds, first.named, first.waiting, first.removed),
        (2, 1, 1, 0)
    );
    assert_eq!(
        collect(&world).await.removed,
        0,
        "it may be somebody's who has not told yet"
    );
    world.clock.advance(GRACE);
    let third = collect(&world).await;
    assert_eq!(
        (third.builds, third.named, third.waiting, third.removed),
        (2, 1, 0, 1)
    );
    assert!(!world.node.has_build(stray));
    assert_eq!(collect(&world).await.builds, 1);
}

#[tokio::test]
async fn everything_that_names_a_build_keeps_it() {
    let world = World::new().await;
    let source = world.create().await.sandbox.id;
    let it = &world.orchestrator;
    let snapshot = it
        .snapshot(world.team.id, source, Some(name("work")), true)
        .await
        .unwrap()
        .build;
    let mut forks = it.fork(world.team.id, source, 2, MINUTE).await.unwrap();
    let fork = forks.pop().unwrap().unwrap().sandbox;
    let other = forks.pop().unwrap().unwrap().sandbox;
    let result = build(&world, "app", recipe("base", "make")).await;
    let all = world.node.build_ids();
    assert_eq!(all.len(), 5, "base, snapshot, fork, step, result");
    collect_all(&world).await;
    assert_eq!(world.node.build_ids(), all);
    // A paused one's, too; and each goes when the last that names it has gone.
    world.pause(fork.id).await.unwrap();
    world.kill(other.id).await.unwrap();
    collect_all(&world).await;
    assert!(world.node.has_build(fork.build));
    world.kill(fork.id).await.unwrap();
    collect_all(&world).await;
    assert!(!world.node.has_build(fork.build));
    it.delete(world.team.id, &name("work")).await.unwrap();
    it.delete(world.team.id, &name("app")).await.unwrap();
    collect_all(&world).await;
    assert!(!world.node.has_build(snapshot) && !world.node.has_build(result));
    assert_eq!(world.node.build_ids().len(), 2, "base and the kept step");
}

#[tokio::test]
async fn a_build_that_is_retagged_goes_when_no_sandbox_is_of_it_any_more() {
    let world = World::new().await;
    let first = build(&world, "app", recipe("base", "a")).await;
    let id = world.created_with(|request| request.template = name("app")).await;
    build(&world, "app", recipe("base", "b")).await;
    collect_all(&world).await;
    assert!(world.node.has_build(first));
    world.kill(id).await.unwrap();
    collect_all(&world).await;
    assert!(!world.node.has_build(first));
}

#[tokio::test]
async fn results_of_steps_are_bounded_by_number_and_age() {
    let mut world = World::new().await;
    world.configured(|config| config.steps_kept_max = 2);
    for command in ["a", "b", "c"] {
        world.clock.advance(Duration::from_secs(1));
        build(&world, "app", recipe("base", command)).await;
    }
    assert_eq!(collect(&world).await.steps, 1);
    let kept = world.builds.cached_builds().await.unwrap();
    assert_eq!(kept.len(), 2);
    collect_all(&world).await;
    assert_eq!(
        world.node.build_ids().len(),
        4,
        "base, two steps, the last result"
    );
    world.clock.advance(Duration::from_secs(31 * 24 * 3600));
    assert_eq!(collect(&world).await.steps, 2);
    collect_all(&world).await;
    assert_eq!(world.node.build_ids().len(), 2);
}

#[tokio::test]
async fn what_a_build_under_way_has_made_is_kept_though_nothing_names_it() {
    let world = World::new().await;
    let gate = world.node.hold_back("build");
    let wish = RegisterBuild {
        name: name("app"),
        tags: Vec::new(),
        cpu: None,
        memory: None,
        free_disk: None,
    };
    let it = &world.orchestrator;
    let (template, registered) = it.register(world.team.id, wish).await.unwrap();
    it.start(world.team.id, template.id, registered.id, recipe("base", "make"))
        .await
        .unwrap();
    gate.reached().await;
    // Something that it has told nobody of.
    let secret = BuildId::random();
    world.node.add_build(secret);
    // And what it has told of, and is forgotten meanwhile.
    let step = world.builds.cached_builds().await.unwrap()[0].0;
    world.builds.forget_cached(step).await.unwrap();
    collect_all(&world).await;
    assert!(world.node.has_build(secret) && world.node.has_build(step));
    drop(gate);
    eventually(async || {
        world.builds.build(registered.id).await.unwrap().unwrap().status == BuildStatus::Ready
    })
    .await;
    collect_all(&world).await;
    assert!(!world.node.has_build(secret) && !world.node.has_build(step));
    assert!(world.node.has_build(registered.id));
}

#[tokio::test]
async fn a_node_that_fails_is_asked_again() {
    let world = World::new().await;
    let stray = BuildId::random();
    world.node.add_build(stray);
    world.node.fail("builds", NodeError::Timeout("the list"));
    assert_eq!(collect(&world).await.silent_nodes, 1);
    collect(&world).await;
    world.clock.advance(GRACE);
    world.node.fail(
        "remove_builds",
        NodeError::Failed {
            step: "removing",
            kind: Kind::Internal,
            source: "busy".into(),
        },
    );
    let failed = collect(&world).await;
    assert_eq!((failed.removed, failed.waiting, failed.silent_nodes), (0, 1, 1));
    assert_eq!(collect(&world).await.removed, 1);
    assert!(!world.node.has_build(stray));
}

#[tokio::test]
async fn old_uploads_go_unless_a_build_reads_them() {
    let world = World::new().await;
    let upload = async |hash: &str| {
        let bytes: ByteStream = futures_util::stream::iter([Ok("a tar".into())]).boxed();
        world
            .orchestrator
            .upload(world.team.id, hash, bytes)
            .await
            .unwrap();
    };
    let (used, unused) = ("aa".repeat(32), "bb".repeat(32));
    upload(&used).await;
    upload(&unused).await;
    let gate = world.node.hold_back("build");
    let copy = Recipe {
        steps: vec![Step {
            action: Action::Copy {
                source: ".".to_owned(),
                destination: ".".to_owned(),
                owner: None,
                mode: None,
                files: used.clone(),
            },
            force: false,
        }],
        ..recipe("base", "")
    };
    let wish = RegisterBuild {
        name: name("app"),
        tags: Vec::new(),
        cpu: None,
        memory: None,
        free_disk: None,
    };
    let it = &world.orchestrator;
    let (template, registered) = it.register(world.team.id, wish).await.unwrap();
    it.start(world.team.id, template.id, registered.id, copy)
        .await
        .unwrap();
    gate.reached().await;
    assert_eq!(collect(&world).await.uploads, 0);
    world.clock.advance(Duration::from_secs(31 * 24 * 3600));
    assert_eq!(collect(&world).await.uploads, 1);
    let left = world.blobs.list("uploads").await.unwrap();
    assert!(left.len() == 1 && left[0].key.ends_with(&used));
    drop(gate);
    eventually(async || {
        world
            .builds
            .build(registered.id)
            .await
            .unwrap()
            .unwrap()
            .status
            .is_over()
    })
    .await;
    assert_eq!(collect(&world).await.uploads, 1);
}

/// Whatever is created, copied, built, retagged and deleted while collections run one after another, nothing is removed
/// that somebody uses, and in the end nothing is left that nobody does.
async fn storm(seed: u64) {
    let mut world = World::in_memory().await;
    world.configured(|config| config.steps_kept_max = 1);
    world.reborn(Some(Fuse::jitter(seed)));
    let world = std::sync::Arc::new(world);
    let mut workers = Vec::new();
    for worker in 0..4 {
        let world = world.clone();
        workers.push(tokio::spawn(async move {
            let mut dice = Dice::new(seed * 31 + worker + 1);
            let (it, team) = (&world.orchestrator, world.team.id);
            for _ in 0..12 {
                let text = dice.pick(["base", "app", "work"]);
                match dice.roll(6) {
                    0 | 1 => {
                        let create = ports::CreateSandbox {
                            template: name(text),
                            ..crate::world::request()
                        };
                        let Ok(granted) = it.create(team, create).await else {
                            continue;
                        };
                        let id = granted.sandbox.id;
                        match dice.roll(3) {
                            0 => drop(it.snapshot(team, id, Some(name("work")), true).await),
                            1 => drop(it.fork(team, id, 2, MINUTE).await),
                            _ => {}
                        }
                        if dice.roll(3) > 0 {
                            drop(it.kill(team, id).await);
                        }
                    }
                    2 | 3 => {
                        let wish = RegisterBuild {
                            name: name("app"),
                            tags: vec![dice.pick(["default", "v1"]).to_owned()],
                            cpu: None,
                            memory: None,
                            free_disk: None,
                        };
                        let Ok((template, build)) = it.register(team, wish).await else {
                            continue;
                        };
                        let recipe = recipe(text, &dice.roll(3).to_string());
                        drop(it.start(team, template.id, build.id, recipe).await);
                    }
                    4 => drop(it.delete(team, &name("work")).await),
                    _ => drop(it.untag(team, &name("app"), vec!["v1".to_owned()]).await),
                }
                for _ in 0..dice.roll(4) {
                    tokio::task::yield_now().await;
                }
            }
        }));
    }
    let collecting = tokio::spawn({
        let world = world.clone();
        async move {
            let mut dice = Dice::new(seed);
            loop {
                world.clock.advance(GRACE);
                collect(&world).await;
                match dice.roll(4) {
                    0 => tokio::time::sleep(Duration::from_millis(1)).await,
                    _ => tokio::task::yield_now().await,
                }
            }
        }
    });
    for worker in workers {
        worker.await.unwrap();
    }
    eventually(async || {
        world
            .builds
            .unfinished_builds()
            .await
            .unwrap()
            .iter()
            .all(|build| build.status == BuildStatus::Waiting)
    })
    .await;
    collecting.abort();
    assert!(collecting.await.unwrap_err().is_cancelled());
    world.node.assert_right();
    collect_all(&world).await;
    let mut named: BTreeSet<BuildId> = world.templates.builds().await.unwrap().into_iter().collect();
    named.extend(
        world
            .builds
            .cached_builds()
            .await
            .unwrap()
            .into_iter()
            .map(|(build, _)| build),
    );
    named.extend(
        world
            .store
            .live()
            .await
            .unwrap()
            .into_iter()
            .map(|sandbox| sandbox.build),
    );
    assert_eq!(world.node.build_ids(), named, "seed {seed}");
    world.assert_agreed().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_that_anything_under_way_uses() {
    for seed in 1..40 {
        storm(seed).await;
    }
}

#[tokio::test]
async fn records_of_builds_are_bounded_and_those_that_tags_name_stay() {
    let world = World::new().await;
    let tagged = build(&world, "app:v1", recipe("base", "a")).await;
    let template = world.builds.build(tagged).await.unwrap().unwrap().template;
    let mut failed = Vec::new();
    for seconds in 1..=60 {
        let build = model::Build {
            status: BuildStatus::Failed(model::BuildFailure {
                message: "exit status 1".to_owned(),
                step: None,
            }),
            created_at: world.clock.now() + Duration::from_secs(seconds),
            ..ports::store::contract::build(template)
        };
        world.builds.insert_build(&build).await.unwrap();
        failed.push(build.id);
    }
    let waiting = ports::store::contract::build(template);
    world.builds.insert_build(&waiting).await.unwrap();
    assert_eq!(collect(&world).await.records, 10);
    assert_eq!(collect(&world).await.records, 0);
    let left = world.builds.builds_of(template).await.unwrap();
    let left: BTreeSet<BuildId> = left.into_iter().map(|build| build.id).collect();
    let expected: BTreeSet<BuildId> = failed[10..].iter().copied().chain([tagged, waiting.id]).collect();
    assert_eq!(left, expected);
    // When another takes its tag, it is old as well.
    let next = build(&world, "app:v1", recipe("base", "b")).await;
    collect(&world).await;
    assert_eq!(world.builds.build(tagged).await.unwrap(), None);
    assert!(world.builds.build(next).await.unwrap().is_some());
}
