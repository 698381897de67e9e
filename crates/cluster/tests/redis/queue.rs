//! Work over what may happen to Redis.
use std::time::Duration;

use crate::server::{eventually, two, until};

#[tokio::test]
async fn work_is_pushed_and_taken_again_after_redis_lost_everything() {
    let Some((mut server, one, other)) = two().await else {
        return;
    };
    assert!(one.queue().push("topic", "a", "x".into()).await.unwrap());
    let waiting = {
        let queue = other.queue();
        tokio::spawn(async move {
            let mut taken = queue.take("topic", "x", 1, Duration::ZERO).await.unwrap();
            while taken.iter().all(|delivery| delivery.id != "b") {
                taken = queue
                    .take("topic", "x", 1, Duration::from_secs(20))
                    .await
                    .unwrap_or_default();
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.flush().unwrap();
    // It is not known any more.
    assert!(one.queue().push("topic", "b", "x".into()).await.unwrap());
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .expect("nobody was woken")
        .unwrap();
    server.lose_everything().unwrap();
    until(&one, true).await;
    assert!(one.queue().push("topic", "b", "x".into()).await.unwrap());
    eventually("it is taken", async || {
        let taken = other.queue().take("topic", "y", 1, Duration::ZERO).await;
        taken.is_ok_and(|taken| taken.len() == 1)
    })
    .await;
}

#[tokio::test]
async fn work_is_kept_while_redis_stands_still() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    for id in ["a", "b"] {
        one.queue().push("topic", id, "x".into()).await.unwrap();
    }
    let taken = other.queue().take("topic", "x", 1, Duration::ZERO).await.unwrap();
    server.pause().unwrap();
    assert!(other.queue().done("topic", &taken[0]).await.is_err());
    server.go_on().unwrap();
    until(&other, true).await;
    // Whether it was done is not known; the consumer says so again, or gets it again.
    other.queue().done("topic", &taken[0]).await.unwrap();
    let taken = other
        .queue()
        .take("topic", "x", 9, Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].id, "b");
}
