//! What is built, from what, and what is not built again.
use std::collections::BTreeMap;
use std::sync::Arc;

use model::recipe::{Base, Context, Recipe};
use model::{BuildStep, Memory};
use ports::builds::BuildError;
use ports::{Level, Node};
use tokio::sync::Notify;

use super::{ends, on_template, one_of_each};
use crate::world::{Act, Bench, Fault, Ran, SOON, run};

#[tokio::test(start_paused = true)]
async fn a_template_is_built_step_by_step() {
    let bench = Bench::with_upload();
    bench.world.runtime.guest().act(
        "make",
        Act {
            stdout: b"one\ntwo\n".to_vec(),
            stderr: b"careful".to_vec(),
            ..ends(0)
        },
    );
    let (build, outcome) = bench.build_steps(one_of_each()).await;
    let built = outcome.built.as_ref().unwrap();
    let env = [("LANG", "C"), ("HERE", "/root/x")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let context = Context {
        user: "other".to_owned(),
        workdir: Some("/app".to_owned()),
        env: env.to_vec(),
    };
    assert_eq!(
        (&built.context, &built.start, built.memory),
        (&context, &None, Memory::None)
    );
    let result = bench.world.runtime.content(build).unwrap();
    assert_eq!(
        result.disk,
        [
            "user user",
            "mkdir /app",
            "copy src/* to",
            "user other",
            "run make"
        ]
    );
    assert!(result.is_sealed && result.memory.is_none());
    let ran = Ran {
        command: "make".to_owned(),
        user: "other".to_owned(),
        cwd: context.workdir,
        env: BTreeMap::from(env),
    };
    assert_eq!(bench.world.runtime.ran(), [ran]);
    let (copy, bytes) = bench.world.runtime.guest().copied().remove(0);
    assert_eq!(&bytes[..], super::A_TAR);
    assert_eq!(
        (copy.user.as_str(), copy.workdir.as_deref(), copy.mode),
        ("user", Some("/app"), Some(0o755))
    );
    assert_eq!(bench.world.runtime.machine_count(), 0);
    assert_eq!(bench.loose(), [build]);
    let said = outcome.said(Level::Info);
    for (at, begins) in [
        (0, "[base] FROM image ["),
        (1, "[builder 1/5] ENV HERE=$HOME/x ["),
        (5, "[builder 5/5] RUN make ["),
    ] {
        assert!(said[at].starts_with(begins), "{said:?}");
    }
    assert_eq!(
        said[6..9],
        [
            "[builder 5/5] [stdout]: one",
            "[builder 5/5] [stdout]: two",
            "[builder 5/5] [stderr]: careful"
        ]
    );
    assert!(said[9].starts_with("[finalize] "), "{said:?}");
    assert_eq!(outcome.lines.last().unwrap().step, Some(BuildStep::Finalize));
    let spec = bench.world.runtime.specs().remove(0);
    assert_eq!(spec.network, model::NetworkPolicy::default());
}

#[tokio::test(start_paused = true)]
async fn what_was_done_before_is_not_done_again() {
    let bench = Bench::with_upload();
    let (first, _) = bench.build_steps(one_of_each()).await;
    bench.world.runtime.steps();
    let (second, outcome) = bench.build_steps(one_of_each()).await;
    assert_eq!(
        bench.world.runtime.steps(),
        ["remove", "seal"],
        "no machine was needed"
    );
    assert_eq!(*bench.registry.pulls.lock().unwrap(), 1);
    assert_ne!(first, second);
    assert_eq!(bench.disk(first), bench.disk(second));
    assert_eq!(outcome.built.as_ref().unwrap().context.user, "other");
    let said = outcome.said(Level::Info);
    assert!(
        said[..6].iter().all(|line| line.starts_with("CACHED [")),
        "{said:?}"
    );

    let mut steps = one_of_each();
    steps[4] = run("make other");
    let (third, outcome) = bench.build_steps(steps).await;
    let said = outcome.said(Level::Info);
    assert!(said[4].starts_with("CACHED [builder 4/5] USER"), "{said:?}");
    assert!(said[5].starts_with("[builder 5/5] RUN make other"), "{said:?}");
    assert_eq!(bench.disk(third).last().unwrap(), "run make other");
    assert_eq!(
        bench.world.runtime.ran().last().unwrap().user,
        "other",
        "with what was kept"
    );
}

#[tokio::test(start_paused = true)]
async fn a_base_that_was_got_before_is_not_got_again() {
    let bench = Bench::new();
    bench.build_steps(vec![run("a")]).await.1.built.unwrap();
    let (build, outcome) = bench.build_steps(vec![run("b")]).await;
    assert!(outcome.said(Level::Info)[0].starts_with("CACHED [base]"));
    assert_eq!(*bench.registry.pulls.lock().unwrap(), 1);
    assert_eq!(bench.disk(build), ["user user", "run b"]);
    assert_eq!(
        outcome.built.unwrap().context.env,
        [("LANG".to_owned(), "C".to_owned())]
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_and_is_not_here_is_done_again() {
    let bench = Bench::new();
    bench.build_steps(vec![run("a"), run("b")]).await.1.built.unwrap();
    let all = bench.world.node.builds().await.unwrap();
    bench.world.node.remove_builds(&all).await.unwrap();
    let (build, outcome) = bench.build_steps(vec![run("a"), run("b")]).await;
    outcome.built.unwrap();
    assert_eq!(bench.disk(build), ["user user", "run a", "run b"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_forced_is_done_again() {
    let bench = Bench::new();
    bench.build_steps(vec![run("a"), run("b")]).await.1.built.unwrap();
    bench.world.runtime.ran();
    let mut steps = vec![run("a"), run("b")];
    steps[1].force = true;
    bench.build_steps(steps).await.1.built.unwrap();
    assert_eq!(bench.world.runtime.ran().len(), 1);
    let forced = Recipe {
        force: true,
        ..bench.recipe(vec![run("a"), run("b")])
    };
    let outcome = bench.build(&bench.order(forced)).await;
    assert!(
        outcome
            .said(Level::Info)
            .iter()
            .all(|line| !line.starts_with("CACHED"))
    );
    assert_eq!(bench.world.runtime.ran().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_template_of_a_template_goes_on_where_that_ends() {
    let bench = Bench::new();
    let (order, base) = on_template(&bench, vec![run("more")]);
    let outcome = bench.build(&order).await;
    assert_eq!(outcome.built.as_ref().unwrap().context.user, "me");
    assert!(outcome.said(Level::Info)[0].starts_with("[base] FROM TEMPLATE base ["));
    assert_eq!(bench.disk(order.build), ["made before", "run more"]);
    assert_eq!(bench.world.runtime.ran()[0].user, "me");
    assert_eq!(*bench.registry.pulls.lock().unwrap(), 0);
    assert!(bench.world.runtime.content(base).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_template_of_a_template_without_a_step_is_a_build_of_its_own() {
    let bench = Bench::new();
    let (order, base) = on_template(&bench, Vec::new());
    bench.build(&order).await.built.unwrap();
    bench.world.node.remove_builds(&[base]).await.unwrap();
    assert_eq!(bench.disk(order.build), ["made before"]);
    assert_eq!(bench.world.runtime.content(order.build).unwrap().memory, None);
}

#[tokio::test(start_paused = true)]
async fn a_base_that_is_not_here_is_the_node_s_fault() {
    let bench = Bench::new();
    let (order, base) = on_template(&bench, Vec::new());
    bench.world.node.remove_builds(&[base]).await.unwrap();
    assert!(matches!(
        bench.build(&order).await.built,
        Err(BuildError::Node { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_became_another_meanwhile_is_kept_under_no_wrong_name() {
    let bench = Bench::new();
    *bench.registry.is_moved.lock().unwrap() = true;
    let (build, outcome) = bench.build_steps(vec![run("a")]).await;
    assert!(matches!(outcome.built, Err(BuildError::Node { .. })));
    assert!(bench.shelf.kept.lock().unwrap().is_empty());
    bench.assert_nothing_of(build).await;
    *bench.registry.is_moved.lock().unwrap() = false;
    bench.build_steps(vec![run("a")]).await.1.built.unwrap();
}

#[tokio::test(start_paused = true)]
async fn images_that_are_not_there_are_told_and_registries_that_are_away_are_not_the_recipe_s_fault() {
    let bench = Bench::new();
    let from = |reference: &str| Recipe {
        from: Base::Image {
            reference: reference.to_owned(),
            credentials: None,
        },
        ..bench.recipe(Vec::new())
    };
    let failure = bench.build(&bench.order(from("none"))).await.failure();
    assert_eq!(
        (failure.message.as_str(), failure.step),
        ("there is no image none", Some(BuildStep::Base))
    );
    let outcome = bench.build(&bench.order(from("away"))).await;
    let Err(BuildError::Away(told)) = outcome.built else {
        panic!("{:?}", outcome.built)
    };
    assert_eq!(
        (told.message.as_str(), told.step),
        (
            "getting the image away failed: the registry is away",
            Some(BuildStep::Base)
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_registry_builds_from_templates_only() {
    let mut bench = Bench::new();
    bench.world.stop();
    let failure = bench.build_steps(Vec::new()).await.1.failure();
    assert!(failure.message.contains("pulls no images"), "{failure:?}");
    let (order, _) = on_template(&bench, vec![run("a")]);
    bench.build(&order).await.built.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_image_that_two_templates_begin_with_is_made_a_build_once() {
    let bench = Bench::new();
    let go = Arc::new(Notify::new());
    bench.world.runtime.at("import", Fault::Wait(Arc::clone(&go)));
    let (one, other) = (
        bench.order(bench.recipe(vec![run("a")])),
        bench.order(bench.recipe(vec![run("b")])),
    );
    let both = async { tokio::join!(bench.build(&one), bench.build(&other)) };
    let later = async {
        tokio::time::sleep(SOON).await;
        go.notify_one();
    };
    let ((one, other), ()) = tokio::join!(both, later);
    one.built.unwrap();
    other.built.unwrap();
    let imports = bench
        .world
        .runtime
        .steps()
        .into_iter()
        .filter(|step| *step == "import");
    assert_eq!(imports.count(), 1);
}
