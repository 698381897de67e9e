//! Builds that are ended, and what is not removed while they go on.
use std::sync::Arc;
use std::time::Duration;

use model::BuildId;
use ports::Node;
use ports::builds::{BuildError, BuildOrder};
use ports::node::Order;
use tokio::sync::Notify;

use super::{on_template, one_of_each};
use crate::world::{Act, Bench, Fault, Outcome, SOON, run};

/// A build that hangs in a command, and its end.
async fn hanging(
    bench: &Bench,
    end: impl AsyncFnOnce(&tokio_util::sync::CancellationToken),
) -> (BuildId, Option<Outcome>) {
    bench.world.runtime.guest().act("hang", Act::default());
    let order = bench.order(bench.recipe(vec![run("a"), run("hang")]));
    let (talk, _heard) = bench.talk();
    let cancel = talk.cancel.clone();
    let node = Arc::clone(&bench.world.node);
    let build = order.build;
    let task = tokio::spawn(async move { node.build(order, talk).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.world.runtime.machine_count(), 1);
    end(&cancel).await;
    if !cancel.is_cancelled() {
        task.abort();
        let _ = task.await;
        return (build, None);
    }
    let built = task.await.unwrap();
    (
        build,
        Some(Outcome {
            built,
            lines: Vec::new(),
        }),
    )
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_cancelled_leaves_nothing() {
    let bench = Bench::new();
    let (build, outcome) = hanging(&bench, async |cancel| cancel.cancel()).await;
    assert!(matches!(outcome.unwrap().built, Err(BuildError::Cancelled)));
    assert_eq!(bench.world.runtime.machine_count(), 0, "when it is told");
    bench.assert_nothing_of(build).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_caller_gave_up_is_ended() {
    let bench = Bench::new();
    let (build, _) = hanging(&bench, async |_| {}).await;
    bench.assert_nothing_of(build).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_is_cancelled_wherever_it_is() {
    for at in ["start", "init", "checkpoint", "copy", "seal"] {
        let bench = Bench::with_upload();
        let go = Arc::new(Notify::new());
        bench.world.runtime.at(at, Fault::Wait(Arc::clone(&go)));
        let order = bench.order(bench.recipe(one_of_each()));
        let build = order.build;
        let (talk, _heard) = bench.talk();
        let (cancel, node) = (talk.cancel.clone(), Arc::clone(&bench.world.node));
        let task = tokio::spawn(async move { node.build(order, talk).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
        tokio::time::sleep(Duration::from_millis(100)).await;
        go.notify_one();
        let built = task.await.unwrap();
        if at == "seal" {
            built.unwrap();
            continue;
        }
        assert!(matches!(built, Err(BuildError::Cancelled)), "{at}: {built:?}");
        bench.assert_nothing_of(build).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_is_given_up_when_its_build_is() {
    let bench = Bench::new();
    *bench.registry.wait.lock().unwrap() = Some(Arc::new(Notify::new()));
    let order = bench.order(bench.recipe(Vec::new()));
    let (talk, _heard) = bench.talk();
    let (cancel, node) = (talk.cancel.clone(), Arc::clone(&bench.world.node));
    let task = tokio::spawn(async move { node.build(order, talk).await });
    tokio::time::sleep(SOON).await;
    cancel.cancel();
    assert!(matches!(task.await.unwrap(), Err(BuildError::Cancelled)));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_takes_too_long_is_ended_and_told() {
    let bench = Bench::new();
    // A registry that does not come to an end: envd would be missed before.
    *bench.registry.wait.lock().unwrap() = Some(Arc::new(Notify::new()));
    let order = bench.order(bench.recipe(vec![run("a")]));
    let begun = tokio::time::Instant::now();
    let failure = bench.build(&order).await.failure();
    assert!(failure.message.contains("took longer than 1h"), "{failure:?}");
    assert_eq!(begun.elapsed().as_secs(), 3600);
    bench.assert_nothing_of(order.build).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_that_a_build_needs_is_removed_meanwhile() {
    let bench = Bench::new();
    bench.world.runtime.guest().act("hang", Act::default());
    let (order, base) = on_template(&bench, vec![run("a"), run("hang")]);
    let (talk, _heard) = bench.talk();
    let node = Arc::clone(&bench.world.node);
    let task = tokio::spawn(async move { node.build(order, talk).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = bench.world.runtime.all_builds();
    assert_eq!(all.len(), 2);
    let list: Vec<BuildId> = all.iter().copied().collect();
    bench.world.node.remove_builds(&list).await.unwrap();
    assert_eq!(bench.world.runtime.all_builds(), all);
    task.abort();
    let _ = task.await;
    tokio::time::sleep(SOON).await;
    bench.world.node.remove_builds(&list).await.unwrap();
    assert_eq!(bench.world.runtime.content(base), None, "when it is over");
}

#[tokio::test(start_paused = true)]
async fn a_build_is_done_once_at_a_time() {
    let bench = Bench::new();
    bench.world.runtime.guest().act("hang", Act::default());
    let order = bench.order(bench.recipe(vec![run("hang")]));
    let (talk, _heard) = bench.talk();
    let (node, first) = (Arc::clone(&bench.world.node), order.clone());
    let task = tokio::spawn(async move { node.build(first, talk).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(
        bench.build(&order).await.built,
        Err(BuildError::Node { .. })
    ));
    assert_eq!(bench.world.runtime.machine_count(), 1);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_build_that_sandboxes_use_is_not_made_anew() {
    let bench = Bench::new();
    let (build, outcome) = bench.build_steps(vec![run("a")]).await;
    outcome.built.unwrap();
    let sandbox = Order {
        build,
        ..bench.world.order()
    };
    bench.world.node.start(sandbox).await.unwrap();
    let again = BuildOrder {
        build,
        ..bench.order(bench.recipe(vec![run("b")]))
    };
    assert!(matches!(
        bench.build(&again).await.built,
        Err(BuildError::Node { .. })
    ));
    assert_eq!(
        bench.world.runtime.content(build).unwrap().disk,
        ["user user", "run a"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_next_daemon_ends_what_a_build_has_left_and_builds_it_again() {
    let mut bench = Bench::new();
    bench.world.runtime.guest().act(
        "hang",
        Act {
            times: 1,
            ..Act::default()
        },
    );
    let order = bench.order(bench.recipe(vec![run("a"), run("hang")]));
    let (talk, _heard) = bench.talk();
    let (node, first) = (Arc::clone(&bench.world.node), order.clone());
    tokio::spawn(async move { node.build(first, talk).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.world.runtime.machine_count(), 1);
    assert_eq!(bench.world.restart().await.unwrap().reclaimed, 1);
    assert_eq!(bench.world.runtime.machine_count(), 0);
    bench.world.node.build_from(bench.registry.clone());
    bench.world.runtime.ran();
    bench.build(&order).await.built.unwrap();
    assert_eq!(bench.world.runtime.ran().len(), 1, "it goes on where it was");
    assert_eq!(bench.disk(order.build), ["user user", "run a", "run hang"]);
}

#[tokio::test(start_paused = true)]
async fn a_lab_that_cannot_be_ended_is_ended_later() {
    let bench = Bench::new();
    bench.world.runtime.at("stop", Fault::Fail);
    bench.world.runtime.at("stop", Fault::Fail);
    let (build, outcome) = bench.build_steps(vec![run("a")]).await;
    outcome.built.unwrap();
    assert_eq!(bench.world.runtime.machine_count(), 1);
    tokio::time::sleep(SOON).await;
    assert_eq!(bench.world.runtime.machine_count(), 0);
    assert_eq!(bench.disk(build), ["user user", "run a"]);
}
