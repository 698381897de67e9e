//! How long does one decision take in a fleet of 10 000 nodes, and how long one report:
//! `cargo bench -p orchestrator --bench placement`.
#![expect(clippy::print_stdout, reason = "a bench prints its numbers")]

use std::time::{Duration, Instant};

use model::{BuildId, NodeId, Resources, TeamId};
use orchestrator::placement::{Facts, Needs, Place, Policy, Reason, Room, View, Wish};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const NODES: usize = 10_000;
const ROUNDS: usize = 50_000;
/// As `cargo test` runs it, to see that it works.
const ROUNDS_IN_SHORT: usize = 2_000;
const NOW: Duration = Duration::from_secs(1);

fn main() {
    let is_short = !std::env::args().any(|argument| argument == "--bench");
    let rounds = if is_short { ROUNDS_IN_SHORT } else { ROUNDS };
    let mut dice = SmallRng::seed_from_u64(5);
    let nodes: Vec<NodeId> = (0..NODES).map(|_| NodeId::random()).collect();
    let teams: Vec<TeamId> = (0..50).map(|_| TeamId::random()).collect();
    let builds: Vec<BuildId> = (0..2000).map(|_| BuildId::random()).collect();
    for (what, used, build) in [
        ("half full", 0.5, None),
        ("half full, 3 hold the build", 0.5, Some(0)),
        ("half full, 30 of 100 builds each", 0.5, Some(1000)),
        ("97 of 100 nodes are full", 0.97, None),
        ("9 999 of 10 000 are full", 0.9999, None),
        ("all are full", 1.0, None),
    ] {
        let mut view = fleet(&nodes, &teams, &builds, used, &mut dice);
        let mut took = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let team = teams[dice.random_range(0..teams.len())];
            let mut wish = Wish::new(team, Resources::default());
            wish.build = build.map(|at| builds[at]);
            let began = Instant::now();
            let chosen = view.choose(&wish, &[], NOW);
            took.push(began.elapsed());
            match chosen {
                Ok(choice) => view.release(choice.claim),
                Err(filtered) => assert_eq!(filtered.of(Reason::Memory) as usize, NODES),
            }
        }
        print(&format!("decision: {what}"), took);
    }

    let mut view = fleet(&nodes, &teams, &builds, 0.5, &mut dice);
    let mut took = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let node = nodes[round % NODES];
        let facts = facts(&teams, 0.5, &mut dice);
        let began = Instant::now();
        view.report(node, facts, NOW + Duration::from_millis(round as u64));
        took.push(began.elapsed());
    }
    print("report", took);

    let mut one = View::new(Policy::embedded(), 5);
    one.report(nodes[0], facts(&teams, 0.5, &mut dice), NOW);
    let wish = Wish::new(teams[0], Resources::default());
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        let choice = one.choose(&wish, &[], NOW).expect("its one node");
        one.keep(choice.claim, NOW);
        one.release(choice.claim);
        took.push(began.elapsed());
    }
    print("embedded: choose, keep, release", took);
}

fn facts(teams: &[TeamId], used: f64, dice: &mut SmallRng) -> Facts {
    let full = dice.random_bool(if used > 0.9 { used } else { 0.0 });
    let total = Room {
        cpu: 16,
        memory: 64 * 1024,
        disk: 2048 * 1024,
    };
    let free = if full {
        512
    } else {
        dice.random_range(20_000..40_000)
    };
    Facts {
        place: Place {
            zone: ["a", "b", "c"][dice.random_range(0..3)].to_owned(),
            protocol: 1,
        },
        runtime: "container".to_owned(),
        can: Needs::NETWORK,
        accepts: true,
        total,
        promised: Room {
            cpu: 10,
            memory: total.memory - free,
            disk: 100 * 1024,
        },
        memory_available: 20_000,
        disk_available: 1_000_000,
        slots_ready: dice.random_range(0..8),
        starting: dice.random_range(0..3),
        own: Vec::new(),
        teams: (0..10)
            .map(|_| (teams[dice.random_range(0..teams.len())], 1))
            .collect(),
    }
}

fn fleet(nodes: &[NodeId], teams: &[TeamId], builds: &[BuildId], used: f64, dice: &mut SmallRng) -> View {
    let mut view = View::new(Policy::default(), 5);
    for (at, node) in nodes.iter().enumerate() {
        let mut facts = facts(teams, used, dice);
        if (at == 0) && (used > 0.99) && (used < 1.0) {
            facts.promised.memory = 0;
        }
        view.report(*node, facts, Duration::ZERO);
        // The first build is rare, the last hundred are not.
        let own = (0..30).map(|_| builds[dice.random_range(1000..1100)]);
        let rare = (at < 3).then_some(builds[0]);
        view.holds(*node, own.chain(rare));
    }
    view
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
    println!(
        "{what:<46} p50 {:>8.1?}  p99 {:>8.1?}  p99.9 {:>8.1?}",
        at(500),
        at(990),
        at(999)
    );
}
