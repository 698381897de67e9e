//! What placement does for a whole fleet, in virtual time. The whole form, 10 000 nodes and 1 000 000 sandboxes, is
//! `cargo bench -p orchestrator --bench fleet`.

use std::time::Duration;

use crate::simulation::{Outcome, Setup, run};

fn per_mille(part: usize, of: usize) -> usize {
    1000 * part / of.max(1)
}

fn outcome(setup: &Setup) -> Outcome {
    let (outcome, _) = run(setup);
    outcome
}

#[test]
fn a_fleet_with_room_refuses_nothing_and_stale_views_cost_little() {
    let setup = Setup::small(1);
    let outcome = outcome(&setup);
    let told = format!("{outcome}");
    assert_eq!((outcome.placed, outcome.refused), (setup.sandboxes, 0), "{told}");
    let asked = outcome.placed + outcome.wrong_full + outcome.wrong_lost;
    assert!(per_mille(outcome.wrong_full, asked) < 5, "{told}");
    assert!(per_mille(outcome.wrong_lost, asked) < 5, "{told}");
    // No node is much fuller than the fleet is, and no zone has much more of a team than another.
    assert!((650..=820).contains(&outcome.packing.p50), "{told}");
    assert!(outcome.packing.p90 < 900, "{told}");
    assert!(outcome.zones.p50 < 1150 && outcome.zones.p99 < 1450, "{told}");
    assert!(outcome.lost > 100, "nodes were lost: {told}");
}

#[test]
fn a_fleet_that_is_asked_for_more_than_it_has_is_filled_and_refuses_the_rest() {
    let mut setup = Setup::small(2);
    setup.load = 1.2;
    setup.sandboxes = 30_000;
    let outcome = outcome(&setup);
    let told = format!("{outcome}");
    assert!(outcome.refused > 100, "{told}");
    assert!(outcome.packing.p50 > 880, "{told}");
    // What was refused while some node had room: the big ones, and those who had not heard of it yet.
    assert!(outcome.free_at_refusal_most < 250, "{told}");
    let asked = outcome.placed + outcome.wrong_full + outcome.wrong_lost;
    assert!(per_mille(outcome.wrong_full, asked) < 250, "{told}");
}

#[test]
fn the_same_seed_comes_to_the_same_outcome() {
    let setup = |seed| {
        let mut setup = Setup::small(seed);
        (setup.nodes, setup.sandboxes) = (100, 4_000);
        setup
    };
    assert_eq!(outcome(&setup(3)), outcome(&setup(3)));
    assert_ne!(outcome(&setup(3)).digest, outcome(&setup(4)).digest);
}

#[test]
fn a_fleet_whose_reports_are_late_and_lost_is_still_used() {
    let mut setup = Setup::small(5);
    setup.sandboxes = 30_000;
    setup.report_every = Duration::from_secs(10);
    setup.reports_lost = 0.4;
    setup.policy.stale_after = Duration::from_secs(60);
    let outcome = outcome(&setup);
    let told = format!("{outcome}");
    assert_eq!(outcome.refused, 0, "{told}");
    let asked = outcome.placed + outcome.wrong_full + outcome.wrong_lost;
    assert!(
        per_mille(outcome.wrong_full + outcome.wrong_lost, asked) < 30,
        "{told}"
    );
}
