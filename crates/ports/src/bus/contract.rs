//! The laws of [`Bus`], one function each, which every adapter's tests run: see [`crate::bus_contract`].
//!
//! Each takes two faces of one bus, as two processes have them; one process has the same face twice.
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use model::{ExecutionId, SandboxId, TeamId};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::{Bus, Happening};

/// Makes the laws of [`Bus`](crate::Bus) tests of one adapter. The argument is a future of two faces of one fresh bus, behind
/// whatever must live as long as they; or, with `where_installed` before it, of `None` where there is nothing to run the laws on.
#[macro_export]
macro_rules! bus_contract {
    ($make:expr) => {
        $crate::bus_contract!(where_installed async { Some($make.await) });
    };
    (where_installed $make:expr) => {
        $crate::bus_contract! { @laws $make;
            everybody_hears_what_happens_from_then_on_once_and_in_order,
            a_happening_arrives_as_it_was_told,
            who_does_not_listen_stops_nobody,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, one, other)) = $make.await else { return };
                $crate::bus::contract::$law(&*one, &*other).await;
            }
        )*
    };
}

/// How long news may take, on the slowest machine that runs these tests.
const PATIENCE: Duration = Duration::from_secs(10);

/// The `n`th thing that happens to a team.
#[must_use]
pub fn happening(team: TeamId, n: usize) -> Happening {
    Happening {
        at: SystemTime::now(),
        team,
        sandbox: SandboxId::random(),
        execution: n.is_multiple_of(2).then(ExecutionId::random),
        what: "sandbox.updated".into(),
        details: BTreeMap::from([("what".into(), n.to_string()), ("why".into(), "\"§\0".to_owned())]),
    }
}

/// The next thing that a subscriber hears.
pub async fn next(heard: &mut Receiver<Happening>) -> Happening {
    let happening = tokio::time::timeout(PATIENCE, heard.recv()).await;
    happening.expect("nothing was heard").expect("the bus is there")
}

/// See its name.
pub async fn everybody_hears_what_happens_from_then_on_once_and_in_order(one: &dyn Bus, other: &dyn Bus) {
    let team = TeamId::random();
    let told: Vec<_> = (0..300).map(|n| happening(team, n)).collect();
    one.publish(happening(TeamId::random(), 0)).await;
    // What happened before is no longer under way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut listeners = [one.subscribe(), other.subscribe()];
    for happening in &told {
        one.publish(happening.clone()).await;
    }
    for heard in &mut listeners {
        for expected in &told {
            assert_eq!(next(heard).await, *expected);
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for heard in &mut listeners {
        assert_eq!(heard.try_recv(), Err(TryRecvError::Empty));
    }
}

/// See its name.
pub async fn a_happening_arrives_as_it_was_told(one: &dyn Bus, other: &dyn Bus) {
    for n in 0..2 {
        let mut heard = one.subscribe();
        let told = happening(TeamId::random(), n);
        other.publish(told.clone()).await;
        assert_eq!(next(&mut heard).await, told);
    }
}

/// See its name.
pub async fn who_does_not_listen_stops_nobody(one: &dyn Bus, other: &dyn Bus) {
    let (_idle, _idle_too) = (one.subscribe(), other.subscribe());
    let team = TeamId::random();
    let tell = async {
        for n in 0..2 * super::BACKLOG_MAX {
            one.publish(happening(team, n)).await;
        }
    };
    let told = tokio::time::timeout(PATIENCE, tell).await;
    assert!(told.is_ok(), "publishing waited");
}
