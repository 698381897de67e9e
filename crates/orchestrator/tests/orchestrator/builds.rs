//! Building templates.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use model::recipe::{Action, Base, Recipe, RegistryCredentials, Step};
use model::{
    Build, BuildFailure, BuildId, BuildStatus, BuildStep, Kind, Secret, Template, TemplateId, TemplateRef,
};
use ports::blobs::ByteStream;
use ports::builds::{BuildError, LinesQuery};
use ports::logs::Level;
use ports::store::contract;
use ports::templates::RegisterBuild;
use ports::{Blobs, NodeError, SandboxManager, TemplateError, TemplateManager};

use crate::world::{Fuse, World, eventually, request, stranger};

fn name(text: &str) -> TemplateRef {
    text.parse().unwrap()
}

fn wish(text: &str) -> RegisterBuild {
    RegisterBuild {
        name: name(text),
        tags: Vec::new(),
        cpu: None,
        memory: None,
        free_disk: None,
    }
}

fn run(command: &str) -> Step {
    Step {
        action: Action::Run {
            command: command.to_owned(),
            user: None,
        },
        force: false,
    }
}

fn recipe(steps: &[&str]) -> Recipe {
    Recipe {
        from: Base::Image {
            reference: "registry.example/private:1".to_owned(),
            credentials: Some(RegistryCredentials::Basic {
                username: "me".to_owned(),
                password: Secret::new("hunter2".to_owned()),
            }),
        },
        steps: steps.iter().map(|step| run(step)).collect(),
        start: None,
        ready: None,
        force: false,
    }
}

fn over(template: &str) -> Recipe {
    Recipe {
        from: Base::Template(name(template)),
        ..recipe(&["true"])
    }
}

async fn register(world: &World, text: &str) -> (Template, Build) {
    world
        .orchestrator
        .register(world.team.id, wish(text))
        .await
        .unwrap()
}

async fn start(world: &World, build: &Build, recipe: Recipe) -> Result<(), TemplateError> {
    world
        .orchestrator
        .start(world.team.id, build.template, build.id, recipe)
        .await
}

async fn stored(world: &World, build: BuildId) -> Build {
    world.builds.build(build).await.unwrap().unwrap()
}

/// Waits until a build is over.
async fn over_with(world: &World, build: BuildId) -> BuildStatus {
    eventually(async || stored(world, build).await.status.is_over()).await;
    stored(world, build).await.status
}

async fn failure(world: &World, build: BuildId) -> BuildFailure {
    match over_with(world, build).await {
        BuildStatus::Failed(failure) => failure,
        status => panic!("{status:?}"),
    }
}

async fn log(world: &World, build: BuildId) -> Vec<String> {
    let query = LinesQuery {
        offset: 0,
        limit: 1000,
        level: Level::Debug,
    };
    let lines = world.orchestrator.lines(build, query).await.unwrap();
    lines.into_iter().map(|line| line.message).collect()
}

async fn built(world: &World, text: &str, recipe: Recipe) -> (TemplateId, BuildId) {
    let (template, build) = register(world, text).await;
    start(world, &build, recipe).await.unwrap();
    assert_eq!(over_with(world, build.id).await, BuildStatus::Ready);
    (template.id, build.id)
}

fn bytes(text: &'static str) -> ByteStream {
    futures_util::stream::iter([Ok(text.into())]).boxed()
}

fn node_fault() -> BuildError {
    BuildError::Node {
        step: "starting a machine",
        source: "no slot".into(),
    }
}

