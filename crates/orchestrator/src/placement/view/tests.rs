use std::collections::{BTreeMap, BTreeSet};

use model::MiB;
use uuid_of::{build, node, team};

use super::*;
use crate::placement::{Filtered, Overcommit, Place, Ratio, Room};

/// Ids that are the same in every run.
mod uuid_of {
    use model::{BuildId, NodeId, TeamId};

    fn text(kind: u32, number: u32) -> String {
        format!("{kind:08x}-0000-4000-8000-{number:012x}")
    }

    pub(super) fn node(number: u32) -> NodeId {
        text(1, number).parse().unwrap()
    }

    pub(super) fn team(number: u32) -> TeamId {
        text(2, number).parse().unwrap()
    }

    pub(super) fn build(number: u32) -> BuildId {
        text(3, number).parse().unwrap()
    }
}

const SMALL: Resources = Resources {
    cpu: 1,
    memory: MiB(1024),
    disk: MiB(1024),
};

fn facts() -> Facts {
    Facts {
        place: Place::default(),
        runtime: "container".to_owned(),
        can: Needs::NETWORK | Needs::VOLUMES,
        accepts: true,
        total: Room {
            cpu: 8,
            memory: 16 * 1024,
            disk: 100 * 1024,
        },
        promised: Room::default(),
        memory_available: 8 * 1024,
        disk_available: 50 * 1024,
        slots_ready: 4,
        starting: 0,
        teams: Vec::new(),
        own: Vec::new(),
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The usual, with disks that are promises too.
fn strict() -> Policy {
    let usual = Policy::default();
    let overcommit = Overcommit {
        disk: Ratio::ONE,
        ..usual.overcommit
    };
    Policy { overcommit, ..usual }
}

fn fleet(nodes: u32, edit: impl Fn(u32, &mut Facts)) -> View {
    let mut view = View::new(strict(), 7);
    for number in 0..nodes {
        let mut facts = facts();
        edit(number, &mut facts);
        assert!(view.report(node(number), facts, at(0)));
    }
    view
}

fn wish() -> Wish<'static> {
    Wish::new(team(1), SMALL)
}

fn chosen(view: &mut View, wish: &Wish<'_>, seconds: u64) -> Result<NodeId, Filtered> {
    view.choose(wish, &[], at(seconds)).map(|choice| choice.node)
}

/// Nothing takes the wish, for this reason.
fn check_refused(view: &mut View, wish: &Wish<'_>, seconds: u64, reason: Reason) {
    let filtered = view.choose(wish, &[], at(seconds)).expect_err("nothing is found");
    assert_eq!(
        (filtered.of(reason), filtered.sum()),
        (1, 1),
        "{reason:?}: {filtered:?}"
    );
}

#[test]
fn each_filter_tells_its_reason() {
    let mut view = fleet(1, |_, _| {});
    let plain = wish();
    let excluded = [node(0)];
    check_refused(
        &mut view,
        &Wish {
            excluded: &excluded,
            ..plain
        },
        1,
        Reason::Excluded,
    );
    check_refused(
        &mut view,
        &Wish {
            runtime: Some("qemu"),
            ..plain
        },
        1,
        Reason::Runtime,
    );
    check_refused(
        &mut view,
        &Wish {
            needs: Needs::OWN_KERNEL,
            ..plain
        },
        1,
        Reason::Capability,
    );
    let sized = |cpu, memory, disk| Wish {
        resources: Resources {
            cpu,
            memory: MiB(memory),
            disk: MiB(disk),
        },
        ..plain
    };
    check_refused(&mut view, &sized(33, 1, 1), 1, Reason::Cpu);
    check_refused(&mut view, &sized(1, 16 * 1024 + 1, 1), 1, Reason::Memory);
    check_refused(&mut view, &sized(1, 1, 100 * 1024 + 1), 1, Reason::Disk);
    assert_eq!(
        chosen(&mut view, &sized(32, 16 * 1024, 100 * 1024), 1),
        Ok(node(0))
    );

    let mut view = fleet(1, |_, _| {});
    check_refused(&mut view, &plain, 30, Reason::Stale);
    for (state, reason) in [
        (State::Cordoned, Reason::Cordoned),
        (State::Draining, Reason::Draining),
        (State::Unhealthy { since: at(1) }, Reason::Unhealthy),
    ] {
        assert!(view.set_state(node(0), state));
        check_refused(&mut view, &plain, 1, reason);
    }
    assert!(view.set_state(node(0), State::Ready) && !view.set_state(node(9), State::Ready));
    assert_eq!(chosen(&mut view, &plain, 1), Ok(node(0)));

    let closed = |facts: &mut Facts| facts.accepts = false;
    check_refused(&mut fleet(1, |_, facts| closed(facts)), &plain, 1, Reason::Closed);
    check_refused(
        &mut fleet(1, |_, facts| facts.memory_available = 100),
        &plain,
        1,
        Reason::Memory,
    );
    check_refused(
        &mut fleet(1, |_, facts| facts.disk_available = 100),
        &plain,
        1,
        Reason::Disk,
    );
    let mut old = View::new(
        Policy {
            protocols: 2..=3,
            ..Policy::default()
        },
        7,
    );
    old.report(node(0), facts(), at(0));
    check_refused(&mut old, &plain, 1, Reason::Protocol);
    assert_eq!(
        View::new(Policy::default(), 7)
            .choose(&plain, &[], at(0))
            .unwrap_err()
            .sum(),
        0
    );
}

#[test]
fn the_one_node_with_room_is_found_among_many_and_refusals_count_every_node() {
    let mut view = fleet(5000, |number, facts| {
        if number != 4321 {
            facts.promised.memory = facts.total.memory;
        }
    });
    view.set_state(node(7), State::Cordoned);
    for _ in 0..16 {
        assert_eq!(chosen(&mut view, &wish(), 1), Ok(node(4321)));
    }
    let filtered = view.choose(&wish(), &[], at(1)).unwrap_err();
    let counts = [Reason::Memory, Reason::Cordoned].map(|reason| filtered.of(reason));
    assert_eq!((counts, filtered.sum()), ([4999, 1], 5000));
}

#[test]
fn a_burst_between_two_reports_is_spread_and_no_node_is_promised_more_than_it_may() {
    let mut view = fleet(10, |_, _| {});
    let mut counts = BTreeMap::<_, u32>::new();
    for _ in 0..160 {
        *counts.entry(chosen(&mut view, &wish(), 1).unwrap()).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [16; 10]);
    assert_eq!(
        view.choose(&wish(), &[], at(1)).unwrap_err().of(Reason::Memory),
        10
    );
}

#[test]
fn a_claim_counts_until_it_is_released_or_a_newer_report_includes_it() {
    let free = |view: &View| view.get(node(0)).unwrap().free[1];
    let mut view = fleet(1, |_, _| {});
    let claim = |view: &mut View, seconds| view.choose(&wish(), &[], at(seconds)).unwrap().claim;
    let (given_back, started, under_way) = (claim(&mut view, 1), claim(&mut view, 1), claim(&mut view, 1));
    assert_eq!(free(&view), 13 * 1024);
    view.release(given_back);
    view.release(given_back);
    assert_eq!(free(&view), 14 * 1024);
    view.keep(started, at(5));
    // Taken before the start was over: it may lack it.
    assert!(view.report(node(0), facts(), at(4)));
    assert_eq!((free(&view), view.get(node(0)).unwrap().claims), (14 * 1024, 2));
    assert!(
        !view.report(node(0), facts(), at(3)),
        "an older report changes nothing"
    );
    assert!(view.report(node(0), facts(), at(5)));
    assert_eq!((free(&view), view.get(node(0)).unwrap().claims), (15 * 1024, 1));
    view.keep(under_way, at(6));
    // A silent node's are forgotten in the end.
    view.join(node(1));
    let policy = view.policy().clone();
    let late = at(6) + policy.claims_for + at(1);
    view.report(node(1), facts(), late);
    let choice = view.claim_on(node(0), &wish(), late).unwrap();
    assert_eq!(view.get(node(0)).unwrap().claims, 1);
    view.release(choice.claim);
    assert_eq!(free(&view), 16 * 1024);
}

#[test]
fn what_has_ended_is_free_before_the_next_report_says_so_and_only_once() {
    let full = || {
        let mut facts = facts();
        facts.promised.memory = facts.total.memory;
        facts
    };
    let free = |view: &View| view.get(node(0)).unwrap().free[1];
    let mut view = View::new(Policy::default(), 7);
    view.freed(node(0), SMALL, at(0));
    view.report(node(0), full(), at(0));
    check_refused(&mut view, &wish(), 1, Reason::Memory);
    view.freed(node(0), SMALL, at(2));
    assert_eq!(free(&view), 1024);
    assert_eq!(chosen(&mut view, &wish(), 2), Ok(node(0)));
    view.report(node(0), full(), at(1));
    assert_eq!(
        free(&view),
        0,
        "the report was taken before, and the claim counts on"
    );
    view.report(node(0), facts(), at(2));
    (0..1000).for_each(|_| view.freed(node(0), SMALL, at(3)));
    assert_eq!(free(&view), 16 * 1024, "no more than there is");
}

#[test]
fn a_node_that_refused_is_asked_for_less_until_it_reports() {
    let mut view = fleet(1, |_, _| {});
    let refused = view.choose(&wish(), &[], at(1)).unwrap();
    view.full(refused.claim, "memory");
    check_refused(&mut view, &wish(), 1, Reason::Memory);
    let mut smaller = wish();
    smaller.resources.memory = MiB(512);
    assert_eq!(chosen(&mut view, &smaller, 1), Ok(node(0)));
    view.report(node(0), facts(), at(2));
    let refused = view.choose(&wish(), &[], at(2)).unwrap();
    view.full(refused.claim, "slots");
    check_refused(&mut view, &smaller, 2, Reason::Closed);
    view.report(node(0), facts(), at(3));
    assert_eq!(chosen(&mut view, &smaller, 3), Ok(node(0)));
}

#[test]
fn failures_rest_a_node_for_a_while_but_the_last_resort_is_taken() {
    let mut view = fleet(2, |_, _| {});
    for _ in 0..10 {
        view.failed(node(0), at(1));
    }
    assert!((0..8).all(|_| chosen(&mut view, &wish(), 2) == Ok(node(1))));
    view.set_state(node(1), State::Cordoned);
    assert_eq!(chosen(&mut view, &wish(), 2), Ok(node(0)), "better than none");
    for number in [0, 1] {
        view.report(node(number), facts(), at(100));
        view.set_state(node(number), State::Ready);
    }
    let both: BTreeSet<_> = (0..16)
        .map(|_| chosen(&mut view, &wish(), 101).unwrap())
        .collect();
    assert_eq!(both.len(), 2, "it is forgiven");
}

#[test]
fn what_holds_the_build_is_found_however_rare_it_is() {
    let mut view = fleet(3000, |_, _| {});
    for number in [17, 1800] {
        view.holds(node(number), [build(1), build(2)]);
    }
    view.fetched(node(2900), build(1));
    let local = Wish {
        build: Some(build(1)),
        ..wish()
    };
    let found = |view: &mut View, wish: &Wish<'_>| -> BTreeSet<NodeId> {
        let one = |_| {
            let choice = view.choose(wish, &[], at(1)).unwrap();
            view.release(choice.claim);
            choice.node
        };
        (0..12).map(one).collect()
    };
    assert_eq!(
        found(&mut view, &local),
        BTreeSet::from([17, 1800, 2900].map(node))
    );
    view.holds(node(17), [build(2)]);
    view.forget(node(1800));
    assert_eq!(found(&mut view, &local), BTreeSet::from([node(2900)]));
    // The base is found where nobody has the build itself.
    let on_base = Wish {
        build: Some(build(9)),
        base: Some(build(2)),
        ..wish()
    };
    assert_eq!(found(&mut view, &on_base), BTreeSet::from([node(17)]));
    view.holds(node(17), []);
    view.forget(node(2900));
    assert!(view.holders.is_empty(), "what nobody holds is forgotten");
    // Enough of a burst goes elsewhere all the same: a node that is busy is worth less than one that has to fetch.
    view.holds(node(5), [build(1)]);
    let burst: BTreeSet<_> = (0..40).map(|_| chosen(&mut view, &local, 1).unwrap()).collect();
    assert!(burst.contains(&node(5)) && burst.len() > 20, "{}", burst.len());
}

