//! The laws of [`Limits`], one function each, which every adapter's tests run: see [`crate::limit_contract`].
//!
//! Each takes two faces of the same limits, as two processes have them; one process has the same face twice.
use std::time::Duration;

use model::TeamId;

use super::{Limits, Rate};
use crate::store::contract::join_all;

/// Makes the laws of [`Limits`](crate::Limits) tests of one adapter. The argument is a future of two faces of the same fresh
/// limits, behind whatever must live as long as they; or, with
/// `where_installed` before it, of `None` where there is nothing to run the laws on.
#[macro_export]
macro_rules! limit_contract {
    ($make:expr) => {
        $crate::limit_contract!(where_installed async { Some($make.await) });
    };
    (where_installed $make:expr) => {
        $crate::limit_contract! { @laws $make;
            a_burst_is_let_through_and_no_more,
            who_waits_as_long_as_was_said_is_let_through,
            teams_and_things_have_buckets_of_their_own,
            of_many_at_once_a_burst_is_let_through,
            of_a_large_burst_nearly_all_is_let_through_and_no_more,
            a_bucket_never_holds_more_than_a_burst,
            a_rate_of_nothing_lets_nothing_through,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, one, other)) = $make.await else { return };
                $crate::limits::contract::$law(&*one, &*other).await;
            }
        )*
    };
}

/// Of which nothing comes back while a test runs.
const ONCE: Rate = Rate {
    per_second: 0,
    burst: 10,
};

/// See its name.
pub async fn a_burst_is_let_through_and_no_more(one: &dyn Limits, other: &dyn Limits) {
    let team = TeamId::random();
    for n in 0..ONCE.burst {
        let face = if n % 2 == 0 { one } else { other };
        assert_eq!(face.take(team, "starts", ONCE).await, Ok(()), "the {n}th");
    }
    for face in [one, other] {
        let wait = face
            .take(team, "starts", ONCE)
            .await
            .expect_err("nothing is left");
        assert!(wait > Duration::ZERO);
    }
}

/// See its name.
pub async fn who_waits_as_long_as_was_said_is_let_through(one: &dyn Limits, other: &dyn Limits) {
    let team = TeamId::random();
    let rate = Rate {
        per_second: 5,
        burst: 1,
    };
    one.take(team, "starts", rate).await.expect("the first");
    let wait = other
        .take(team, "starts", rate)
        .await
        .expect_err("nothing is left");
    assert!(wait <= Duration::from_millis(200), "{wait:?}");
    tokio::time::sleep(wait + Duration::from_millis(2)).await;
    other.take(team, "starts", rate).await.expect("it is there again");
}

/// See its name.
pub async fn teams_and_things_have_buckets_of_their_own(one: &dyn Limits, _: &dyn Limits) {
    let (team, rate) = (TeamId::random(), Rate { burst: 1, ..ONCE });
    one.take(team, "starts", rate).await.expect("the first");
    one.take(team, "starts", rate).await.expect_err("nothing is left");
    one.take(team, "requests", rate).await.expect("another thing");
    one.take(TeamId::random(), "starts", rate)
        .await
        .expect("another team");
}

/// See its name.
pub async fn of_many_at_once_a_burst_is_let_through(one: &dyn Limits, other: &dyn Limits) {
    let team = TeamId::random();
    let takes = (0..100).map(|n| {
        let face = if n % 2 == 0 { one } else { other };
        face.take(team, "starts", ONCE)
    });
    let through = join_all(takes).await.iter().filter(|take| take.is_ok()).count();
    assert_eq!(through, 10);
}

/// See its name. What is taken ahead may be lost, and nothing else.
pub async fn of_a_large_burst_nearly_all_is_let_through_and_no_more(one: &dyn Limits, other: &dyn Limits) {
    let large = Rate { burst: 5000, ..ONCE };
    let team = TeamId::random();
    let mut through = 0;
    for face in [one, other].into_iter().cycle().take(6000) {
        through += u32::from(face.take(team, "requests", large).await.is_ok());
    }
    assert!(
        (large.burst - large.burst / 100..=large.burst).contains(&through),
        "{through}"
    );
}

/// See its name.
pub async fn a_bucket_never_holds_more_than_a_burst(one: &dyn Limits, _: &dyn Limits) {
    let team = TeamId::random();
    let fast = Rate {
        per_second: 1000,
        burst: 3,
    };
    one.take(team, "starts", fast).await.expect("the first");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let slow = Rate {
        per_second: 0,
        ..fast
    };
    let mut through = 0;
    while one.take(team, "starts", slow).await.is_ok() {
        through += 1;
    }
    // What is read is filled by the rate of the one who reads: with another rate, what was there is there.
    assert!(through <= 3, "{through}");
}

/// See its name.
pub async fn a_rate_of_nothing_lets_nothing_through(one: &dyn Limits, _: &dyn Limits) {
    let rate = Rate {
        per_second: 0,
        burst: 0,
    };
    assert!(one.take(TeamId::random(), "starts", rate).await.is_err());
}
