//! Start commands, ready commands, and what sandboxes start from.
use std::time::Duration;

use model::recipe::Recipe;
use model::{BuildStep, Memory};
use ports::Level;

use super::{ends, on_template, serve, serving};
use crate::world::{Act, Bench, Fault, SOON};

#[tokio::test(start_paused = true)]
async fn a_start_command_runs_in_the_result_where_memory_can_be_kept() {
    let bench = Bench::new();
    bench.world.runtime.set_durable(true);
    bench.world.runtime.guest().act("serve", Act::default());
    let not_yet = Act { times: 3, ..ends(1) };
    bench.world.runtime.guest().act("is-up", not_yet);
    let order = bench.order(serving(&bench, Some("is-up")));
    let begun = tokio::time::Instant::now();
    let outcome = bench.build(&order).await;
    assert_eq!(begun.elapsed().as_secs(), 6, "every two seconds");
    let built = outcome.built.as_ref().unwrap();
    assert_eq!((&built.start, built.memory), (&Some(serve()), Memory::Durable));
    let result = bench.world.runtime.content(order.build).unwrap();
    assert_eq!(result.memory.unwrap(), ["serve"]);
    let steps = bench.world.runtime.steps();
    let end = steps.len() - 3;
    assert_eq!(steps[end..], ["quiesce", "checkpoint memory", "stop"]);
    let ran = bench.world.runtime.ran();
    let [install, serve, ready @ ..] = &ran[..] else {
        panic!()
    };
    assert_eq!(
        (install.command.as_str(), serve.command.as_str()),
        ("install", "serve")
    );
    assert_eq!(serve.cwd.as_deref(), Some("/srv"));
    assert_eq!(serve.env["LANG"], "C");
    assert_eq!(ready.len(), 4);
    let said = outcome.said(Level::Info);
    assert!(said.contains(&"Running start command: serve") && said.contains(&"Template is ready"));
}

