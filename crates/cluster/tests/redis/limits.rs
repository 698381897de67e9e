//! Rates while Redis is away.
use model::TeamId;
use ports::limits::Rate;

use crate::server::{two, until};

#[tokio::test]
async fn alone_each_process_lets_a_burst_through_and_no_more() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let team = TeamId::random();
    let rate = Rate {
        per_second: 0,
        burst: 4,
    };
    // One has let two through: it begins with two less.
    for _ in 0..2 {
        one.limits().take(team, "starts", rate).await.unwrap();
    }
    server.pause().unwrap();
    for (redis, left) in [(&one, 2), (&other, 4)] {
        let mut through = 0;
        while redis.limits().take(team, "starts", rate).await.is_ok() {
            through += 1;
        }
        assert_eq!(through, left);
    }
    server.go_on().unwrap();
    for redis in [&one, &other] {
        until(redis, true).await;
    }
    // Together again, from where they were; a question that was on its way while Redis stood still may have taken one, too.
    let mut through = 0;
    for redis in [&one, &other, &one, &other] {
        through += usize::from(redis.limits().take(team, "starts", rate).await.is_ok());
    }
    assert!(through <= 2, "{through}");
}