#[tokio::test]
async fn a_build_is_named_by_its_tags_when_it_is_ready_and_sandboxes_start_from_it() {
    let world = World::new().await;
    let mut wish = wish("acme/App");
    wish.tags = vec!["latest".to_owned(), "v1".to_owned()];
    (wish.cpu, wish.memory) = (Some(4), Some(model::MiB(512)));
    let (template, build) = world.orchestrator.register(world.team.id, wish).await.unwrap();
    assert_eq!(
        (template.names.as_slice(), &build.status),
        (["app".to_owned()].as_slice(), &BuildStatus::Waiting)
    );
    assert_eq!(build.tags, ["latest", "v1"]);
    assert!(template.tags.is_empty(), "nothing is named before it is there");
    start(&world, &build, recipe(&["make", "make install"]))
        .await
        .unwrap();
    assert_eq!(over_with(&world, build.id).await, BuildStatus::Ready);
    let template = world.templates.get(template.id).await.unwrap().unwrap();
    assert_eq!(template.tags.values().copied().collect::<Vec<_>>(), [build.id; 2]);
    let settings = &template.builds[&build.id];
    assert_eq!((settings.resources.cpu, settings.resources.memory.0), (4, 512));
    assert_eq!(settings.env["STEP"], "2");
    let id = world
        .created_with(|request| request.template = name("app:v1"))
        .await;
    let sandbox = world.stored(id).await;
    assert_eq!((sandbox.build, sandbox.resources.cpu), (build.id, 4));
    assert_eq!(world.node.held()[&id].order.env["STEP"], "2");
    let ended = stored(&world, build.id).await;
    assert!(ended.finished_at.is_some() && ended.node.is_some());
}

#[tokio::test]
async fn nothing_of_a_registrys_credentials_is_left_of_a_build_that_is_over() {
    for is_failure in [false, true] {
        let world = World::new().await;
        let (_, build) = register(&world, "app").await;
        if is_failure {
            world.node.fail_build(BuildError::Recipe(BuildFailure {
                message: "no such image".to_owned(),
                step: Some(BuildStep::Base),
            }));
        }
        start(&world, &build, recipe(&[])).await.unwrap();
        over_with(&world, build.id).await;
        let given = world.node.build_orders().pop().unwrap().recipe.from;
        assert!(matches!(
            given,
            Base::Image {
                credentials: Some(_),
                ..
            }
        ));
        let kept = stored(&world, build.id).await.recipe.unwrap().from;
        assert!(matches!(
            kept,
            Base::Image {
                credentials: None,
                ..
            }
        ));
    }
}

#[tokio::test]
async fn a_failed_build_says_why_and_in_which_step_and_names_nothing() {
    let world = World::new().await;
    let (template, build) = register(&world, "app").await;
    let why = BuildFailure {
        message: "exit status 2".to_owned(),
        step: Some(BuildStep::Step(1)),
    };
    world.node.fail_build(BuildError::Recipe(why.clone()));
    start(&world, &build, recipe(&["make"])).await.unwrap();
    assert_eq!(over_with(&world, build.id).await, BuildStatus::Failed(why));
    assert_eq!(log(&world, build.id).await.last().unwrap(), "exit status 2");
    let template = world.templates.get(template.id).await.unwrap().unwrap();
    assert!(template.tags.is_empty() && template.builds.is_empty());
    let create = world
        .try_create(ports::CreateSandbox {
            template: name("app"),
            ..request()
        })
        .await;
    assert_eq!(
        create.unwrap_err().to_string(),
        "tag 'default' does not exist for template 'app'"
    );
    // A name is not lost by that.
    let (again, _) = register(&world, "app").await;
    assert_eq!(again.id, template.id);
}

