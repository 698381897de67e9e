//! The laws of [`Shares`], one function each, which every adapter's tests run: see [`crate::share_contract`].
//!
//! Each takes two faces of the same shares, as two processes have them; one process has the same face twice.
use std::collections::HashSet;
use std::time::Duration;

use model::{ExecutionId, MiB, Quota, Resources, TeamId};

use super::{Beyond, Held, Share, Shares};
use crate::store::contract::join_all;

/// Makes the laws of [`Shares`](crate::Shares) tests of one adapter. The argument is a future of two faces of the same fresh
/// shares, behind whatever must live as long as they; or, with
/// `where_installed` before it, of `None` where there is nothing to run the laws on.
#[macro_export]
macro_rules! share_contract {
    ($make:expr) => {
        $crate::share_contract!(where_installed async { Some($make.await) });
    };
    (where_installed $make:expr) => {
        $crate::share_contract! { @laws $make;
            every_limit_holds_by_itself,
            of_many_claims_at_once_as_many_are_granted_as_fit,
            a_share_is_taken_once,
            a_release_without_a_claim_gives_nothing,
            a_late_end_of_one_incarnation_gives_back_nothing_of_the_next,
            what_is_given_back_behind_the_back_is_there_for_the_next_claim,
            what_is_there_is_held_whatever_the_quota_says,
            a_share_that_is_handed_on_counts_once_and_is_as_good_as_new,
            only_old_shares_of_what_is_not_live_are_pruned,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, one, other)) = $make.await else { return };
                $crate::shares::contract::$law(&*one, &*other).await;
            }
        )*
    };
}

/// A share of 2 vCPUs and 1 GiB.
#[must_use]
pub fn share(team: TeamId) -> Share {
    Share {
        team,
        execution: ExecutionId::random(),
        resources: Resources::default(),
    }
}

fn quota(sandboxes: u32, cpu: u32, memory: u32) -> Quota {
    Quota {
        sandboxes,
        cpu,
        memory: MiB(memory),
        ..Quota::default()
    }
}

/// See its name.
pub async fn every_limit_holds_by_itself(one: &dyn Shares, other: &dyn Shares) {
    let Resources { cpu, memory, .. } = Resources::default();
    let (much, size) = (u32::MAX, memory.0);
    for (quota, fit, limit) in [
        (quota(3, much, much), 3, Beyond::Sandboxes(3)),
        (quota(much, 2 * cpu + 1, much), 2, Beyond::Cpu(2 * cpu + 1)),
        (quota(much, much, 4 * size), 4, Beyond::MemoryMib(4 * size)),
    ] {
        let team = TeamId::random();
        let mut taken = Vec::new();
        let refused = loop {
            let face = if taken.len() % 2 == 0 { one } else { other };
            let share = share(team);
            match face.claim(share, &quota).await {
                Ok(()) => taken.push(share),
                Err(limit) => break limit,
            }
        };
        assert_eq!((taken.len(), refused), (fit, limit));
        one.release(taken[0]).await;
        taken[0] = share(team);
        assert_eq!(other.claim(taken[0], &quota).await, Ok(()));
        for share in taken {
            other.release(share).await;
        }
        assert_eq!(one.held(team).await, Held::default());
    }
}

/// See its name.
pub async fn of_many_claims_at_once_as_many_are_granted_as_fit(one: &dyn Shares, other: &dyn Shares) {
    let (team, quota) = (TeamId::random(), quota(7, u32::MAX, u32::MAX));
    let claims = (0..50).map(|n| {
        let face = if n % 2 == 0 { one } else { other };
        face.claim(share(team), &quota)
    });
    let granted = join_all(claims)
        .await
        .iter()
        .filter(|claim| claim.is_ok())
        .count();
    assert_eq!(granted, 7);
    assert_eq!(other.held(team).await.sandboxes, 7);
}

/// See its name.
pub async fn a_share_is_taken_once(one: &dyn Shares, other: &dyn Shares) {
    let (team, quota) = (TeamId::random(), quota(2, u32::MAX, u32::MAX));
    let share = share(team);
    for face in [one, other, one] {
        assert_eq!(face.claim(share, &quota).await, Ok(()));
    }
    assert_eq!(one.held(team).await, Held::default().with(share.resources));
}

