//! The laws of [`Idempotency`], one function each, which every adapter's tests run: see [`crate::idempotency_contract`].
//!
//! Each takes two faces of the same keys, as two processes have them, with the [`terms`] that are here; one process has the same
//! face twice.
use std::time::Duration;

use model::{SandboxId, TeamId};

use super::{Begun, Idempotency, IdempotencyError, Lease, Terms};

/// Makes the laws of [`Idempotency`](crate::Idempotency) tests of one adapter. The argument is a future of two faces of the same
/// fresh keys with [`terms`], behind whatever must live as long as they; or, with
/// `where_installed` before it, of `None` where there is nothing to run the laws on.
#[macro_export]
macro_rules! idempotency_contract {
    ($make:expr) => {
        $crate::idempotency_contract!(where_installed async { Some($make.await) });
    };
    (where_installed $make:expr) => {
        $crate::idempotency_contract! { @laws $make;
            a_key_answers_as_it_did,
            a_key_under_way_is_nobody_elses,
            teams_do_not_meet,
            a_key_whose_request_failed_is_free,
            a_key_whose_holder_died_is_free_after_its_lease,
            a_lease_that_is_kept_stays,
            a_late_answer_is_taken_while_nobody_else_has_the_key,
            who_lost_his_lease_answers_nothing,
            a_flood_of_keys_is_bounded_and_pushes_out_no_other_teams,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, one, other)) = $make.await else { return };
                $crate::idempotency::contract::$law(&*one, &*other).await;
            }
        )*
    };
}

/// Short ones, for the laws.
#[must_use]
pub fn terms() -> Terms {
    Terms {
        lease: Duration::from_millis(800),
        kept: Duration::from_secs(60),
        answers_max: 16,
    }
}

async fn begin(face: &dyn Idempotency, team: TeamId, digest: u8) -> Result<Begun, IdempotencyError> {
    face.begin(team, "key", [digest; 32]).await
}

/// Begins a request that nobody has begun.
async fn go(face: &dyn Idempotency, team: TeamId, key: &str) -> Lease {
    match face.begin(team, key, [1; 32]).await {
        Ok(Begun::Go(lease)) => lease,
        other => panic!("{key} is not free: {other:?}"),
    }
}

async fn assert_done(face: &dyn Idempotency, team: TeamId, sandbox: SandboxId) {
    assert!(matches!(begin(face, team, 1).await, Ok(Begun::Done(done)) if done == sandbox));
}

/// See its name.
pub async fn a_key_answers_as_it_did(one: &dyn Idempotency, other: &dyn Idempotency) {
    let (team, sandbox) = (TeamId::random(), SandboxId::random());
    let lease = go(one, team, "key").await;
    one.answer(lease, sandbox).await;
    for face in [one, other] {
        assert_done(face, team, sandbox).await;
        assert!(matches!(
            begin(face, team, 2).await,
            Err(IdempotencyError::Mismatch)
        ));
    }
}

/// See its name.
pub async fn a_key_under_way_is_nobody_elses(one: &dyn Idempotency, other: &dyn Idempotency) {
    let team = TeamId::random();
    let _lease = go(one, team, "key").await;
    for face in [one, other] {
        assert!(matches!(
            begin(face, team, 1).await,
            Err(IdempotencyError::InProgress)
        ));
        assert!(matches!(
            begin(face, team, 2).await,
            Err(IdempotencyError::Mismatch)
        ));
    }
}

/// See its name.
pub async fn teams_do_not_meet(one: &dyn Idempotency, other: &dyn Idempotency) {
    let (team, stranger) = (TeamId::random(), TeamId::random());
    let lease = go(one, team, "key").await;
    one.answer(lease, SandboxId::random()).await;
    go(other, stranger, "key").await;
    go(other, team, "key ").await;
}

/// See its name.
pub async fn a_key_whose_request_failed_is_free(one: &dyn Idempotency, other: &dyn Idempotency) {
    let team = TeamId::random();
    for _ in 0..20 {
        let lease = go(one, team, "key").await;
        one.abandon(lease);
    }
    crate::catalog::contract::eventually("the key is free for all", async || {
        matches!(begin(other, team, 2).await, Ok(Begun::Go(_)))
    })
    .await;
}

/// See its name.
pub async fn a_key_whose_holder_died_is_free_after_its_lease(one: &dyn Idempotency, other: &dyn Idempotency) {
    let team = TeamId::random();
    let _dead = go(one, team, "key").await;
    assert!(matches!(
        begin(other, team, 1).await,
        Err(IdempotencyError::InProgress)
    ));
    tokio::time::sleep(terms().lease + Duration::from_millis(50)).await;
    let lease = go(other, team, "key").await;
    let sandbox = SandboxId::random();
    other.answer(lease, sandbox).await;
    // An answer is not leased.
    tokio::time::sleep(terms().lease + Duration::from_millis(50)).await;
    assert_done(one, team, sandbox).await;
}

/// See its name.
pub async fn a_lease_that_is_kept_stays(one: &dyn Idempotency, other: &dyn Idempotency) {
    let (team, sandbox) = (TeamId::random(), SandboxId::random());
    let lease = go(one, team, "key").await;
    for _ in 0..6 {
        tokio::time::sleep(terms().lease / 4).await;
        one.keep(&lease).await;
        assert!(matches!(
            begin(other, team, 1).await,
            Err(IdempotencyError::InProgress)
        ));
    }
    one.answer(lease, sandbox).await;
    assert_done(other, team, sandbox).await;
}

/// See its name.
pub async fn a_late_answer_is_taken_while_nobody_else_has_the_key(
    one: &dyn Idempotency,
    other: &dyn Idempotency,
) {
    let (team, sandbox) = (TeamId::random(), SandboxId::random());
    let late = go(one, team, "key").await;
    tokio::time::sleep(terms().lease + Duration::from_millis(50)).await;
    one.answer(late, sandbox).await;
    assert_done(other, team, sandbox).await;
}

/// See its name.
pub async fn who_lost_his_lease_answers_nothing(one: &dyn Idempotency, other: &dyn Idempotency) {
    let (team, sandbox) = (TeamId::random(), SandboxId::random());
    let lost = go(one, team, "key").await;
    tokio::time::sleep(terms().lease + Duration::from_millis(50)).await;
    let lease = go(other, team, "key").await;
    one.keep(&lost).await;
    let twice = Lease {
        key: lost.key.clone(),
        ..lost
    };
    one.answer(lost, SandboxId::random()).await;
    one.abandon(twice);
    assert!(matches!(
        begin(other, team, 1).await,
        Err(IdempotencyError::InProgress)
    ));
    other.answer(lease, sandbox).await;
    assert_done(other, team, sandbox).await;
}

/// See its name.
pub async fn a_flood_of_keys_is_bounded_and_pushes_out_no_other_teams(
    one: &dyn Idempotency,
    other: &dyn Idempotency,
) {
    let (quiet, loud) = (TeamId::random(), TeamId::random());
    let sandbox = SandboxId::random();
    let lease = go(one, quiet, "key").await;
    one.answer(lease, sandbox).await;
    let most = terms().answers_max;
    for n in 0..2 * most {
        let lease = go(one, loud, &n.to_string()).await;
        one.answer(lease, SandboxId::random()).await;
        // Answers have an order.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_done(other, quiet, sandbox).await;
    let newest = (2 * most - 1).to_string();
    assert!(matches!(
        other.begin(loud, &newest, [1; 32]).await,
        Ok(Begun::Done(_))
    ));
    go(other, loud, "0").await;
}