#[tokio::test]
async fn a_name_whose_first_build_failed_is_built_again_or_deleted() {
    let world = World::new().await;
    let fail = async |text: &str| {
        world.node.fail_build(BuildError::Recipe(BuildFailure {
            message: "exit status 2".to_owned(),
            step: Some(BuildStep::Step(1)),
        }));
        let (template, build) = register(&world, text).await;
        start(&world, &build, recipe(&["make"])).await.unwrap();
        failure(&world, build.id).await;
        template.id
    };
    let first = fail("app:v1").await;
    // It is listed, with the build that tells why nothing can be started from it.
    let listed = world.templates.list(world.team.id).await.unwrap();
    assert!(
        listed
            .iter()
            .any(|template| template.id == first && template.tags.is_empty())
    );
    let builds = world.orchestrator.builds(world.team.id, first).await.unwrap();
    assert!(matches!(&builds[..], [build] if matches!(build.status, BuildStatus::Failed(_))));
    let (again, build) = built(&world, "app:v1", recipe(&["make"])).await;
    assert_eq!(again, first);
    let id = world
        .created_with(|request| request.template = name("app:v1"))
        .await;
    assert_eq!(world.stored(id).await.build, build);

    let second = fail("other").await;
    let delete = async |text: &str| world.orchestrator.delete(world.team.id, &name(text)).await;
    let no_tag = delete("other:v1").await.unwrap_err();
    assert_eq!(no_tag.kind(), Kind::NotFound);
    delete("other").await.unwrap();
    assert_eq!(world.templates.get(second).await.unwrap(), None);
    assert!(world.builds.builds_of(second).await.unwrap().is_empty());
    // The name is free: for another template.
    let (third, _) = built(&world, "other", recipe(&["make"])).await;
    assert_ne!(third, second);
}

#[tokio::test]
async fn a_broken_upload_is_removed_by_the_build_that_read_it_and_no_newer_one() {
    let world = World::new().await;
    let (template, _) = register(&world, "app").await;
    let it: &dyn TemplateManager = &*world.orchestrator;
    let (team, hash) = (world.team.id, "ab".repeat(32));
    let present = async || it.has_upload(team, template.id, &hash).await.unwrap();
    for is_replaced in [false, true] {
        it.upload(team, &hash, bytes("no tar")).await.unwrap();
        let (_, build) = register(&world, "app").await;
        let gate = world.node.hold_back("discard");
        world.node.discard_upload(&hash);
        start(&world, &build, recipe(&[])).await.unwrap();
        gate.reached().await;
        assert!(present().await);
        if is_replaced {
            it.upload(team, &hash, bytes("a tar")).await.unwrap();
        }
        drop(gate);
        over_with(&world, build.id).await;
        assert_eq!(present().await, is_replaced);
    }
}

#[tokio::test]
async fn an_existing_name_is_the_same_template_and_its_old_build_stays_until_the_new_one_is_ready() {
    let world = World::new().await;
    let (id, first) = built(&world, "app", recipe(&["a"])).await;
    let (template, second) = register(&world, "app").await;
    assert_eq!((template.id, template.build_count), (id, 2));
    let gate = world.node.hold_back("build");
    start(&world, &second, recipe(&["b"])).await.unwrap();
    gate.reached().await;
    let now = async || world.templates.get(id).await.unwrap().unwrap().tags["default"];
    assert_eq!(now().await, first);
    drop(gate);
    over_with(&world, second.id).await;
    assert_eq!(now().await, second.id);
    let builds = world.orchestrator.builds(world.team.id, id).await.unwrap();
    assert_eq!(builds.len(), 2);
}

#[tokio::test]
async fn a_build_is_started_once_and_cancels_what_is_under_way_of_its_template() {
    let world = World::new().await;
    let (_, first) = register(&world, "app").await;
    let mut other_tag = wish("app");
    other_tag.tags = vec!["v2".to_owned()];
    let (_, second) = world
        .orchestrator
        .register(world.team.id, other_tag)
        .await
        .unwrap();
    let gate = world.node.hold_back("build");
    start(&world, &first, recipe(&[])).await.unwrap();
    assert!(matches!(
        start(&world, &first, recipe(&[])).await,
        Err(TemplateError::NotWaiting)
    ));
    gate.reached().await;
    start(&world, &second, recipe(&[])).await.unwrap();
    let told = failure(&world, first.id).await;
    assert!(
        told.message.contains("another build of the template"),
        "{}",
        told.message
    );
    drop(gate);
    assert_eq!(over_with(&world, second.id).await, BuildStatus::Ready);
    assert!(matches!(
        start(&world, &second, recipe(&[])).await,
        Err(TemplateError::NotWaiting)
    ));
    let unknown = world
        .orchestrator
        .start(world.team.id, second.template, BuildId::random(), recipe(&[]))
        .await;
    assert!(matches!(unknown, Err(TemplateError::NoBuild(_))));
}

