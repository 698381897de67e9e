//! The laws of the stores, one function each, which every adapter's tests run: see [`crate::store_contract`].
//!
//! Each function panics where its law is broken, as a test does. It may be run on a store that holds other things.
mod builds;
mod sandboxes;
mod teams;
mod templates;
mod volumes;

pub use builds::*;
pub use sandboxes::*;
pub use teams::*;
pub use templates::*;
pub use volumes::*;

/// Makes the laws of all stores tests of one adapter. The argument is a future
/// of a fresh store in an `Arc`, behind whatever must live as long as it.
///
/// `where_installed` goes before a future of an `Option`, which is `None` where the adapter needs a program that is not
/// installed; the future says so loudly.
#[macro_export]
macro_rules! store_contract {
    (where_installed $make:expr) => {
        $crate::store_contract! { @each (optional) $make }
    };
    ($make:expr) => {
        $crate::store_contract! { @each (always) $make }
    };
    (@each $how:tt $make:expr) => {
        $crate::store_contract! { @laws $how $make;
            what_is_stored_is_what_was_meant,
            an_id_is_stored_once,
            a_stale_write_is_refused,
            of_many_writers_of_one_version_one_wins,
            a_list_shows_what_clients_see,
            a_list_obeys_every_filter,
            pages_join_without_gap_or_overlap_in_both_orders,
            the_gone_are_not_live_and_are_forgotten_in_time,
            labels_hold_every_character_and_are_found_by_their_own_team,
            of_many_that_live_each_is_told_once,
            many_that_are_gone_are_forgotten_together,
            a_template_is_found_by_id_name_and_promotion,
            a_template_name_is_taken_once_in_a_team,
            spawns_are_counted_and_survive_an_update,
            builds_are_what_tags_name,
            a_template_is_stored_with_its_builds_or_without_any,
            a_stale_template_is_refused,
            of_many_writers_of_one_template_one_wins,
            a_template_name_holds_every_character,
            a_build_is_stored_once_and_as_it_was_meant,
            a_stale_build_is_refused,
            of_many_writers_of_one_build_one_wins,
            builds_are_listed_in_their_orders,
            lines_are_read_once_and_in_order,
            lines_are_filtered_before_they_are_counted,
            lines_of_many_writers_are_all_kept,
            removed_builds_take_their_lines_along,
            a_cached_step_is_its_teams_alone,
            the_longest_unused_result_comes_first,
            a_forgotten_result_is_not_found,
            what_the_blobs_hold_is_noted_once_for_each_build,
            builds_beyond_a_number_are_those_that_are_over_and_oldest,
            a_volume_is_found_by_id_and_name,
            a_volume_name_is_taken_once_in_a_team,
            volumes_are_listed_by_creation,
            a_volume_that_was_given_up_leaves_its_name_and_remains,
            a_stale_volume_is_refused,
            of_many_writers_of_one_volume_one_wins,
            a_volume_name_holds_every_character,
            a_team_slug_is_taken_once,
            a_quota_is_replaced_and_nothing_else,
            a_key_is_found_by_its_hash_with_its_team,
            a_key_belongs_to_its_team_alone,
            names_of_teams_and_keys_hold_every_character,
            the_seed_stays,
        }
    };
    (@laws (always) $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let (_kept, store) = $make.await;
                $crate::store::contract::$law(&*store).await;
            }
        )*
    };
    (@laws (optional) $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                if let Some((_kept, store)) = $make.await {
                    $crate::store::contract::$law(&*store).await;
                }
            }
        )*
    };
}

/// Texts that some adapter may not hold as they are, or may take for each other.
pub(crate) const ODD_TEXTS: [&str; 8] = [
    "a\0b",
    "ab",
    "a\u{1}0b",
    "a\u{1}b",
    "a\\0b",
    "a\\u0000b",
    "\u{10ffff}'\";%_",
    "A\0B",
];

/// All of them at once, in their order.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(move |context| {
        for (future, output) in &mut waiting {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(context)
            {
                *output = Some(done);
            }
        }
        if waiting.iter().any(|(_, output)| output.is_none()) {
            return std::task::Poll::Pending;
        }
        let done = waiting.iter_mut().filter_map(|(_, output)| output.take());
        std::task::Poll::Ready(done.collect())
    })
    .await
}
