//! The laws of [`Queue`], one function each, which every adapter's tests run: see [`crate::queue_contract`].
//!
//! Each takes two faces of one queue, as two processes have them, with the [`terms`] that are here; one process has the same face
//! twice.
use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::{BODY_BYTES_MAX, Delivery, NO_WORD, Queue, QueueError, Terms};
use crate::store::contract::join_all;

/// Makes the laws of [`Queue`](crate::Queue) tests of one adapter. The argument is a future of two faces of one fresh queue with
/// [`terms`], behind whatever must live as long as they; or, with
/// `where_installed` before it, of `None` where there is nothing to run the laws on.
#[macro_export]
macro_rules! queue_contract {
    ($make:expr) => {
        $crate::queue_contract!(where_installed async { Some($make.await) });
    };
    (where_installed $make:expr) => {
        $crate::queue_contract! { @laws $make;
            what_is_pushed_is_taken_once_and_in_order,
            an_id_is_pushed_once,
            who_waits_is_woken_by_a_push,
            what_is_done_is_never_taken_again,
            work_of_a_consumer_who_died_goes_to_another,
            who_says_that_he_is_at_it_keeps_it,
            what_failed_is_tried_again_after_a_while_and_counted,
            what_fails_always_becomes_a_dead_letter_with_its_reason,
            what_kills_its_consumers_becomes_a_dead_letter,
            of_dead_letters_the_newest_are_kept,
            a_full_queue_takes_no_more,
            what_is_too_large_is_refused,
            topics_do_not_meet,
            many_consumers_share_the_work,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, one, other)) = $make.await else { return };
                $crate::queue::contract::$law(&*one, &*other).await;
            }
        )*
    };
}

/// Short ones, for the laws.
#[must_use]
pub fn terms() -> Terms {
    Terms {
        silence: Duration::from_millis(600),
        backoff: Duration::from_millis(100),
        attempts_max: 3,
        waiting_max: 40,
        dead_max: 5,
        known_for: Duration::from_secs(60),
    }
}

const TOPIC: &str = "webhooks";
const NOW: Duration = Duration::ZERO;
/// A moment longer than what is waited for.
const A_MOMENT: Duration = Duration::from_millis(60);

fn body(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn push(queue: &dyn Queue, id: &str) {
    let pushed = queue.push(TOPIC, id, body(id)).await;
    assert!(pushed.expect("the queue is there"), "{id} was pushed before");
}

async fn take(queue: &dyn Queue, consumer: &str, most: usize, wait: Duration) -> Vec<Delivery> {
    let taken = queue.take(TOPIC, consumer, most, wait).await;
    taken.expect("the queue is there")
}

fn ids(taken: &[Delivery]) -> Vec<&str> {
    taken.iter().map(|delivery| delivery.id.as_str()).collect()
}

/// See its name.
pub async fn what_is_pushed_is_taken_once_and_in_order(one: &dyn Queue, other: &dyn Queue) {
    for id in ["a", "b", "c"] {
        push(one, id).await;
    }
    let first = take(other, "x", 2, NOW).await;
    assert_eq!(ids(&first), ["a", "b"]);
    assert_eq!((&first[0].body[..], first[0].attempt), (&b"a"[..], 1));
    assert_eq!(ids(&take(one, "y", 10, NOW).await), ["c"]);
    assert!(take(other, "x", 10, NOW).await.is_empty());
}

/// See its name.
pub async fn an_id_is_pushed_once(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    let again = async |queue: &dyn Queue| queue.push(TOPIC, "a", body("other")).await.expect("there");
    assert!(!again(other).await);
    let taken = take(one, "x", 10, NOW).await;
    assert_eq!(ids(&taken), ["a"]);
    one.done(TOPIC, &taken[0]).await.expect("done");
    assert!(!again(one).await);
    assert!(take(other, "x", 10, NOW).await.is_empty());
}

/// See its name.
pub async fn who_waits_is_woken_by_a_push(one: &dyn Queue, other: &dyn Queue) {
    let wait = take(one, "x", 10, Duration::from_secs(20));
    let later = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        push(other, "a").await;
    };
    let (taken, ()) = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(wait, later) })
        .await
        .expect("nobody was woken");
    assert_eq!(ids(&taken), ["a"]);
    let began = tokio::time::Instant::now();
    assert!(take(one, "x", 10, Duration::from_millis(150)).await.is_empty());
    let waited = began.elapsed();
    assert!(
        waited >= Duration::from_millis(100) && waited < Duration::from_secs(5),
        "{waited:?}"
    );
}

