use ports::store::contract;

use super::*;

fn volume(home: NodeId, state: VolumeState) -> Volume {
    Volume {
        home: Some(home),
        state,
        ..contract::volume(model::TeamId::random(), "data")
    }
}

fn stored(volumes: &[&Volume], remains: &[&Volume]) -> Stored {
    Stored {
        volumes: volumes
            .iter()
            .map(|volume| (volume.id, (*volume).clone()))
            .collect(),
        remains: remains.iter().map(|volume| volume.id).collect(),
    }
}

fn held(nodes: &[(NodeId, &[&Volume])]) -> Held {
    let ids = |volumes: &[&Volume]| volumes.iter().map(|volume| volume.id).collect();
    nodes
        .iter()
        .map(|(node, volumes)| (*node, ids(volumes)))
        .collect()
}

fn check(before: &Stored, after: &Stored, held: &Held, expected: &[Wrong]) {
    let wrongs = judge(before, after, held, |volume| volume.home);
    assert_eq!(wrongs, expected.iter().copied().collect());
}

#[test]
fn a_volume_is_lost_where_its_home_answers_and_does_not_have_it() {
    let (home, other) = (NodeId::random(), NodeId::random());
    let it = volume(home, VolumeState::Ready);
    let now = stored(&[&it], &[]);
    let lost = Wrong::Lost { volume: it.id, home };
    check(&now, &now, &held(&[(home, &[&it])]), &[]);
    check(&now, &now, &held(&[(home, &[])]), &[lost]);
    // A node that does not answer has lost nothing.
    check(&now, &now, &held(&[(other, &[])]), &[]);
    // Nor has one that is to make it, or was told to remove it meanwhile.
    for state in [VolumeState::Making, VolumeState::Doomed] {
        let other = stored(&[&Volume { state, ..it.clone() }], &[]);
        check(&other, &now, &held(&[(home, &[])]), &[]);
        check(&now, &other, &held(&[(home, &[])]), &[]);
    }
    check(&now, &stored(&[], &[&it]), &held(&[(home, &[])]), &[]);
    check(&stored(&[], &[]), &now, &held(&[(home, &[])]), &[]);
}

#[test]
fn a_volume_on_a_second_node_is_that_nodes_fault() {
    let (home, node) = (NodeId::random(), NodeId::random());
    let it = volume(home, VolumeState::Ready);
    let now = stored(&[&it], &[]);
    let twice = Wrong::Twice {
        volume: it.id,
        home,
        node,
    };
    check(&now, &now, &held(&[(home, &[&it]), (node, &[&it])]), &[twice]);
    let lost = Wrong::Lost { volume: it.id, home };
    check(&now, &now, &held(&[(home, &[]), (node, &[&it])]), &[lost, twice]);
}

#[test]
fn what_nobody_knows_is_unknown_and_what_was_given_up_is_not() {
    let node = NodeId::random();
    let it = volume(node, VolumeState::Ready);
    let (nothing, known, remains) = (stored(&[], &[]), stored(&[&it], &[]), stored(&[], &[&it]));
    let unknown = Wrong::Unknown { volume: it.id, node };
    let held = held(&[(node, &[&it])]);
    check(&nothing, &nothing, &held, &[unknown]);
    for (before, after) in [
        (&known, &nothing),
        (&remains, &nothing),
        (&nothing, &known),
        (&nothing, &remains),
    ] {
        check(before, after, &held, &[]);
    }
}

#[test]
fn what_does_not_agree_is_told_once_and_again_when_it_was_right_meanwhile() {
    let homes = Homes::default();
    let wrong = Wrong::Unknown {
        volume: VolumeId::random(),
        node: NodeId::random(),
    };
    let (some, none) = (BTreeSet::from([wrong]), BTreeSet::new());
    assert_eq!(homes.news(&some), [wrong]);
    assert_eq!(homes.news(&some), []);
    assert_eq!(homes.news(&none), []);
    assert_eq!(homes.news(&some), [wrong]);
}