#[tokio::test(start_paused = true)]
async fn a_start_command_is_run_at_boot_where_memory_cannot_be_kept() {
    for is_durable in [true, false] {
        let bench = Bench::new();
        bench.world.runtime.set_durable(is_durable);
        bench.world.runtime.at("checkpoint memory", Fault::Fail);
        bench.world.runtime.guest().act("serve", Act::default());
        let order = bench.order(serving(&bench, None));
        let begun = tokio::time::Instant::now();
        let outcome = bench.build(&order).await;
        assert_eq!(
            begun.elapsed().as_secs(),
            20,
            "what it has, where nobody says when it is up"
        );
        let built = outcome.built.as_ref().unwrap();
        assert_eq!((&built.start, built.memory), (&Some(serve()), Memory::None));
        assert_eq!(bench.world.runtime.content(order.build).unwrap().memory, None);
        let steps = bench.world.runtime.steps();
        let end = steps.len() - 3;
        assert_eq!(steps[end..], ["shut down", "checkpoint", "stop"]);
        let warned = outcome.said(Level::Warn);
        assert_eq!(warned.len(), usize::from(is_durable), "{warned:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_step_left_running_is_not_in_the_result() {
    let bench = Bench::new();
    bench.world.runtime.set_durable(true);
    bench.world.runtime.guest().act("serve", Act::default());
    let order = bench.order(serving(&bench, Some("true")));
    bench.build(&order).await.built.unwrap();
    let specs = bench.world.runtime.specs();
    assert_eq!(specs.len(), 2, "one for the steps, one for the end");
    assert!(specs.iter().all(|spec| !spec.restore));
    let kept = bench.shelf.kept.lock().unwrap();
    assert!(
        kept.values().any(|step| step.build == specs[1].build),
        "of the last step"
    );
}

#[tokio::test(start_paused = true)]
async fn a_start_command_that_fails_fails_the_build_and_one_that_ends_well_does_not() {
    let bench = Bench::new();
    bench.world.runtime.guest().act("serve", ends(2));
    bench
        .world
        .runtime
        .guest()
        .act("is-up", Act { times: 9, ..ends(1) });
    let order = bench.order(serving(&bench, Some("is-up")));
    let failure = bench.build(&order).await.failure();
    assert_eq!(failure.step, Some(BuildStep::Finalize));
    assert_eq!(
        failure.message,
        "the start command ended with exit code 2 before the template was ready: serve"
    );
    bench.assert_nothing_of(order.build).await;
    bench.world.runtime.guest().act("serve", ends(0));
    bench.build(&order).await.built.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_template_that_does_not_get_ready_is_given_up() {
    for never in [ends(1), Act::default()] {
        let bench = Bench::new();
        bench.world.runtime.guest().act("serve", Act::default());
        bench.world.runtime.guest().act("is-up", never);
        let order = bench.order(serving(&bench, Some("is-up")));
        let begun = tokio::time::Instant::now();
        let failure = bench.build(&order).await.failure();
        assert!(
            failure.message.contains("within 10m") || failure.message.contains("stopped answering"),
            "{failure:?}"
        );
        assert!(begun.elapsed() <= Duration::from_secs(601));
        bench.assert_nothing_of(order.build).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ready_command_without_a_start_command_is_waited_for() {
    let bench = Bench::new();
    bench
        .world
        .runtime
        .guest()
        .act("is-up", Act { times: 2, ..ends(1) });
    let recipe = Recipe {
        ready: Some("is-up".to_owned()),
        ..bench.recipe(Vec::new())
    };
    let order = bench.order(recipe);
    let built = bench.build(&order).await.built.unwrap();
    assert_eq!((built.start, built.memory), (None, Memory::None));
    assert_eq!(bench.world.runtime.ran().len(), 3);
    assert_eq!(
        bench.disk(order.build),
        ["user user"],
        "what the command wrote is not in it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_start_command_is_inherited_where_the_recipe_names_none() {
    let bench = Bench::new();
    bench.world.runtime.set_durable(true);
    for own in [None, Some("own".to_owned())] {
        let (mut order, _) = on_template(&bench, Vec::new());
        order.base.as_mut().unwrap().start = Some(serve());
        order.recipe.start.clone_from(&own);
        bench.world.runtime.guest().act("serve", Act::default());
        bench.world.runtime.guest().act("own", Act::default());
        let built = bench.build(&order).await.built.unwrap();
        let start = built.start.unwrap();
        let expected = own.clone().unwrap_or("serve".to_owned());
        assert_eq!(start.command, expected);
        assert_eq!(start.user, if own.is_some() { "me" } else { "user" });
        assert_eq!(
            bench.world.runtime.content(order.build).unwrap().memory.unwrap(),
            [expected]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_at_the_end_leaves_nothing_and_is_built_the_next_time() {
    for is_durable in [true, false] {
        for (at, faults) in [
            ("start", 1),
            ("init", 1),
            ("run", 1),
            ("checkpoint", 1),
            ("shut down", 1),
        ] {
            let bench = Bench::new();
            bench.build_steps(Vec::new()).await.1.built.unwrap();
            bench.world.runtime.set_durable(is_durable);
            if is_durable {
                // So that its disk is copied alone.
                bench.world.runtime.at("checkpoint memory", Fault::Fail);
            }
            for _ in 0..faults {
                bench.world.runtime.at(at, Fault::Fail);
            }
            let recipe = Recipe {
                start: Some("serve".to_owned()),
                ..bench.recipe(Vec::new())
            };
            bench.world.runtime.guest().act("serve", Act::default());
            let order = bench.order(recipe);
            let outcome = bench.build(&order).await;
            assert!(outcome.built.is_err(), "{at}");
            let built = |build| bench.world.runtime.content(build).is_some();
            tokio::time::sleep(SOON).await;
            assert!(!built(order.build), "{at}");
            assert_eq!(bench.world.runtime.machine_count(), 0);
            bench.build(&order).await.built.unwrap();
            assert!(built(order.build), "{at}");
        }
    }
}