#[tokio::test]
async fn two_starts_at_once_leave_one_that_is_built() {
    for _ in 0..20 {
        let world = World::in_memory().await;
        let mut builds = Vec::new();
        for tag in ["a", "b"] {
            let mut wish = wish("app");
            wish.tags = vec![tag.to_owned()];
            builds.push(world.orchestrator.register(world.team.id, wish).await.unwrap().1);
        }
        let gate = world.node.hold_back("build");
        let (one, two) = tokio::join!(
            start(&world, &builds[0], recipe(&[])),
            start(&world, &builds[1], recipe(&[]))
        );
        assert!(one.is_ok() && two.is_ok());
        drop(gate);
        let mut ready = 0;
        for build in &builds {
            ready += usize::from(over_with(&world, build.id).await == BuildStatus::Ready);
        }
        assert_eq!(ready, 1);
    }
}

#[tokio::test]
async fn a_build_that_waits_is_superseded_by_one_with_the_same_tag() {
    let world = World::new().await;
    let (_, first) = register(&world, "app:v1").await;
    let (_, other) = register(&world, "app:v2").await;
    let (_, second) = register(&world, "app:v1").await;
    assert!(failure(&world, first.id).await.message.contains("newer build"));
    for build in [other, second] {
        assert_eq!(stored(&world, build.id).await.status, BuildStatus::Waiting);
    }
}