#[test]
fn a_team_is_spread_over_zones_and_a_preferred_zone_or_node_is_preferred() {
    let zones = ["a", "b", "c"];
    let mut view = fleet(300, |number, facts| {
        facts.place.zone = zones[number as usize % 3].to_owned()
    });
    let mut counts = BTreeMap::<_, u32>::new();
    for _ in 0..300 {
        let found = chosen(&mut view, &wish(), 1).unwrap();
        let zone = view.get(found).unwrap().facts.unwrap().place.zone.clone();
        *counts.entry(zone).or_default() += 1;
    }
    assert!(
        counts.values().all(|count| (95..=105).contains(count)),
        "{counts:?}"
    );
    let mut other = wish();
    other.team = team(2);
    other.zone = Some("b");
    let found = chosen(&mut view, &other, 1).unwrap();
    assert_eq!(view.get(found).unwrap().facts.unwrap().place.zone, "b");
    let home = Wish {
        home: Some(node(123)),
        ..wish()
    };
    assert_eq!(chosen(&mut view, &home, 1), Ok(node(123)));
}

#[test]
fn what_can_be_on_one_node_alone_is_there_or_nowhere() {
    // Any other would be better: it is the fullest of them.
    let mut view = fleet(50, |number, facts| {
        if number == 7 {
            facts.promised.memory = 15 * 1024;
        }
    });
    let only = Wish {
        only: Some(node(7)),
        ..wish()
    };
    assert_eq!(chosen(&mut view, &only, 1), Ok(node(7)));
    // That one has taken the rest of it.
    check_refused(&mut view, &only, 1, Reason::Memory);
    let mut view = fleet(50, |_, _| {});
    let nobody = Wish {
        only: Some(node(99)),
        ..wish()
    };
    let told = view.choose(&nobody, &[], at(1)).unwrap_err();
    assert_eq!(told, Filtered::default());
    let told = view.choose(&only, &[node(7)], at(1)).unwrap_err();
    assert_eq!((told.of(Reason::Excluded), told.sum()), (1, 1));
    // One that rests from failures is asked, for there is no other; one that is closed is not.
    for _ in 0..10 {
        view.failed(node(7), at(1));
    }
    assert_eq!(chosen(&mut view, &only, 1), Ok(node(7)));
    view.set_state(node(7), State::Cordoned);
    check_refused(&mut view, &only, 1, Reason::Cordoned);
}

