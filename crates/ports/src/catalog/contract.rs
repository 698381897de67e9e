//! The laws of [`Catalog`], one function each, which every adapter's tests run: see [`crate::catalog_contract`].
//!
//! Each takes two faces of one catalog, as two processes have them; one process has the same face twice.
use std::sync::Arc;
use std::time::Duration;

use model::{ExecutionId, NodeId, SandboxId, Seat, Secret};
use tokio::sync::broadcast::Receiver;

use super::{Catalog, Route, RouteChange};

/// Makes the laws of [`Catalog`](crate::Catalog) tests of one adapter. The argument is a future of two faces of one fresh
/// catalog, behind whatever must live as long as they; or, with
/// `where_installed` before it, of `None` where there is nothing to run the laws on.
#[macro_export]
macro_rules! catalog_contract {
    ($make:expr) => {
        $crate::catalog_contract!(where_installed async { Some($make.await) });
    };
    (where_installed $make:expr) => {
        $crate::catalog_contract! { @laws $make;
            what_is_published_is_found_by_everybody,
            of_two_versions_the_newer_stands_whichever_comes_first,
            a_late_withdraw_cuts_nothing_off,
            what_is_withdrawn_is_found_by_nobody,
            all_routes_are_told,
            changes_are_told_to_everybody_in_their_order,
            the_same_route_twice_is_no_change,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, one, other)) = $make.await else { return };
                $crate::catalog::contract::$law(&*one, &*other).await;
            }
        )*
    };
}

/// How long a change may take to be everywhere, on the slowest machine that runs these tests.
const PATIENCE: Duration = Duration::from_secs(10);

/// A route with every field.
#[must_use]
pub fn route(sandbox: SandboxId, version: u64) -> Route {
    Route {
        sandbox,
        seat: Seat {
            node: NodeId::random(),
            execution: ExecutionId::random(),
        },
        version,
        envd_token: Some(Secret::new("envd's".to_owned())),
        traffic_token: Some(Secret::new("the traffic's".to_owned())),
        mask_host: "service.example:8080".parse().ok(),
    }
}

/// The route that a face finds.
async fn found(catalog: &dyn Catalog, sandbox: SandboxId) -> Option<Route> {
    let found = catalog.find(sandbox).await.expect("the catalog is there");
    found.map(|route| Route::clone(&route))
}

/// Waits until a face has heard of what the other did.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let came = tokio::time::timeout(PATIENCE, wait).await;
    assert!(came.is_ok(), "it did not come true that {what}");
}

async fn next(changes: &mut Receiver<RouteChange>) -> RouteChange {
    let change = tokio::time::timeout(PATIENCE, changes.recv()).await;
    change
        .expect("a change was not told")
        .expect("the catalog is there")
}

/// See its name.
pub async fn what_is_published_is_found_by_everybody(one: &dyn Catalog, other: &dyn Catalog) {
    let route = route(SandboxId::random(), 3);
    assert_eq!(found(one, route.sandbox).await, None);
    one.publish(route.clone()).await.expect("published");
    assert_eq!(found(one, route.sandbox).await.as_ref(), Some(&route));
    assert_eq!(found(other, route.sandbox).await.as_ref(), Some(&route));
    let published = other
        .published(route.sandbox)
        .await
        .expect("the catalog is there");
    assert_eq!(published.as_deref(), Some(&route));
    let bare = Route {
        envd_token: None,
        traffic_token: None,
        mask_host: None,
        ..self::route(SandboxId::random(), u64::from(u32::MAX))
    };
    other.publish(bare.clone()).await.expect("published");
    assert_eq!(found(one, bare.sandbox).await, Some(bare));
}

/// See its name.
pub async fn of_two_versions_the_newer_stands_whichever_comes_first(one: &dyn Catalog, other: &dyn Catalog) {
    let sandbox = SandboxId::random();
    let (older, newer) = (route(sandbox, 9), route(sandbox, 10));
    one.publish(newer.clone()).await.expect("published");
    other.publish(older.clone()).await.expect("nothing to do");
    eventually("both find the newer", async || {
        found(one, sandbox).await.as_ref() == Some(&newer)
            && found(other, sandbox).await.as_ref() == Some(&newer)
    })
    .await;
    let sandbox = SandboxId::random();
    let (older, newer) = (route(sandbox, 99), route(sandbox, 100));
    one.publish(older).await.expect("published");
    other.publish(newer.clone()).await.expect("published");
    assert_eq!(found(other, sandbox).await.as_ref(), Some(&newer));
    eventually("both find the newer", async || {
        found(one, sandbox).await.as_ref() == Some(&newer)
    })
    .await;
}

