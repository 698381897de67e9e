//! The laws of [`ResourceScheduler`], one function each, which every adapter's tests run: see [`crate::scheduler_contract`].
//!
//! Each function panics where its law is broken, as a test does. It may be run on a scheduler that holds other blocks, with room for
//! eight of one CPU and 64 MiB.
use std::sync::Arc;

use model::{BuildId, MiB, SandboxId};

use super::{
    Ask, Block, BlockChange, BlockId, BlockState, Blocks, Filter, Purpose, ResourceScheduler, ScheduleError,
    Size,
};
use crate::discovery::contract::until;
use crate::store::contract::join_all;

/// Makes the laws of [`ResourceScheduler`] tests of one adapter. The argument is a future of it in an `Arc`, behind whatever must
/// live as long as it; `None` where what it needs is not installed, which was said aloud.
#[macro_export]
macro_rules! scheduler_contract {
    ($make:expr) => {
        $crate::scheduler_contract! { @laws $make;
            a_block_for_which_there_is_room_comes_to_run,
            one_token_is_one_block_however_often_it_is_asked_for,
            a_block_that_is_given_back_stops_and_may_be_so_twice,
            a_list_obeys_its_filters_and_its_pages_join,
            what_no_machine_has_does_not_run,
            a_sandbox_can_have_a_block_of_its_own,
            what_makes_no_sense_is_refused,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, scheduler)) = $make.await else { return };
                $crate::scheduler::contract::$law(&*scheduler).await;
            }
        )*
    };
}

const SMALL: Size = Size {
    cpu: 1,
    memory: MiB(64),
};

fn ask() -> Ask {
    Ask {
        token: BuildId::random().to_string(),
        size: SMALL,
        zone: None,
        purpose: Purpose::Shared,
    }
}

async fn becomes(scheduler: &dyn ResourceScheduler, id: &BlockId, state: BlockState) -> Block {
    let mut view = scheduler.watch();
    let what = format!("block {id} becomes {state:?}");
    let blocks = until(&mut view, &what, |blocks: &Arc<Blocks>| {
        blocks.all.get(id).is_some_and(|block| block.state == state)
    })
    .await;
    blocks.all[id].clone()
}

/// It is watched coming, and is what was asked for.
pub async fn a_block_for_which_there_is_room_comes_to_run(scheduler: &dyn ResourceScheduler) {
    let before = scheduler.watch().borrow().clone();
    let ask = ask();
    let block = scheduler.schedule(ask.clone()).await.unwrap();
    let running = becomes(scheduler, &block.id, BlockState::Running).await;
    assert_eq!(
        (&running.token, running.size, running.purpose),
        (&ask.token, ask.size, ask.purpose)
    );
    let place = running.place.clone().unwrap();
    assert!(!place.allocation.is_empty() && !place.machine.is_empty());
    let got = scheduler.get(&block.id).await.unwrap().unwrap();
    assert_eq!(
        (&got.id, got.state, got.place),
        (&block.id, BlockState::Running, Some(place))
    );
    let changes = scheduler.watch().borrow().since(&before);
    let came = |change: &BlockChange| matches!(change, BlockChange::Came(came) if came.id == block.id);
    assert!(changes.iter().any(came), "{changes:?}");
    scheduler.stop(&block.id).await.unwrap();
}