#[test]
fn a_node_that_never_reported_is_asked_where_no_other_is_better() {
    let mut view = View::new(Policy::embedded(), 7);
    view.join(node(0));
    let unheard: Vec<_> = (0..3)
        .map(|_| view.choose(&wish(), &[], at(1)).unwrap())
        .collect();
    for choice in unheard {
        view.keep(choice.claim, at(1));
    }
    assert_eq!(view.get(node(0)).unwrap().claims, 0, "nothing piles up");
    view.report(node(1), facts(), at(2));
    assert!((0..8).all(|_| chosen(&mut view, &wish(), 3) == Ok(node(1))));
    // The embedded mode's node is asked for whatever is wished, however old its report is.
    view.forget(node(0));
    let mut huge = wish();
    huge.resources.memory = MiB(u32::MAX);
    assert_eq!(chosen(&mut view, &huge, 100_000), Ok(node(1)));
}

#[test]
fn a_forgotten_nodes_place_is_taken_by_another_and_old_claims_do_not_touch_it() {
    let mut view = fleet(2, |_, facts| facts.teams = vec![(team(1), 3)]);
    let old = view.claim_on(node(1), &wish(), at(1)).unwrap();
    view.forget(node(1));
    view.forget(node(1));
    view.report(node(2), facts(), at(1));
    view.release(old.claim);
    view.keep(old.claim, at(1));
    assert_eq!(view.get(node(2)).unwrap().free[1], 16 * 1024);
    assert_eq!((view.len(), view.open.len(), view.rows.len()), (2, 2, 2));
    assert_eq!(view.spread.of(team(1)).iter().sum::<u32>(), 3);
    view.forget(node(0));
    assert!(view.spread.0.is_empty());
    assert!(!view.is_empty());
}

