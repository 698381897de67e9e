//! Shares while Redis is away, and after it lost everything.
use std::collections::HashSet;
use std::time::Duration;

use model::{Quota, TeamId};
use ports::Shares;
use ports::shares::contract::share;

use crate::server::{eventually, two, until};

fn quota(sandboxes: u32) -> Quota {
    Quota {
        sandboxes,
        ..Quota::default()
    }
}

async fn claims(shares: &dyn Shares, team: TeamId, quota: &Quota) -> u32 {
    let mut granted = 0;
    while shares.claim(share(team), quota).await.is_ok() {
        granted += 1;
    }
    granted
}

#[tokio::test]
async fn alone_each_process_goes_on_from_what_it_knew_and_tells_it_later() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let (team, quota) = (TeamId::random(), quota(5));
    let (first, second) = (share(team), share(team));
    one.shares().claim(first, &quota).await.unwrap();
    other.shares().claim(second, &quota).await.unwrap();
    server.pause().unwrap();
    // One has heard of one share, the other of two.
    assert_eq!(claims(&*one.shares(), team, &quota).await, 4);
    assert_eq!(claims(&*other.shares(), team, &quota).await, 3);
    // What is given back makes room at once.
    one.shares().release(first).await;
    one.shares().release(first).await;
    assert_eq!(claims(&*one.shares(), team, &quota).await, 1);
    server.go_on().unwrap();
    for redis in [&one, &other] {
        until(redis, true).await;
    }
    eventually("Redis knows all", async || {
        one.shares().held(team).await.sandboxes == 2 + 4 + 3 + 1 - 1
    })
    .await;
    // Beyond its quota it claims nothing until it is below.
    assert_eq!(claims(&*one.shares(), team, &quota).await, 0);
}

#[tokio::test]
async fn what_was_lost_is_held_again_by_the_reconciler() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let (team, quota) = (TeamId::random(), quota(2500));
    let live: Vec<_> = (0..2400).map(|_| share(team)).collect();
    assert_eq!(one.shares().hold(&live).await.len(), live.len());
    server.flush().unwrap();
    assert_eq!(other.shares().held(team).await.sandboxes, 0);
    assert_eq!(other.shares().hold(&live).await, live);
    assert_eq!(one.shares().hold(&live).await, []);
    assert_eq!(claims(&*one.shares(), team, &quota).await, 100);
    let executions: HashSet<_> = live.iter().map(|share| share.execution).collect();
    // The next pass of it finds claims that nobody stored.
    tokio::time::sleep(Duration::from_millis(20)).await;
    other.shares().prune(&executions, Duration::from_millis(10)).await;
    assert_eq!(one.shares().held(team).await.sandboxes, 2400);
}
