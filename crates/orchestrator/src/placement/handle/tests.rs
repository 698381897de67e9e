use std::time::Duration;

use model::{Resources, TeamId};

use super::*;
use crate::placement::{Needs, Place, Room};

fn facts() -> Facts {
    Facts {
        place: Place::default(),
        runtime: "container".to_owned(),
        can: Needs::NETWORK,
        accepts: true,
        total: Room {
            cpu: 8,
            memory: 4 * 1024,
            disk: 1024 * 1024,
        },
        promised: Room::default(),
        memory_available: 4 * 1024,
        disk_available: 1024 * 1024,
        slots_ready: 0,
        starting: 0,
        teams: Vec::new(),
        own: Vec::new(),
    }
}

fn fleet(count: usize) -> (Arc<Placement>, Vec<NodeId>) {
    let placement = Placement::new(Policy::default(), 1);
    let nodes: Vec<_> = (0..count).map(|_| NodeId::random()).collect();
    placement.fleet(&nodes);
    for node in &nodes {
        placement.report(*node, facts(), placement.now());
    }
    (placement, nodes)
}

fn wish() -> Wish<'static> {
    Wish::new(TeamId::random(), Resources::default())
}

fn claims(placement: &Placement, node: NodeId) -> usize {
    placement.look(|view| view.get(node).expect("it is known").claims)
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_given_back_and_what_is_kept_counts_until_a_report_has_it() {
    let (placement, nodes) = fleet(1);
    let reserved = placement.search(wish()).next_node().unwrap();
    assert_eq!((reserved.node(), claims(&placement, nodes[0])), (nodes[0], 1));
    drop(reserved);
    assert_eq!(claims(&placement, nodes[0]), 0);
    let asked_at = placement.now();
    tokio::time::advance(Duration::from_secs(1)).await;
    placement.search(wish()).next_node().unwrap().keep();
    placement.report(nodes[0], facts(), asked_at);
    assert_eq!(
        claims(&placement, nodes[0]),
        1,
        "it was asked before the start was over"
    );
    placement.report(nodes[0], facts(), placement.now());
    assert_eq!(claims(&placement, nodes[0]), 0);
    let copy = placement.reserve_on(nodes[0], &wish()).unwrap();
    assert_eq!((copy.node(), claims(&placement, nodes[0])), (nodes[0], 1));
    assert!(placement.reserve_on(NodeId::random(), &wish()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_search_asks_each_node_once_and_a_few_in_all_and_then_tells_why() {
    let (placement, _) = fleet(6);
    let mut search = placement.search(wish());
    let mut asked = HashSet::new();
    while let Some(reserved) = search.next_node() {
        assert!(asked.insert(reserved.node()));
        search.refused(reserved, "slots");
    }
    assert_eq!(asked.len(), placement.look(|view| view.policy().tries));
    let told = search.no_capacity().to_string();
    assert!(told.ends_with("4 of 4 asked are out of slots"), "{told}");

    let (placement, nodes) = fleet(2);
    placement.cordon(nodes[0]);
    let mut search = placement.search(wish());
    let reserved = search.next_node().unwrap();
    assert_eq!(reserved.node(), nodes[1]);
    search.failed(reserved);
    assert!(search.next_node().is_none() && search.next_node().is_none());
    let told = search.no_capacity().to_string();
    assert!(told.ends_with("of 2 nodes: excluded: 1, cordoned: 1"), "{told}");
    assert_eq!(claims(&placement, nodes[1]), 0);
}

#[tokio::test(start_paused = true)]
async fn nodes_are_known_as_the_fleet_says_and_kept_from_new_ones_as_operators_say() {
    let (placement, nodes) = fleet(3);
    assert!(placement.cordon(nodes[0]) && placement.drain(nodes[1]) && placement.unhealthy(nodes[2]));
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(placement.unhealthy(nodes[2]));
    let state = |node| placement.look(|view| view.get(node).map(|known| known.state));
    assert_eq!(
        state(nodes[2]),
        Some(State::Unhealthy {
            since: Duration::ZERO
        })
    );
    assert!(placement.search(wish()).next_node().is_none());
    assert!(placement.ready(nodes[1]));
    assert_eq!(placement.search(wish()).next_node().unwrap().node(), nodes[1]);
    placement.fleet(&nodes[..1]);
    assert_eq!(placement.look(View::len), 1);
    assert_eq!(state(nodes[0]), Some(State::Cordoned), "what stays is as it was");
    assert!(!placement.ready(nodes[1]));
    placement.forget(nodes[0]);
    placement.failed(nodes[0]);
    assert!(placement.look(View::is_empty));
}

#[tokio::test(start_paused = true)]
async fn of_a_node_that_came_back_no_build_is_known_until_it_tells() {
    let (placement, nodes) = fleet(2);
    assert!(!placement.knows_builds(nodes[0]));
    placement.holds(nodes[0], [model::BuildId::random()]);
    assert!(placement.knows_builds(nodes[0]));
    placement.fleet(&nodes[1..]);
    assert!(!placement.knows_builds(nodes[0]));
    placement.fleet(&nodes);
    assert!(!placement.knows_builds(nodes[0]));
    placement.fetched(nodes[0], model::BuildId::random());
    assert!(placement.knows_builds(nodes[0]));
}