/// See its name.
pub async fn a_late_withdraw_cuts_nothing_off(one: &dyn Catalog, other: &dyn Catalog) {
    let sandbox = SandboxId::random();
    let (paused, resumed) = (route(sandbox, 1), route(sandbox, 4));
    one.publish(paused.clone()).await.expect("published");
    other.publish(resumed.clone()).await.expect("published");
    one.withdraw(sandbox, paused.seat).await.expect("nothing to do");
    let same_node = Seat {
        execution: ExecutionId::random(),
        ..resumed.seat
    };
    other.withdraw(sandbox, same_node).await.expect("nothing to do");
    assert_eq!(found(other, sandbox).await.as_ref(), Some(&resumed));
    eventually("both find the resumed one", async || {
        found(one, sandbox).await.as_ref() == Some(&resumed)
    })
    .await;
}

/// See its name.
pub async fn what_is_withdrawn_is_found_by_nobody(one: &dyn Catalog, other: &dyn Catalog) {
    let route = route(SandboxId::random(), 1);
    let withdraw = async |catalog: &dyn Catalog| catalog.withdraw(route.sandbox, route.seat).await;
    withdraw(one).await.expect("nothing to do");
    one.publish(route.clone()).await.expect("published");
    assert!(found(other, route.sandbox).await.is_some());
    withdraw(other).await.expect("withdrawn");
    assert_eq!(found(other, route.sandbox).await, None);
    eventually("nobody finds it", async || {
        found(one, route.sandbox).await.is_none()
    })
    .await;
    withdraw(one).await.expect("nothing to do");
    // A pause that failed: the same seat is there again.
    let again = Route { version: 3, ..route };
    one.publish(again.clone()).await.expect("published");
    assert_eq!(found(other, again.sandbox).await, Some(again));
}

/// See its name.
pub async fn all_routes_are_told(one: &dyn Catalog, other: &dyn Catalog) {
    let routes: Vec<Route> = (0..50).map(|n| route(SandboxId::random(), n)).collect();
    for (n, route) in routes.iter().enumerate() {
        let face = if n % 2 == 0 { one } else { other };
        face.publish(route.clone()).await.expect("published");
    }
    for face in [one, other] {
        eventually("all are listed", async || {
            let all = face.all().await.expect("the catalog is there");
            routes
                .iter()
                .all(|route| all.iter().any(|listed| **listed == *route))
        })
        .await;
    }
}

/// See its name.
pub async fn changes_are_told_to_everybody_in_their_order(one: &dyn Catalog, other: &dyn Catalog) {
    let sandbox = SandboxId::random();
    let mut listeners = [one.changes(), other.changes()];
    let (first, second) = (route(sandbox, 1), route(sandbox, 2));
    // The same execution, seen otherwise: its streams go on.
    let masked = Route {
        version: 3,
        mask_host: None,
        ..second.clone()
    };
    one.publish(first.clone()).await.expect("published");
    other.publish(second.clone()).await.expect("published");
    one.publish(masked.clone()).await.expect("published");
    one.withdraw(sandbox, masked.seat).await.expect("withdrawn");
    for changes in &mut listeners {
        let mut expect = async |expected: RouteChange| {
            let told = next(changes).await;
            assert_eq!(format!("{told:?}"), format!("{expected:?}"));
        };
        expect(RouteChange::Published(Arc::new(first.clone()))).await;
        expect(RouteChange::Withdrawn(sandbox, first.seat)).await;
        expect(RouteChange::Published(Arc::new(second.clone()))).await;
        expect(RouteChange::Published(Arc::new(masked.clone()))).await;
        expect(RouteChange::Withdrawn(sandbox, masked.seat)).await;
    }
}

/// See its name.
pub async fn the_same_route_twice_is_no_change(one: &dyn Catalog, other: &dyn Catalog) {
    let (same, mark) = (route(SandboxId::random(), 1), route(SandboxId::random(), 1));
    one.publish(same.clone()).await.expect("published");
    eventually("the other has heard", async || {
        let all = other.all().await.expect("the catalog is there");
        all.iter().any(|listed| **listed == same)
    })
    .await;
    let mut changes = other.changes();
    for face in [one, other] {
        face.publish(same.clone()).await.expect("nothing to do");
    }
    one.publish(mark.clone()).await.expect("published");
    let RouteChange::Published(told) = next(&mut changes).await else {
        panic!("something was withdrawn")
    };
    assert_eq!(*told, mark);
}