/// See its name.
pub async fn a_release_without_a_claim_gives_nothing(one: &dyn Shares, other: &dyn Shares) {
    let (team, quota) = (TeamId::random(), quota(1, u32::MAX, u32::MAX));
    let taken = share(team);
    one.claim(taken, &quota).await.expect("the first");
    other.release(share(team)).await;
    other.claim(share(team), &quota).await.expect_err("one is there");
    other.release(taken).await;
    one.release(taken).await;
    one.claim(share(team), &quota).await.expect("none is there");
    other.claim(share(team), &quota).await.expect_err("one is there");
}

/// See its name.
pub async fn a_late_end_of_one_incarnation_gives_back_nothing_of_the_next(
    one: &dyn Shares,
    other: &dyn Shares,
) {
    let (team, quota) = (TeamId::random(), quota(2, u32::MAX, u32::MAX));
    let (old, new) = (share(team), share(team));
    one.claim(old, &quota).await.expect("the first");
    other.claim(new, &quota).await.expect("the second");
    one.release(old).await;
    other.release(old).await;
    assert_eq!(one.held(team).await.sandboxes, 1);
}

/// See its name.
pub async fn what_is_given_back_behind_the_back_is_there_for_the_next_claim(
    one: &dyn Shares,
    other: &dyn Shares,
) {
    let (team, quota) = (TeamId::random(), quota(1, u32::MAX, u32::MAX));
    for _ in 0..20 {
        let taken = share(team);
        one.claim(taken, &quota).await.expect("none is there");
        one.release_soon(taken);
    }
    crate::catalog::contract::eventually("it is given back everywhere", async || {
        other.held(team).await == Held::default()
    })
    .await;
}

/// See its name.
pub async fn what_is_there_is_held_whatever_the_quota_says(one: &dyn Shares, other: &dyn Shares) {
    let (team, quota) = (TeamId::random(), quota(1, u32::MAX, u32::MAX));
    let there = [share(team), share(team), share(TeamId::random())];
    assert_eq!(one.hold(&there[..1]).await, there[..1]);
    assert_eq!(other.hold(&there).await, there[1..]);
    assert_eq!(one.hold(&there).await, []);
    assert_eq!(other.held(team).await.sandboxes, 2);
    other.release(there[0]).await;
    one.claim(share(team), &quota).await.expect_err("one is there");
    other.release(there[1]).await;
    one.claim(share(team), &quota).await.expect("none is there");
    assert_eq!(one.held(there[2].team).await.sandboxes, 1);
}

/// See its name.
pub async fn a_share_that_is_handed_on_counts_once_and_is_as_good_as_new(
    one: &dyn Shares,
    other: &dyn Shares,
) {
    let (team, quota) = (TeamId::random(), quota(1, u32::MAX, u32::MAX));
    let (old, new) = (share(team), ExecutionId::random());
    let handed_on = Share {
        execution: new,
        ..old
    };
    one.claim(old, &quota).await.expect("the first");
    let unstored = Duration::from_millis(500);
    tokio::time::sleep(unstored).await;
    other.hand_on(old, new).await;
    one.prune(&HashSet::from([old.execution]), unstored).await;
    one.release(old).await;
    other.hand_on(old, ExecutionId::random()).await;
    other.claim(share(team), &quota).await.expect_err("one is there");
    assert_eq!(other.held(team).await, Held::default().with(old.resources));
    one.release(handed_on).await;
    other.claim(share(team), &quota).await.expect("none is there");
}

/// See its name.
pub async fn only_old_shares_of_what_is_not_live_are_pruned(one: &dyn Shares, other: &dyn Shares) {
    let team = TeamId::random();
    let (live, leaked, fresh) = (share(team), share(team), share(team));
    one.hold(&[live, leaked]).await;
    let unstored = Duration::from_millis(500);
    tokio::time::sleep(unstored + Duration::from_millis(20)).await;
    other.hold(&[fresh]).await;
    one.prune(&HashSet::from([live.execution]), unstored).await;
    assert_eq!(other.held(team).await.sandboxes, 2);
    assert_eq!(one.hold(&[live, leaked, fresh]).await, [leaked]);
}
