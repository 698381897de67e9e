//! News over what may happen to Redis, and how many there may be.
use std::time::{Duration, Instant};

use model::TeamId;
use ports::Happening;
use ports::bus::contract::{happening, next};
use tokio::sync::broadcast::error::RecvError;

use crate::server::{in_time, process, server, two, until};

#[tokio::test]
async fn what_happens_while_redis_is_away_is_heard_here_at_once_and_elsewhere_later() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let team = TeamId::random();
    let (mut here, mut elsewhere) = (one.bus().subscribe(), other.bus().subscribe());
    one.bus().publish(happening(team, 0)).await;
    next(&mut elsewhere).await;
    server.pause().unwrap();
    let told: Vec<_> = (1..2000).map(|n| happening(team, n)).collect();
    in_time("publishing", async {
        for happening in &told {
            one.bus().publish(happening.clone()).await;
        }
    })
    .await;
    next(&mut here).await;
    for expected in &told {
        assert_eq!(next(&mut here).await, *expected);
    }
    server.go_on().unwrap();
    until(&one, true).await;
    // Each once and in order, though some were told twice, perhaps.
    for expected in &told {
        assert_eq!(next(&mut elsewhere).await, *expected);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(elsewhere.try_recv().is_err());
}

#[tokio::test]
async fn news_go_on_after_redis_lost_everything() {
    let Some((mut server, one, other)) = two().await else {
        return;
    };
    let team = TeamId::random();
    let mut elsewhere = other.bus().subscribe();
    for n in 0..3 {
        one.bus().publish(happening(team, n)).await;
        next(&mut elsewhere).await;
        server.flush().unwrap();
        let told = happening(team, n);
        one.bus().publish(told.clone()).await;
        assert_eq!(next(&mut elsewhere).await, told);
        server.lose_everything().unwrap();
        until(&one, true).await;
        until(&other, true).await;
        // Its follower has a line of its own, which is opened again, too.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Tells of a happening as another process does, at a place in the stream.
fn tell_at(server: &testkit::services::redis::Redis, place: &str, number: usize, told: &Happening) {
    let text = serde_json::to_string(told).unwrap();
    let quoted = text.replace('\\', r"\\").replace('"', r#"\""#);
    let entry = format!("XADD atoll:{{blue}}:bus {place} p another n {number} h \"{quoted}\"");
    server.ask(&entry).unwrap();
}

#[tokio::test]
async fn a_stream_that_begins_anew_at_places_that_were_read_is_heard() {
    let Some(server) = server() else { return };
    let redis = process(&server).await;
    let mut heard = redis.bus().subscribe();
    let team = TeamId::random();
    // The clock of the next Redis is behind, then stands still.
    for (number, place) in [(1, "9-0"), (2, "7-0"), (3, "7-0"), (4, "7-1")] {
        if number < 4 {
            server.flush().unwrap();
        }
        let told = happening(team, number);
        tell_at(&server, place, number, &told);
        assert_eq!(next(&mut heard).await, told);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(heard.try_recv().is_err(), "nothing is heard twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(
    clippy::print_stderr,
    reason = "the figure is of use where it is not what the bench `events` says"
)]
async fn a_flood_of_events_goes_through() {
    let Some((_server, one, other)) = two().await else {
        return;
    };
    let (team, count) = (TeamId::random(), 12_000);
    let bus = other.bus();
    let mut heard = bus.subscribe();
    let reader = tokio::spawn(async move {
        let (mut seen, mut lost) = (0_u64, 0);
        while seen + lost < count {
            match tokio::time::timeout(Duration::from_secs(60), heard.recv()).await {
                Ok(Ok(_)) => seen += 1,
                // A subscriber that is slower than the stream is told how many it lost: they went through.
                Ok(Err(RecvError::Lagged(missed))) => lost += missed,
                other => panic!("{other:?}"),
            }
        }
        (seen, lost)
    });
    let news: Vec<_> = (0..count)
        .map(|n| happening(team, usize::try_from(n).unwrap_or(0)))
        .collect();
    let began = Instant::now();
    for happening in news {
        one.bus().publish(happening).await;
    }
    let (seen, lost) = reader.await.unwrap();
    let took = began.elapsed();
    eprintln!(
        "{count} events from process to process, not optimised: {took:?}, {lost} too fast for the subscriber"
    );
    assert_eq!(seen + lost, count);
}