/// All that is derived is what it would be if it were made anew.
fn check_whole(view: &View) {
    let mut spread = Spread::default();
    let mut open = BTreeSet::new();
    for (slot, (row, member)) in view.rows.iter().zip(&view.members).enumerate() {
        if !row.live {
            assert!(member.claims.is_empty() && member.builds.is_empty() && member.facts.is_none());
            continue;
        }
        for (team, count) in member.facts.iter().flat_map(|facts| &facts.teams) {
            spread.add(*team, row.zone, *count);
        }
        for claim in &member.claims {
            spread.add(claim.team, row.zone, 1);
        }
        if row.barred.is_none() {
            open.insert(number(slot));
        }
        assert_eq!(view.slot(member.id), Some(slot));
        assert!(
            member
                .builds
                .iter()
                .all(|build| view.holders[build].contains(&number(slot)))
        );
        let claimed = member.claims.iter().map(|claim| claim.need[1]).sum::<i32>();
        assert_eq!(member.claimed[1], claimed);
        let starting = member
            .claims
            .iter()
            .filter(|claim| claim.kept_at.is_none())
            .count();
        assert_eq!(member.starting as usize, starting);
    }
    let trimmed = |zones: &Vec<u32>| {
        zones
            .iter()
            .rposition(|count| *count > 0)
            .map(|last| zones[..=last].to_vec())
    };
    let whole = |spread: &Spread| -> BTreeMap<TeamId, _> {
        spread
            .0
            .iter()
            .map(|(team, zones)| (*team, trimmed(zones)))
            .collect()
    };
    assert_eq!(whole(&view.spread), whole(&spread));
    assert_eq!(view.open.iter().copied().collect::<BTreeSet<_>>(), open);
    assert_eq!(view.open.len(), open.len());
    let held: usize = view.holders.values().map(Vec::len).sum();
    assert_eq!(
        held,
        view.members
            .iter()
            .map(|member| member.builds.len())
            .sum::<usize>()
    );
}

