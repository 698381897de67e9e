//! Keys while Redis is away.
use model::{SandboxId, TeamId};
use ports::IdempotencyError;
use ports::idempotency::Begun;

use crate::server::{eventually, two, until};

#[tokio::test]
async fn an_answer_that_could_not_be_noted_is_noted_later_and_nothing_is_begun_meanwhile() {
    let Some((server, one, other)) = two().await else {
        return;
    };
    let (team, sandbox) = (TeamId::random(), SandboxId::random());
    let Ok(Begun::Go(lease)) = one.idempotency().begin(team, "key", [1; 32]).await else {
        panic!("a fresh key was refused")
    };
    server.pause().unwrap();
    one.idempotency().answer(lease, sandbox).await;
    for redis in [&one, &other] {
        let refused = redis.idempotency().begin(team, "another", [1; 32]).await;
        assert!(matches!(refused, Err(IdempotencyError::Away(_))));
    }
    server.go_on().unwrap();
    until(&other, true).await;
    eventually("the answer is noted", async || {
        let done = other.idempotency().begin(team, "key", [1; 32]).await;
        matches!(done, Ok(Begun::Done(done)) if done == sandbox)
    })
    .await;
}