#[tokio::test]
async fn a_cancelled_build_ends_and_names_nothing() {
    let world = World::new().await;
    let (template, waiting) = register(&world, "app").await;
    let cancel = async |build: &Build| {
        let it = &world.orchestrator;
        it.cancel(world.team.id, build.template, build.id).await.unwrap();
    };
    cancel(&waiting).await;
    assert_eq!(
        failure(&world, waiting.id).await.message,
        "the build was cancelled"
    );
    let (_, building) = register(&world, "app").await;
    let gate = world.node.hold_back("build");
    start(&world, &building, recipe(&["a"])).await.unwrap();
    gate.reached().await;
    cancel(&building).await;
    assert_eq!(
        failure(&world, building.id).await.message,
        "the build was cancelled"
    );
    drop(gate);
    // It is over, and stays what it is.
    cancel(&building).await;
    assert_eq!(
        failure(&world, building.id).await.message,
        "the build was cancelled"
    );
    let template = world.templates.get(template.id).await.unwrap().unwrap();
    assert!(template.tags.is_empty());
    let strange = world
        .orchestrator
        .cancel(stranger(), template.id, building.id)
        .await;
    assert!(matches!(strange, Err(TemplateError::NotFound(_))));
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_a_node_is_met_by_another_attempt_and_told() {
    let world = World::in_memory().await;
    let (_, build) = register(&world, "app").await;
    world.node.fail_build(node_fault());
    start(&world, &build, recipe(&["a"])).await.unwrap();
    assert_eq!(over_with(&world, build.id).await, BuildStatus::Ready);
    let told = log(&world, build.id).await;
    assert!(told.iter().any(|line| line == "attempt 1 of 3"), "{told:?}");
    assert!(
        told.iter()
            .any(|line| line.starts_with("attempt 2 of 3: starting a machine failed")),
        "{told:?}"
    );

    let (_, build) = register(&world, "app").await;
    for _ in 0..3 {
        world.node.fail_build(node_fault());
    }
    start(&world, &build, recipe(&["a"])).await.unwrap();
    let told = failure(&world, build.id).await.message;
    assert!(
        told.starts_with("the build did not come to its end in 3 attempts: starting a machine failed"),
        "{told}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_had_from_elsewhere_is_tried_again_and_told_with_its_step() {
    let world = World::in_memory().await;
    let (_, build) = register(&world, "app").await;
    for _ in 0..3 {
        world.node.fail_build(BuildError::Away(BuildFailure {
            message: "registry.test cannot be reached".to_owned(),
            step: Some(BuildStep::Base),
        }));
    }
    start(&world, &build, recipe(&["a"])).await.unwrap();
    let told = failure(&world, build.id).await;
    assert_eq!(
        (told.message.as_str(), told.step),
        (
            "the build did not come to its end in 3 attempts: registry.test cannot be reached",
            Some(BuildStep::Base)
        )
    );
}

#[tokio::test]
async fn what_a_build_starts_from_is_resolved_when_it_starts() {
    let world = World::new().await;
    let (_, base) = built(&world, "tools:v1", recipe(&["make"])).await;
    let mut public = contract::template(stranger(), "shared");
    public.public = true;
    world.templates.insert(&public).await.unwrap();
    for (from, expected) in [
        ("tools:v1", base),
        ("acme/tools:v1", base),
        ("shared", public.tags["default"]),
        ("base", world.base.tags["default"]),
    ] {
        built(&world, "app", over(from)).await;
        let order = world.node.build_orders().pop().unwrap();
        assert_eq!(order.base.unwrap().build, expected, "{from}");
    }
    let context = built(&world, "app", over("tools:v1")).await;
    let order = world
        .node
        .build_orders()
        .into_iter()
        .rfind(|order| order.build == context.1);
    assert_eq!(
        order.unwrap().base.unwrap().context.env,
        [("STEP".to_owned(), "1".to_owned())]
    );
    for (from, told) in [
        ("nope", "template 'nope' not found"),
        ("tools:v2", "tag 'v2' does not exist for template 'tools'"),
        ("tools", "tag 'default' does not exist for template 'tools'"),
    ] {
        let (_, build) = register(&world, "app").await;
        start(&world, &build, over(from)).await.unwrap();
        let failure = failure(&world, build.id).await;
        assert_eq!(
            (failure.message.as_str(), failure.step),
            (told, Some(BuildStep::Base))
        );
    }
}

#[tokio::test]
async fn results_of_steps_are_kept_for_the_team_and_later_builds() {
    let world = World::new().await;
    built(&world, "app", recipe(&["a", "b"])).await;
    let before = world.node.build_ids().len();
    built(&world, "app", recipe(&["a", "b"])).await;
    assert_eq!(
        world.node.build_ids().len(),
        before + 1,
        "the result alone is new"
    );
    built(&world, "app", recipe(&["a", "c"])).await;
    assert_eq!(
        world.node.build_ids().len(),
        before + 3,
        "the last step and the result are new"
    );
}

#[tokio::test]
async fn wrong_wishes_are_refused_by_name() {
    let world = World::new().await;
    let told = async |edit: fn(&mut RegisterBuild)| {
        let mut wish = wish("app");
        edit(&mut wish);
        let error = world
            .orchestrator
            .register(world.team.id, wish)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        error.to_string()
    };
    assert_eq!(
        told(|wish| wish.name.namespace = Some("other".to_owned())).await,
        "namespace 'other' must match your team 'acme'"
    );
    assert_eq!(
        told(|wish| wish.cpu = Some(5)).await,
        "CPU count must be 1 or an even number"
    );
    assert!(
        told(|wish| wish.tags = vec![BuildId::random().to_string()])
            .await
            .starts_with("Invalid tag: ")
    );
    let id = world.create().await.sandbox.id;
    let snapshot = world
        .orchestrator
        .snapshot(world.team.id, id, Some(name("work")), true)
        .await;
    snapshot.unwrap();
    assert!(
        told(|wish| wish.name.name = "work".to_owned())
            .await
            .starts_with("'work' is the name of a snapshot")
    );
    let (_, build) = register(&world, "app").await;
    let long = recipe(&[&"x".repeat(200 << 10)]);
    assert_eq!(
        start(&world, &build, long).await.unwrap_err().kind(),
        Kind::Invalid
    );
    assert_eq!(
        stored(&world, build.id).await.status,
        BuildStatus::Waiting,
        "it may be started rightly"
    );
}

#[tokio::test]
async fn a_team_has_no_more_builds_that_wait_than_it_may_have() {
    let world = World::new().await;
    for n in 0..200 {
        register(&world, &format!("app{n}")).await;
    }
    let error = world
        .orchestrator
        .register(world.team.id, wish("more"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    register(&world, "app3:v2").await;
}

#[tokio::test]
async fn what_is_anothers_is_not_there_or_not_to_be_changed() {
    let world = World::new().await;
    let (private, build) = register(&world, "app").await;
    let mut public = contract::template(stranger(), "shared");
    public.public = true;
    world.templates.insert(&public).await.unwrap();
    let it: &dyn TemplateManager = &*world.orchestrator;
    let (mine, they) = (world.team.id, stranger());
    let hash = "0".repeat(64);
    for outcome in [
        it.start(they, private.id, build.id, recipe(&[])).await,
        it.build(they, private.id, build.id).await.map(drop),
        it.builds(they, private.id).await.map(drop),
        it.has_upload(they, private.id, &hash).await.map(drop),
        it.tag(they, &name("app"), vec!["v1".to_owned()]).await.map(drop),
        it.delete(they, &name(private.id.as_str())).await,
        it.publish(they, &name("acme/app"), true).await.map(drop),
    ] {
        // A stranger's team is not even in the store, which reads as a fault, or it is told that nothing is there.
        let error = outcome.unwrap_err();
        assert!(
            [Kind::NotFound, Kind::Internal].contains(&error.kind()),
            "{error}"
        );
    }
    for outcome in [
        it.delete(mine, &name("shared")).await,
        it.publish(mine, &name("shared"), false).await.map(drop),
        it.tag(mine, &name("shared"), vec!["v1".to_owned()])
            .await
            .map(drop),
        it.builds(mine, public.id).await.map(drop),
    ] {
        let error = outcome.unwrap_err();
        assert!(
            error.to_string().starts_with("you don't have access to template"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn tags_name_builds_and_are_taken_away() {
    let world = World::new().await;
    let (id, first) = built(&world, "app", recipe(&["a"])).await;
    let it: &dyn TemplateManager = &*world.orchestrator;
    let team = world.team.id;
    let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        it.tag(team, &name("app"), tags(&["v1", "Stable"])).await.unwrap(),
        first
    );
    let (_, second) = built(&world, "app", recipe(&["b"])).await;
    let template = async || world.templates.get(id).await.unwrap().unwrap();
    assert_eq!(template().await.tags["v1"], first);
    assert_eq!(
        it.tag(team, &name("acme/app:v1"), tags(&["default"]))
            .await
            .unwrap(),
        first
    );
    assert_eq!(
        template().await.builds.keys().copied().collect::<Vec<_>>(),
        [first]
    );
    assert_ne!(first, second);
    it.untag(team, &name("app"), tags(&["v1", "nope"])).await.unwrap();
    assert!(!template().await.tags.contains_key("v1"));
    for (named, given, told) in [
        ("app", vec![], "At least one tag is required"),
        ("app", tags(&["default"]), "Cannot delete the 'default' tag"),
        (
            "app:v1",
            tags(&["x"]),
            "The template's name must have no tag here: tags are given in 'tags'",
        ),
    ] {
        assert_eq!(
            it.untag(team, &name(named), given).await.unwrap_err().to_string(),
            told
        );
    }
    let none = it.tag(team, &name("app:nope"), tags(&["x"])).await.unwrap_err();
    assert_eq!(none.to_string(), "tag 'nope' does not exist for template 'app'");
    assert_eq!(
        it.tag(team, &name("nope"), tags(&["x"]))
            .await
            .unwrap_err()
            .kind(),
        Kind::NotFound
    );
    let published = it.publish(team, &name("app"), true).await.unwrap();
    assert!(published.public && template().await.public);
}

#[tokio::test]
async fn a_template_is_deleted_with_its_history_and_what_is_under_way() {
    let world = World::new().await;
    let (id, _) = built(&world, "app", recipe(&["a"])).await;
    let user = world.created_with(|request| request.template = name("app")).await;
    let delete = async || world.orchestrator.delete(world.team.id, &name("app")).await;
    let text = format!("cannot delete template '{id}' because there are running sandboxes using it");
    assert_eq!(delete().await.unwrap_err().to_string(), text);
    world.kill(user).await.unwrap();
    let (_, next) = register(&world, "app").await;
    let gate = world.node.hold_back("build");
    start(&world, &next, recipe(&["b"])).await.unwrap();
    gate.reached().await;
    delete().await.unwrap();
    drop(gate);
    assert_eq!(world.templates.get(id).await.unwrap(), None);
    assert!(world.builds.builds_of(id).await.unwrap().is_empty());
    assert_eq!(delete().await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(world.builds.build(next.id).await.unwrap(), None);
}

#[tokio::test]
async fn uploads_are_a_teams_own_and_found_by_their_hash() {
    let world = World::new().await;
    let (template, _) = register(&world, "app").await;
    let it: &dyn TemplateManager = &*world.orchestrator;
    let (team, hash) = (world.team.id, "ab".repeat(32));
    assert!(!it.has_upload(team, template.id, &hash).await.unwrap());
    assert_eq!(it.upload(team, &hash, bytes("a tar")).await.unwrap(), 5);
    assert!(it.has_upload(team, template.id, &hash).await.unwrap());
    let other = it.upload(stranger(), &hash, bytes("another")).await.unwrap();
    assert_eq!((other, world.blobs.list("uploads").await.unwrap().len()), (7, 2));
    for bad in ["", "AB", &"AB".repeat(32), "../../etc/passwd"] {
        assert_eq!(
            it.upload(team, bad, bytes("x")).await.unwrap_err().kind(),
            Kind::Invalid
        );
        assert_eq!(
            it.has_upload(team, template.id, bad).await.unwrap_err().kind(),
            Kind::Invalid
        );
    }
    let broken = futures_util::stream::iter([Ok("half".into()), Err(std::io::Error::other("reset"))]).boxed();
    let error = it.upload(team, &hash, broken).await.unwrap_err();
    assert_eq!(error.to_string(), "The upload broke off; send it again");
    assert!(
        it.has_upload(team, template.id, &hash).await.unwrap(),
        "what was whole stays"
    );
    // So old that it might be gone before the build reads it.
    world.clock.advance(Duration::from_secs(29 * 24 * 3600 + 60));
    assert!(!it.has_upload(team, template.id, &hash).await.unwrap());
}

#[tokio::test]
async fn a_build_that_nobody_starts_is_given_up_after_a_day() {
    let world = World::new().await;
    let (_, build) = register(&world, "app").await;
    let _running = world.run();
    world.clock.advance(Duration::from_secs(25 * 3600));
    let told = failure(&world, build.id).await;
    assert_eq!(
        told.message,
        "the build was not started within a day of its registration"
    );
}

#[tokio::test]
async fn a_build_of_a_process_that_died_is_run_again_a_few_times_and_never_stuck() {
    let mut world = World::new().await;
    let (_, build) = register(&world, "app").await;
    let gate = world.node.hold_back("build");
    start(&world, &build, recipe(&["a"])).await.unwrap();
    gate.reached().await;
    for deaths in 1..3 {
        world.reborn(None);
        let _running = world.run();
        let begun = format!("attempt {} of 3: the server went down", deaths + 1);
        eventually(async || {
            log(&world, build.id)
                .await
                .iter()
                .any(|line| line.starts_with(&begun))
        })
        .await;
        assert_eq!(stored(&world, build.id).await.status, BuildStatus::Building);
    }
    world.reborn(None);
    let _running = world.run();
    let told = failure(&world, build.id).await.message;
    assert!(
        told.starts_with("the build did not come to its end in 3 attempts"),
        "{told}"
    );
    drop(gate);
}

#[tokio::test]
async fn a_stop_of_the_server_leaves_a_build_for_its_next_start() {
    let mut world = World::new().await;
    let (_, build) = register(&world, "app").await;
    let gate = world.node.hold_back("build");
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&world.orchestrator).run(shutdown.clone()));
    start(&world, &build, recipe(&["a"])).await.unwrap();
    gate.reached().await;
    shutdown.cancel();
    running.await.unwrap();
    assert_eq!(stored(&world, build.id).await.status, BuildStatus::Building);
    let late = register(&world, "late").await.1;
    assert!(start(&world, &late, recipe(&[])).await.is_err());
    drop(gate);
    world.reborn(None);
    let _running = world.run();
    assert_eq!(over_with(&world, build.id).await, BuildStatus::Ready);
}

/// Lets the process die at every step of a build; each time, the next process ends it.
#[tokio::test]
async fn a_death_at_any_step_of_a_build_is_settled() {
    for last_happens in [false, true] {
        for effects in 0..60 {
            let mut world = World::in_memory().await;
            let before = world.node.build_ids();
            let fuse = Fuse::new(effects, last_happens);
            world.reborn(Some(fuse.clone()));
            let it = world.orchestrator.clone();
            let begun = async {
                let (_, build) = it.register(world.team.id, wish("app")).await.ok()?;
                let started = it
                    .start(world.team.id, build.template, build.id, recipe(&["a", "b"]))
                    .await;
                started.ok()?;
                Some(build.id)
            };
            let begun = begun.await;
            if let Some(build) = begun {
                // What a dead process would do further, it does to nobody.
                eventually(async || fuse.is_burnt() || stored(&world, build).await.status.is_over()).await;
            }
            let context = format!("dead after {effects} effects (last happens: {last_happens})");
            world.reborn(None);
            let running = world.run();
            for build in world.builds.unfinished_builds().await.unwrap() {
                if build.status == BuildStatus::Building {
                    assert_eq!(over_with(&world, build.id).await, BuildStatus::Ready, "{context}");
                }
            }
            // A registered build is as if it had never been: the name is free for the next.
            let (template, build) = built(&world, "app", recipe(&["a", "b"])).await;
            let named = world.templates.get(template).await.unwrap().unwrap();
            assert_eq!(named.tags["default"], build, "{context}");
            drop(running);
            world
                .orchestrator
                .delete(world.team.id, &name("app"))
                .await
                .expect(&context);
            for kept in world.builds.cached_builds().await.unwrap() {
                world.builds.forget_cached(kept.0).await.unwrap();
            }
            for _ in 0..3 {
                world.clock.advance(Duration::from_secs(61));
                world.orchestrator.collect_now().await.expect(&context);
            }
            assert_eq!(world.node.build_ids(), before, "{context}");
            world.node.assert_right();
            if !fuse.is_burnt() {
                return assert!(begun.is_some(), "{context}");
            }
            if last_happens && effects > 50 {
                panic!("a build has no end");
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_is_away_for_a_moment_fails_no_start_half_way() {
    let world = World::new().await;
    let (_, build) = register(&world, "app").await;
    world.node.fail("build", NodeError::Busy("something else"));
    start(&world, &build, recipe(&["a"])).await.unwrap();
    assert_eq!(over_with(&world, build.id).await, BuildStatus::Ready);
}
