//! What is told of a build that fails, and what is left of it.
use std::io;

use bytes::Bytes;
use model::BuildStep;
use model::recipe::Recipe;
use ports::builds::BuildError;

use super::{HASH, ends, one_of_each};
use crate::world::{Act, Bench, Fault, SOON, run};

#[tokio::test(start_paused = true)]
async fn a_command_that_fails_ends_the_build_and_is_told_with_its_step() {
    let bench = Bench::new();
    bench.world.runtime.guest().act("false", ends(3));
    let (build, outcome) = bench
        .build_steps(vec![run("true"), run("false"), run("never")])
        .await;
    let failure = outcome.failure();
    assert_eq!(failure.step, Some(BuildStep::Step(2)));
    assert_eq!(failure.message, "the command failed with exit code 3: false");
    bench.assert_nothing_of(build).await;
    assert_eq!(bench.world.runtime.ran().len(), 2);
    // What went well is kept.
    bench.world.runtime.guest().act("false", ends(0));
    bench
        .build_steps(vec![run("true"), run("false")])
        .await
        .1
        .built
        .unwrap();
    assert_eq!(bench.world.runtime.ran().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_envd_does_not_start_is_told() {
    let bench = Bench::new();
    let act = Act {
        refused: Some("cwd '/gone' does not exist"),
        ..Act::default()
    };
    bench.world.runtime.guest().act("make", act);
    let (build, outcome) = bench.build_steps(vec![run("make")]).await;
    let failure = outcome.failure();
    assert_eq!(
        failure.message,
        "the command could not be started: cwd '/gone' does not exist: make"
    );
    bench.assert_nothing_of(build).await;
}

#[tokio::test(start_paused = true)]
async fn what_stands_in_a_step_s_way_is_told() {
    for (fault, word) in [
        (Fault::FillDisk, "its disk of 1024 MiB is full"),
        (
            Fault::OutOfMemory,
            "it ran out of memory, of which it has 512 MiB",
        ),
        (Fault::Die, "the build's sandbox ended by itself"),
    ] {
        for (at, number) in [("run", 5), ("copy", 3), ("env", 1), ("workdir", 2)] {
            let bench = Bench::with_upload();
            bench.world.runtime.at(at, fault.clone());
            let (build, outcome) = bench.build_steps(one_of_each()).await;
            let failure = outcome.failure();
            assert_eq!(failure.step, Some(BuildStep::Step(number)));
            assert!(failure.message.contains(word), "{at}: {}", failure.message);
            bench.assert_nothing_of(build).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_once_leaves_nothing_and_is_built_the_next_time() {
    for at in [
        "start",
        "init",
        "import",
        "user",
        "env",
        "workdir",
        "copy",
        "run",
        "checkpoint",
        "seal",
        "remove",
    ] {
        let bench = Bench::with_upload();
        bench.world.runtime.at(at, Fault::Fail);
        let order = bench.order(bench.recipe(one_of_each()));
        let outcome = bench.build(&order).await;
        assert!(outcome.built.is_err(), "{at}");
        bench.assert_nothing_of(order.build).await;
        let outcome = bench.build(&order).await;
        outcome.built.unwrap();
        assert_eq!(bench.disk(order.build).len(), 5, "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_room_is_told_with_the_step_and_may_have_room_the_next_time() {
    for (at, step, words) in [
        (
            "start",
            BuildStep::Base,
            "starting the build's sandbox failed: the node is out of disk",
        ),
        (
            "checkpoint",
            BuildStep::Base,
            "copying the disk of the build's sandbox failed: the node is out of disk",
        ),
        (
            "seal",
            BuildStep::Finalize,
            "sealing the result of the build failed: the node is out of disk",
        ),
    ] {
        let bench = Bench::new();
        bench.world.runtime.at(at, Fault::NoRoom);
        let order = bench.order(bench.recipe(vec![run("a")]));
        let Err(BuildError::Away(told)) = bench.build(&order).await.built else {
            panic!("{at}");
        };
        assert_eq!((told.message.as_str(), told.step), (words, Some(step)), "{at}");
        bench.assert_nothing_of(order.build).await;
        bench.build(&order).await.built.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_made_half_is_removed() {
    for (at, start) in [
        ("checkpoint", None),
        ("seal", None),
        ("checkpoint memory", Some("serve")),
    ] {
        let bench = Bench::new();
        bench.world.runtime.set_durable(true);
        bench.world.runtime.guest().act("serve", Act::default());
        bench.world.runtime.at(at, Fault::Half);
        let recipe = Recipe {
            start: start.map(str::to_owned),
            ..bench.recipe(vec![run("a")])
        };
        let order = bench.order(recipe);
        let outcome = bench.build(&order).await;
        assert!(matches!(outcome.built, Err(BuildError::Node { .. })), "{at}");
        bench.assert_nothing_of(order.build).await;
        bench.build(&order).await.built.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_s_answers_are_not_believed() {
    const RUN: &str = "/process.Process/Start";
    let long = format!(r#"{{"values":[["HERE","{}"]]}}"#, "x".repeat((128 << 10) + 1));
    let endless = "x".repeat((4 << 20) + 1);
    for (path, answer, word) in [
        (
            "/host/env",
            r#"{"values":[["PATH","/mine"]]}"#.to_owned(),
            "not asked for",
        ),
        ("/host/env", r#"{"values":[]}"#.to_owned(), "not asked for"),
        (
            "/host/env",
            r#"{"values":[["HERE","a\u0000"]]}"#.to_owned(),
            "NUL",
        ),
        ("/host/env", long, "longer than 131072 bytes"),
        ("/host/env", endless, "longer than 4194304 bytes"),
        (
            "/host/workdir",
            r#"{"path":"relative"}"#.to_owned(),
            "a directory that is none",
        ),
        (
            "/host/user",
            r#"{"name":"a:b","uid":1,"gid":1,"home":"/","isNew":true}"#.to_owned(),
            "a user that is none",
        ),
        ("/host/copy", "nonsense".to_owned(), "broken"),
        (RUN, "\u{0}\u{ff}\u{ff}\u{ff}\u{ff}".to_owned(), "broken"),
        (RUN, "\u{0}\u{0}\u{0}\u{0}\u{2}[]".to_owned(), "broken"),
        (
            RUN,
            "\u{2}\u{0}\u{0}\u{0}\u{2}{}".to_owned(),
            "before the program did",
        ),
        (RUN, "\u{0}\u{0}".to_owned(), "too early"),
        (RUN, String::new(), "too early"),
    ] {
        let bench = Bench::with_upload();
        // The base's user is made before.
        bench.build_steps(Vec::new()).await.1.built.unwrap();
        bench.world.runtime.guest().say_instead(path, answer);
        let (build, outcome) = bench.build_steps(one_of_each()).await;
        let failure = outcome.failure();
        assert!(failure.message.contains(word), "{path}: {}", failure.message);
        assert!(failure.message.len() < 4096);
        tokio::time::sleep(SOON).await;
        assert_eq!(bench.world.runtime.machine_count(), 0);
        assert_eq!(bench.world.runtime.content(build), None);
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_were_not_uploaded_are_told_by_their_hash() {
    let bench = Bench::new();
    let (build, outcome) = bench.build_steps(one_of_each()).await;
    let failure = outcome.failure();
    assert_eq!(failure.step, Some(BuildStep::Step(3)));
    assert!(failure.message.contains("were not uploaded") && failure.message.contains(HASH));
    bench.assert_nothing_of(build).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_breaks_off_is_no_fault_of_the_recipe() {
    let bench = Bench::new();
    bench.upload(Err(io::Error::other("the store is away")));
    let (build, outcome) = bench.build_steps(one_of_each()).await;
    assert!(matches!(
        outcome.built,
        Err(BuildError::Node {
            step: "reading an upload",
            ..
        })
    ));
    bench.assert_nothing_of(build).await;
}

/// Only what is no archive is removed, whatever the guest says of it: the next build is told that it is not there.
#[tokio::test]
async fn an_upload_that_cannot_be_read_is_removed_and_no_other() {
    let whole = Bytes::from_static(super::A_TAR);
    for (upload, is_broken) in [
        (whole.clone(), false),
        (Bytes::from_static(b"no tar at all"), true),
        (whole.slice(..300), true),
        (Bytes::new(), true),
        (Bytes::from_static(b"\x1f\x8bbroken"), true),
    ] {
        let bench = Bench::new();
        bench.upload(Ok(upload.clone()));
        bench.world.runtime.at("copy", Fault::Fail);
        let (build, outcome) = bench.build_steps(one_of_each()).await;
        let failure = outcome.failure();
        let told = failure.message.contains("is broken and was removed");
        assert_eq!(told, is_broken, "{upload:?}: {}", failure.message);
        let is_there = bench.shelf.uploads.lock().unwrap().contains_key(HASH);
        assert_eq!(is_there, !is_broken, "{upload:?}");
        bench.assert_nothing_of(build).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_without_the_shell_is_refused_by_name_whatever_its_steps() {
    for steps in [Vec::new(), one_of_each()] {
        let bench = Bench::with_upload();
        let act = Act {
            refused: Some("error starting process: No such file or directory (os error 2)"),
            ..Act::default()
        };
        bench.world.runtime.guest().act(":", act);
        let (build, outcome) = bench.build_steps(steps).await;
        let failure = outcome.failure();
        assert_eq!(failure.step, Some(BuildStep::Base));
        assert!(
            failure.message.starts_with("no command can be run in this image")
                && failure.message.contains("/bin/bash"),
            "{}",
            failure.message
        );
        bench.assert_nothing_of(build).await;
        // Nor is it taken from what is kept.
        let again = bench.build_steps(Vec::new()).await.1;
        assert_eq!(again.failure().step, Some(BuildStep::Base));
    }
}

#[tokio::test(start_paused = true)]
async fn an_envd_that_falls_silent_is_missed() {
    let bench = Bench::new();
    bench.world.runtime.guest().act("hang", Act::default());
    let (build, outcome) = bench.build_steps(vec![run("hang")]).await;
    let failure = outcome.failure();
    assert!(failure.message.contains("stopped answering"), "{failure:?}");
    bench.assert_nothing_of(build).await;
}

#[tokio::test(start_paused = true)]
async fn a_recipe_that_no_program_could_be_given_is_refused_by_its_step() {
    let bench = Bench::new();
    let (_, outcome) = bench.build_steps(vec![run("a"), run("a\0b")]).await;
    assert_eq!(outcome.failure().step, Some(BuildStep::Step(2)));
    assert_eq!(bench.world.runtime.machine_count(), 0);
}
