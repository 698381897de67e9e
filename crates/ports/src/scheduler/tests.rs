use super::*;
use crate::discovery::Known;

mod the_embedded_keeps_the_contract {
    use std::sync::Arc;

    use model::MiB;

    use super::super::{Embedded, Size};

    async fn scheduler() -> Option<((), Arc<Embedded>)> {
        let total = Size {
            cpu: 8,
            memory: MiB(512),
        };
        Some((
            (),
            Arc::new(Embedded::new("here", Some("zone-a".to_owned()), total)),
        ))
    }

    crate::scheduler_contract!(scheduler());
}

fn block(id: &str, state: BlockState, allocation: &str) -> Block {
    Block {
        id: BlockId(id.to_owned()),
        token: id.to_owned(),
        size: Size {
            cpu: 1,
            memory: MiB(1),
        },
        zone: None,
        purpose: Purpose::Shared,
        state,
        place: Some(Place {
            allocation: allocation.to_owned(),
            machine: "m".to_owned(),
        }),
        reason: String::new(),
    }
}

fn view(blocks: &[Block]) -> Blocks {
    Blocks {
        all: blocks
            .iter()
            .map(|block| (block.id.clone(), block.clone()))
            .collect(),
        known: Known::Current,
    }
}

#[test]
fn what_happened_is_told_by_two_views() {
    use BlockState::{Draining, Failed, Lost, Running, Starting, Stopped, Unreachable, Waiting};
    let check = |before: Option<(BlockState, &str)>, after: Option<(BlockState, &str)>, expected: &[&str]| {
        let one = |seen: Option<(BlockState, &str)>| {
            view(
                &seen
                    .map(|(state, at)| block("b", state, at))
                    .into_iter()
                    .collect::<Vec<_>>(),
            )
        };
        let changes = one(after).since(&one(before));
        let told: Vec<&str> = changes
            .iter()
            .map(|change| match change {
                BlockChange::Came(_) => "came",
                BlockChange::Draining(_) => "draining",
                BlockChange::Lost(_) => "lost",
                BlockChange::Ended(_) => "ended",
            })
            .collect();
        assert_eq!(told, expected, "{before:?} → {after:?}");
    };
    check(None, Some((Waiting, "")), &[]);
    check(Some((Starting, "1")), Some((Running, "1")), &["came"]);
    check(None, Some((Running, "1")), &["came"]);
    check(Some((Running, "1")), Some((Running, "1")), &[]);
    check(Some((Running, "1")), Some((Draining, "1")), &["draining"]);
    check(Some((Draining, "1")), Some((Draining, "1")), &[]);
    check(Some((Draining, "1")), Some((Stopped, "1")), &["ended"]);
    check(Some((Running, "1")), Some((Unreachable, "1")), &[]);
    check(Some((Unreachable, "1")), Some((Running, "1")), &[]);
    check(Some((Unreachable, "1")), Some((Lost, "1")), &["lost"]);
    check(Some((Running, "1")), Some((Failed, "1")), &["lost"]);
    check(Some((Running, "1")), Some((Running, "2")), &["lost", "came"]);
    check(Some((Running, "1")), Some((Starting, "2")), &["lost"]);
    check(Some((Running, "1")), None, &["lost"]);
    check(Some((Stopped, "1")), None, &[]);
    check(Some((Starting, "1")), Some((Failed, "1")), &[]);
}

#[test]
fn a_stale_view_tells_nothing() {
    let before = view(&[block("b", BlockState::Running, "1")]);
    let stale = Blocks {
        known: Known::Stale("away".to_owned()),
        ..Blocks::default()
    };
    assert_eq!(stale.since(&before), []);
}

#[tokio::test]
async fn a_full_machine_says_what_is_free() {
    let total = Size {
        cpu: 2,
        memory: MiB(100),
    };
    let here = Embedded::new("here", None, total);
    let ask = |token: &str, cpu| Ask {
        token: token.to_owned(),
        size: Size { cpu, memory: MiB(10) },
        zone: None,
        purpose: Purpose::Shared,
    };
    let first = here.schedule(ask("a", 2)).await.unwrap();
    let refused = here.schedule(ask("b", 1)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no room for 1 CPUs and 10 MiB: 0 CPUs and 90 MiB are free of 2 CPUs and 100 MiB"
    );
    here.stop(&first.id).await.unwrap();
    here.schedule(ask("b", 1)).await.unwrap();
}