/// See its name.
pub async fn what_is_done_is_never_taken_again(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    let taken = take(one, "x", 1, NOW).await;
    other.done(TOPIC, &taken[0]).await.expect("done");
    one.done(TOPIC, &taken[0]).await.expect("nothing to do");
    one.retry(TOPIC, &taken[0], "too late")
        .await
        .expect("nothing to do");
    tokio::time::sleep(terms().silence + A_MOMENT).await;
    assert!(take(other, "y", 10, NOW).await.is_empty());
    assert!(one.dead(TOPIC, 10).await.expect("there").is_empty());
}

/// See its name.
pub async fn work_of_a_consumer_who_died_goes_to_another(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    let dead = take(one, "x", 1, NOW).await;
    assert!(take(other, "y", 1, NOW).await.is_empty());
    tokio::time::sleep(terms().silence + A_MOMENT).await;
    push(one, "b").await;
    let taken = take(other, "y", 10, NOW).await;
    assert_eq!(ids(&taken), ["a", "b"]);
    assert_eq!((taken[0].attempt, taken[1].attempt), (2, 1));
    // He was slow, and not dead: what he says of it now is old.
    one.retry(TOPIC, &dead[0], "slow").await.expect("nothing to do");
    one.keep(TOPIC, &dead[0]).await.expect("nothing to do");
    tokio::time::sleep(terms().backoff * 2 + A_MOMENT).await;
    assert!(take(one, "x", 10, NOW).await.is_empty());
}

/// See its name.
pub async fn who_says_that_he_is_at_it_keeps_it(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    let taken = take(one, "x", 1, NOW).await;
    for _ in 0..5 {
        tokio::time::sleep(terms().silence / 3).await;
        one.keep(TOPIC, &taken[0]).await.expect("kept");
        assert!(take(other, "y", 1, NOW).await.is_empty());
    }
}

/// See its name.
pub async fn what_failed_is_tried_again_after_a_while_and_counted(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    let first = take(one, "x", 1, NOW).await;
    one.retry(TOPIC, &first[0], "busy").await.expect("retried");
    assert!(take(other, "y", 1, NOW).await.is_empty());
    let second = take(other, "y", 1, Duration::from_secs(5)).await;
    assert_eq!((ids(&second), second[0].attempt), (vec!["a"], 2));
    assert_eq!(&second[0].body[..], b"a");
}

/// See its name.
pub async fn what_fails_always_becomes_a_dead_letter_with_its_reason(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    for attempt in 1..=terms().attempts_max {
        let taken = take(one, "x", 1, Duration::from_secs(5)).await;
        assert_eq!(taken[0].attempt, attempt);
        other
            .retry(TOPIC, &taken[0], &format!("failure {attempt}"))
            .await
            .expect("retried");
    }
    let dead = one.dead(TOPIC, 10).await.expect("there");
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].id.as_str(), &dead[0].body[..]), ("a", &b"a"[..]));
    assert_eq!((dead[0].attempts, dead[0].why.as_str()), (3, "failure 3"));
    tokio::time::sleep(terms().silence + A_MOMENT).await;
    assert!(take(other, "y", 10, NOW).await.is_empty());
}

