//! Routes over what may happen to Redis.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::redis::Redis;
use model::SandboxId;
use ports::catalog::contract::route;
use ports::{Catalog, Route, RouteChange};
use tokio::sync::broadcast::Receiver;

use crate::server::{eventually, process, server, two, until};

async fn found(catalog: &dyn Catalog, route: &Route) -> Option<u64> {
    let found = catalog.find(route.sandbox).await.unwrap();
    found.map(|route| route.version)
}

async fn published(catalog: &dyn Catalog, route: &Route) -> Option<u64> {
    let found = catalog.published(route.sandbox).await.unwrap();
    found.map(|route| route.version)
}

fn fresh(version: u64) -> Route {
    route(SandboxId::random(), version)
}

/// What a process knows, by sandbox.
async fn view(redis: &Redis) -> HashMap<SandboxId, Route> {
    let all = redis.catalog().all().await.unwrap();
    all.iter()
        .map(|route| (route.sandbox, Route::clone(route)))
        .collect()
}

fn cuts(changes: &mut Receiver<RouteChange>) -> usize {
    let mut cuts = 0;
    while let Ok(change) = changes.try_recv() {
        cuts += usize::from(matches!(change, RouteChange::Withdrawn(..)));
    }
    cuts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_of_processes_that_all_write_converge_on_the_newest() {
    let Some(server) = server() else { return };
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(process(&server).await);
    }
    let sandboxes: Vec<SandboxId> = (0..20).map(|_| SandboxId::random()).collect();
    let mut writers = tokio::task::JoinSet::new();
    for (nth, redis) in processes.iter().enumerate() {
        let (catalog, sandboxes) = (redis.catalog(), sandboxes.clone());
        writers.spawn(async move {
            for round in 0..40_u64 {
                for (n, sandbox) in sandboxes.iter().enumerate() {
                    // Every process has its own order of arrival.
                    let version = (round * 7 + nth as u64 * 13 + n as u64) % 41;
                    let route = route(*sandbox, version);
                    let seat = route.seat;
                    catalog.publish(route).await.unwrap();
                    if (round + n as u64).is_multiple_of(5) && version < 40 {
                        catalog.withdraw(*sandbox, seat).await.unwrap();
                    }
                }
            }
            for sandbox in sandboxes {
                catalog.publish(route(sandbox, 100 + nth as u64)).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    eventually("all know the newest", async || {
        let mut views = Vec::new();
        for redis in &processes {
            views.push(view(redis).await);
        }
        let newest = views[0].values().all(|route| route.version == 102);
        newest && views[0].len() == sandboxes.len() && views.iter().all(|view| *view == views[0])
    })
    .await;
    // Who comes new sees the same.
    assert_eq!(view(&process(&server).await).await, view(&processes[0]).await);
}

#[tokio::test]
async fn a_route_is_in_another_process_within_milliseconds() {
    let Some((_server, one, other)) = two().await else {
        return;
    };
    let mut changes = other.catalog().changes();
    let mut took = Vec::new();
    for n in 0..300 {
        let began = Instant::now();
        one.catalog().publish(fresh(n)).await.unwrap();
        changes.recv().await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    // What is measured here is not optimised and shares its cores with all other tests; the bench `events` holds the tail.
    let half = took[took.len() / 2];
    assert!(half <= Duration::from_millis(50), "{half:?}");
}

#[tokio::test]
async fn a_redis_that_lost_everything_cuts_nothing_off_and_is_filled_again() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let (kept, ended) = (fresh(3), fresh(3));
    for route in [&kept, &ended] {
        one.catalog().publish(route.clone()).await.unwrap();
    }
    eventually("both know both", async || view(&other).await.len() == 2).await;
    let mut changes = [one.catalog().changes(), other.catalog().changes()];
    server.flush().unwrap();
    // The reconciler of either finds what is missing, though traffic goes on.
    for redis in [&one, &other] {
        eventually("the loss is known", async || {
            published(&*redis.catalog(), &kept).await.is_none()
        })
        .await;
        assert_eq!(found(&*redis.catalog(), &kept).await, Some(3));
    }
    one.catalog().publish(kept.clone()).await.unwrap();
    assert_eq!(published(&*one.catalog(), &kept).await, Some(3));
    eventually("the other knows that it is there again", async || {
        published(&*other.catalog(), &kept).await == Some(3)
    })
    .await;
    for changes in &mut changes {
        assert_eq!(cuts(changes), 0);
    }
    // What ended meanwhile, and could be withdrawn by nobody who found it.
    one.catalog().withdraw(ended.sandbox, ended.seat).await.unwrap();
    assert_eq!(found(&*one.catalog(), &ended).await, None);
    let fresh = process(&server).await;
    assert_eq!(view(&fresh).await, HashMap::from([(kept.sandbox, kept)]));
}

#[tokio::test]
async fn a_redis_that_came_back_empty_is_filled_again() {
    let Some(mut server) = server() else { return };
    let redis = process(&server).await;
    let kept = fresh(3);
    redis.catalog().publish(kept.clone()).await.unwrap();
    let mut changes = redis.catalog().changes();
    server.lose_everything().unwrap();
    eventually("the loss is known", async || {
        let published = redis.catalog().published(kept.sandbox).await;
        published.is_ok_and(|route| route.is_none())
    })
    .await;
    assert_eq!(found(&*redis.catalog(), &kept).await, Some(3));
    redis.catalog().publish(kept.clone()).await.unwrap();
    assert_eq!(found(&*process(&server).await.catalog(), &kept).await, Some(3));
    assert_eq!(cuts(&mut changes), 0);
}

#[tokio::test]
async fn what_is_not_published_again_is_let_go() {
    let Some((server, one, _other)) = two().await else {
        return;
    };
    let route = fresh(3);
    one.catalog().publish(route.clone()).await.unwrap();
    let mut changes = one.catalog().changes();
    server.flush().unwrap();
    let began = Instant::now();
    loop {
        match tokio::time::timeout(Duration::from_secs(30), changes.recv()).await {
            Ok(Ok(RouteChange::Withdrawn(sandbox, _))) => {
                assert_eq!(sandbox, route.sandbox);
                break;
            }
            Ok(Ok(_)) => {}
            other => panic!("it is served for ever: {other:?}"),
        }
    }
    // Three passes of a reconciler.
    assert!(
        began.elapsed() >= Duration::from_secs(14),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(found(&*one.catalog(), &route).await, None);
}

#[tokio::test]
async fn a_redis_that_came_back_with_old_data_cuts_nothing_off() {
    let Some(mut server) = server() else { return };
    let (one, other) = (process(&server).await, process(&server).await);
    let paused = fresh(3);
    one.catalog().publish(paused.clone()).await.unwrap();
    server.save().unwrap();
    let (resumed, young) = (route(paused.sandbox, 6), fresh(1));
    for route in [&resumed, &young] {
        one.catalog().publish(route.clone()).await.unwrap();
    }
    eventually("the other knows", async || {
        found(&*other.catalog(), &resumed).await == Some(6) && view(&other).await.len() == 2
    })
    .await;
    let mut changes = [one.catalog().changes(), other.catalog().changes()];
    server.kill();
    server.start_again().unwrap();
    for redis in [&one, &other] {
        eventually("the loss is known", async || {
            let young = redis.catalog().published(young.sandbox).await;
            let old = redis.catalog().published(paused.sandbox).await;
            young.is_ok_and(|route| route.is_none())
                && old.is_ok_and(|route| route.is_none_or(|route| route.version == 3))
        })
        .await;
        assert_eq!(found(&*redis.catalog(), &resumed).await, Some(6));
        assert_eq!(found(&*redis.catalog(), &young).await, Some(1));
    }
    for route in [&resumed, &young] {
        other.catalog().publish(route.clone()).await.unwrap();
    }
    eventually("both have both", async || {
        published(&*one.catalog(), &resumed).await == Some(6)
            && published(&*one.catalog(), &young).await == Some(1)
    })
    .await;
    for changes in &mut changes {
        assert_eq!(cuts(changes), 0);
    }
}

#[tokio::test]
async fn what_could_not_be_withdrawn_is_gone_here_at_once_and_everywhere_when_redis_is_back() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let route = fresh(1);
    one.catalog().publish(route.clone()).await.unwrap();
    eventually("both know", async || {
        found(&*other.catalog(), &route).await.is_some()
    })
    .await;
    let mut changes = one.catalog().changes();
    server.pause().unwrap();
    assert!(one.catalog().withdraw(route.sandbox, route.seat).await.is_err());
    assert_eq!(found(&*one.catalog(), &route).await, None);
    assert_eq!(cuts(&mut changes), 1);
    assert_eq!(found(&*other.catalog(), &route).await, Some(1));
    server.go_on().unwrap();
    eventually("nobody knows it any more", async || view(&other).await.is_empty()).await;
    assert!(view(&one).await.is_empty());
    // The same sandbox, resumed.
    let resumed = ports::catalog::contract::route(route.sandbox, 4);
    other.catalog().publish(resumed.clone()).await.unwrap();
    until(&one, true).await;
    assert_eq!(found(&*one.catalog(), &resumed).await, Some(4));
}

#[tokio::test]
async fn who_was_cut_off_reads_what_he_missed() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let (gone, stays) = (fresh(1), fresh(1));
    for route in [&gone, &stays] {
        one.catalog().publish(route.clone()).await.unwrap();
    }
    eventually("both know both", async || view(&other).await.len() == 2).await;
    let mut changes = other.catalog().changes();
    // All lines are cut, again and again, while something happens.
    for n in 0..5 {
        assert!(server.ask("CLIENT KILL TYPE normal").is_ok());
        until(&one, true).await;
        one.catalog().publish(fresh(n)).await.unwrap();
    }
    one.catalog().withdraw(gone.sandbox, gone.seat).await.unwrap();
    eventually("the other knows all", async || {
        view(&other).await == view(&one).await
    })
    .await;
    assert_eq!(view(&one).await.len(), 6);
    eventually("the cut was told", async || cuts(&mut changes) == 1).await;
}

#[tokio::test]
async fn a_gap_in_the_changes_is_noticed() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    one.catalog().publish(fresh(1)).await.unwrap();
    eventually("the other knows", async || view(&other).await.len() == 1).await;
    // Somebody trims the stream under a copy that does not read.
    let catalog: Arc<dyn Catalog> = one.catalog();
    for n in 0..20 {
        server.ask("XTRIM atoll:{blue}:routes:changes MAXLEN 0").unwrap();
        catalog.publish(fresh(n)).await.unwrap();
    }
    server.ask("DEL atoll:{blue}:routes:changes").unwrap();
    eventually("the other knows all", async || view(&other).await.len() == 21).await;
    catalog.publish(fresh(1)).await.unwrap();
    eventually("the other follows again", async || view(&other).await.len() == 22).await;
}