#[test]
fn whatever_happens_the_indexes_are_true_and_nobody_is_promised_more_than_there_is() {
    use rand::Rng;
    for seed in 0..60 {
        let mut dice = SmallRng::seed_from_u64(seed);
        let mut view = View::new(Policy::default(), seed);
        let mut claims = Vec::new();
        for step in 0_u64..400 {
            let now = at(step / 4);
            let some = node(dice.random_range(0..6));
            match dice.random_range(0..13) {
                0 => {
                    let mut facts = facts();
                    facts.place.zone = ["a", "b"][dice.random_range(0..2)].to_owned();
                    facts.promised.memory = dice.random_range(0..20 * 1024);
                    facts.accepts = dice.random_bool(0.9);
                    facts.teams = vec![(team(dice.random_range(0..3)), dice.random_range(1..5))];
                    view.report(some, facts, now.saturating_sub(at(dice.random_range(0..3))));
                }
                1 => view.forget(some),
                2 => view.join(some),
                3 => view.holds(some, (0..dice.random_range(0..5)).map(build)),
                4 => view.fetched(some, build(dice.random_range(0..9))),
                5 => view.failed(some, now),
                6 => {
                    let states = [State::Ready, State::Ready, State::Cordoned, State::Draining];
                    view.set_state(some, states[dice.random_range(0..4)]);
                }
                7 if !claims.is_empty() => {
                    view.release(claims.swap_remove(dice.random_range(0..claims.len())))
                }
                8 if !claims.is_empty() => {
                    view.full(claims.swap_remove(dice.random_range(0..claims.len())), "memory")
                }
                9 if !claims.is_empty() => view.keep(claims[dice.random_range(0..claims.len())], now),
                10 => view.freed(some, SMALL, now),
                _ => {
                    let mut wish = wish();
                    wish.team = team(dice.random_range(0..3));
                    wish.build = dice.random_bool(0.5).then(|| build(dice.random_range(0..9)));
                    wish.resources.memory = MiB(dice.random_range(1..4096));
                    if let Ok(choice) = view.choose(&wish, &[some], now) {
                        assert_ne!(choice.node, some);
                        let known = view.get(choice.node).unwrap();
                        assert!(known.free[1] >= 0 && known.state == State::Ready, "{known:?}");
                        claims.push(choice.claim);
                    }
                }
            }
            check_whole(&view);
        }
    }
}

#[test]
fn the_same_seed_chooses_the_same() {
    let run = |seed| -> Vec<NodeId> {
        let mut view = View::new(Policy::default(), seed);
        for number in 0..100 {
            view.report(node(number), facts(), at(0));
        }
        (0..200).map(|_| chosen(&mut view, &wish(), 1).unwrap()).collect()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn ratios_are_bounded() {
    assert_eq!(Ratio::new(4.0), Some(Overcommit::default().cpu));
    assert_eq!(Ratio::new(1.0), Some(Ratio::ONE));
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 2000.0] {
        assert_eq!(Ratio::new(wrong), None, "{wrong}");
    }
}