/// An ask whose answer was lost is repeated, at the same time or later, and costs nothing.
pub async fn one_token_is_one_block_however_often_it_is_asked_for(scheduler: &dyn ResourceScheduler) {
    let ask = ask();
    let all = join_all((0..4).map(|_| scheduler.schedule(ask.clone()))).await;
    let ids: Vec<BlockId> = all.into_iter().map(|block| block.unwrap().id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    becomes(scheduler, &ids[0], BlockState::Running).await;
    assert_eq!(scheduler.schedule(ask.clone()).await.unwrap().id, ids[0]);
    let filter = Filter {
        token: Some(ask.token),
        ..Filter::default()
    };
    assert_eq!(scheduler.list(&filter, None, 10).await.unwrap().blocks.len(), 1);
    scheduler.stop(&ids[0]).await.unwrap();
}

/// A block that is given back is told to be over.
pub async fn a_block_that_is_given_back_stops_and_may_be_so_twice(scheduler: &dyn ResourceScheduler) {
    let block = scheduler.schedule(ask()).await.unwrap();
    becomes(scheduler, &block.id, BlockState::Running).await;
    let before = scheduler.watch().borrow().clone();
    scheduler.stop(&block.id).await.unwrap();
    becomes(scheduler, &block.id, BlockState::Stopped).await;
    let changes = scheduler.watch().borrow().since(&before);
    let ended = |change: &BlockChange| matches!(change, BlockChange::Ended(ended) if ended.id == block.id);
    assert!(changes.iter().any(ended), "{changes:?}");
    scheduler.stop(&block.id).await.unwrap();
    scheduler.stop(&BlockId("none-of-ours".to_owned())).await.unwrap();
    assert_eq!(
        scheduler.get(&BlockId("none-of-ours".to_owned())).await.unwrap(),
        None
    );
}

/// Filters are obeyed before pages are cut, and pages have neither gap nor overlap.
pub async fn a_list_obeys_its_filters_and_its_pages_join(scheduler: &dyn ResourceScheduler) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(scheduler.schedule(ask()).await.unwrap().id);
    }
    let mut machine = None;
    for id in &ids {
        machine = becomes(scheduler, id, BlockState::Running)
            .await
            .place
            .map(|place| place.machine);
    }
    let running = Filter {
        states: vec![BlockState::Running],
        machine,
        ..Filter::default()
    };
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = scheduler.list(&running, after.as_ref(), 2).await.unwrap();
        assert!(page.blocks.len() <= 2);
        assert!(page.blocks.iter().all(|block| block.state == BlockState::Running));
        listed.extend(page.blocks.into_iter().map(|block| block.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(listed.is_sorted_by(|a, b| a < b), "{listed:?}");
    for id in &ids {
        assert!(listed.contains(id), "{id} is not in {listed:?}");
    }
    for none in [
        Filter {
            machine: Some("no-machine".to_owned()),
            ..Filter::default()
        },
        Filter {
            zone: Some("no-zone".to_owned()),
            ..Filter::default()
        },
        Filter {
            token: Some("no-token".to_owned()),
            ..Filter::default()
        },
    ] {
        assert_eq!(scheduler.list(&none, None, 10).await.unwrap().blocks, []);
    }
    for id in &ids {
        scheduler.stop(id).await.unwrap();
    }
}

/// What nobody has is refused, or waits: it does not run, and nothing else suffers.
pub async fn what_no_machine_has_does_not_run(scheduler: &dyn ResourceScheduler) {
    let huge = Ask {
        size: Size {
            cpu: 100_000,
            memory: MiB(1 << 30),
        },
        ..ask()
    };
    let elsewhere = Ask {
        zone: Some("no-such-zone".to_owned()),
        ..ask()
    };
    for ask in [huge, elsewhere] {
        match scheduler.schedule(ask).await {
            Err(ScheduleError::NoRoom { .. }) => {}
            Ok(block) => {
                let waiting = becomes(scheduler, &block.id, BlockState::Waiting).await;
                assert_eq!(waiting.place, None);
                scheduler.stop(&block.id).await.unwrap();
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let block = scheduler.schedule(ask()).await.unwrap();
    becomes(scheduler, &block.id, BlockState::Running).await;
    scheduler.stop(&block.id).await.unwrap();
}

/// Whose block it is stays known.
pub async fn a_sandbox_can_have_a_block_of_its_own(scheduler: &dyn ResourceScheduler) {
    let purpose = Purpose::Sandbox(SandboxId::random());
    let block = scheduler.schedule(Ask { purpose, ..ask() }).await.unwrap();
    assert_eq!(
        becomes(scheduler, &block.id, BlockState::Running).await.purpose,
        purpose
    );
    scheduler.stop(&block.id).await.unwrap();
}

/// An ask that no adapter could carry is refused by all.
pub async fn what_makes_no_sense_is_refused(scheduler: &dyn ResourceScheduler) {
    let good = ask();
    for wrong in [
        Ask {
            token: String::new(),
            ..good.clone()
        },
        Ask {
            token: "A/..".to_owned(),
            ..good.clone()
        },
        Ask {
            token: "t".repeat(100),
            ..good.clone()
        },
        Ask {
            zone: Some("a zone".to_owned()),
            ..good.clone()
        },
        Ask {
            size: Size { cpu: 0, ..SMALL },
            ..good.clone()
        },
        Ask {
            size: Size {
                memory: MiB(0),
                ..SMALL
            },
            ..good.clone()
        },
    ] {
        let refused = scheduler.schedule(wrong.clone()).await;
        assert!(
            matches!(refused, Err(ScheduleError::Invalid(_))),
            "{wrong:?}: {refused:?}"
        );
    }
}