/// See its name.
pub async fn what_kills_its_consumers_becomes_a_dead_letter(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    for _ in 0..terms().attempts_max {
        assert_eq!(take(one, "x", 1, Duration::from_secs(5)).await.len(), 1);
    }
    tokio::time::sleep(terms().silence + A_MOMENT).await;
    assert!(take(other, "y", 10, NOW).await.is_empty());
    let dead = other.dead(TOPIC, 10).await.expect("there");
    assert_eq!((dead.len(), dead[0].why.as_str()), (1, NO_WORD));
    assert_eq!(dead[0].attempts, terms().attempts_max);
}

/// See its name.
pub async fn of_dead_letters_the_newest_are_kept(one: &dyn Queue, other: &dyn Queue) {
    let count = 2 * terms().dead_max;
    for n in 0..count {
        push(one, &n.to_string()).await;
        for _ in 0..terms().attempts_max {
            let taken = take(one, "x", 1, Duration::from_secs(5)).await;
            one.retry(TOPIC, &taken[0], "no").await.expect("retried");
        }
    }
    let dead = other.dead(TOPIC, count).await.expect("there");
    let kept: Vec<_> = dead.iter().map(|letter| letter.id.clone()).collect();
    let newest: Vec<_> = (count - terms().dead_max..count)
        .rev()
        .map(|n| n.to_string())
        .collect();
    assert_eq!(kept, newest);
    assert_eq!(other.dead(TOPIC, 1).await.expect("there").len(), 1);
}

/// See its name.
pub async fn a_full_queue_takes_no_more(one: &dyn Queue, other: &dyn Queue) {
    let most = terms().waiting_max;
    for n in 0..most {
        push(one, &n.to_string()).await;
    }
    let refused = other.push(TOPIC, "more", body("more")).await;
    assert!(
        matches!(refused, Err(QueueError::Full(full)) if full == most),
        "{refused:?}"
    );
    let taken = take(one, "x", 1, NOW).await;
    one.done(TOPIC, &taken[0]).await.expect("done");
    // What was refused is not known.
    push(other, "more").await;
}

/// See its name.
pub async fn what_is_too_large_is_refused(one: &dyn Queue, _: &dyn Queue) {
    let large = Bytes::from(vec![7; BODY_BYTES_MAX + 1]);
    let refused = one.push(TOPIC, "a", large.clone()).await;
    assert!(matches!(refused, Err(QueueError::TooLarge(_))));
    let fits = large.slice(..BODY_BYTES_MAX);
    assert!(one.push(TOPIC, "a", fits.clone()).await.expect("there"));
    assert_eq!(take(one, "x", 1, NOW).await[0].body, fits);
}

/// See its name.
pub async fn topics_do_not_meet(one: &dyn Queue, other: &dyn Queue) {
    push(one, "a").await;
    assert!(one.push("builds", "a", body("b")).await.expect("there"));
    let builds = other.take("builds", "x", 10, NOW).await.expect("there");
    assert_eq!((ids(&builds), &builds[0].body[..]), (vec!["a"], &b"b"[..]));
    assert_eq!(ids(&take(other, "x", 10, NOW).await), ["a"]);
}

/// See its name.
pub async fn many_consumers_share_the_work(one: &dyn Queue, other: &dyn Queue) {
    let count = terms().waiting_max;
    for n in 0..count {
        push(one, &n.to_string()).await;
    }
    let consumers = (0..8).map(|n| async move {
        let face = if n % 2 == 0 { one } else { other };
        let mut done = Vec::new();
        loop {
            let taken = take(face, &format!("consumer {n}"), 3, NOW).await;
            if taken.is_empty() {
                return done;
            }
            for delivery in taken {
                face.done(TOPIC, &delivery).await.expect("done");
                done.push(delivery.id);
            }
        }
    });
    let done: Vec<String> = join_all(consumers).await.into_iter().flatten().collect();
    assert_eq!(done.len(), count);
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), count);
}
