//! Contract 1.6: a request for a sandbox that has no route.
use ports::WakeRefused;
use ports::guest::ENVD_PORT;

use crate::client::{ask, get};
use crate::house::House;

#[tokio::test]
async fn a_sleeping_sandbox_is_woken_once_and_the_request_goes_on() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    house.withdraw(&route).await;
    *house.wake.publishes.lock().unwrap() = Some((house.catalog.clone(), (*route).clone()));
    let request = get(&route, 8000, "/")
        .header("x-access-token", "envd")
        .header("e2b-traffic-access-token", "traffic");
    let answer = ask(house.address, request).await;
    assert_eq!(answer.status, 200);
    let asked = house.wake.asked.lock().unwrap();
    let [(sandbox, presented)] = &asked[..] else {
        panic!("woken {} times", asked.len())
    };
    assert_eq!(*sandbox, route.sandbox);
    assert_eq!(presented.port, 8000);
    assert_eq!(presented.envd_token.as_deref(), Some("envd"));
    assert_eq!(presented.traffic_token.as_deref(), Some("traffic"));
}

#[tokio::test]
async fn a_refused_wake_says_why() {
    let house = House::open().await;
    let route = house.sandbox().await;
    house.withdraw(&route).await;
    for (refused, status, says) in [
        (WakeRefused::NotFound, 502, "The sandbox was not found"),
        (
            WakeRefused::Denied,
            403,
            "This sandbox can't be resumed with the credentials provided. ",
        ),
        (
            WakeRefused::Transitioning,
            409,
            "The sandbox is still transitioning. Try again in a moment.",
        ),
        (
            WakeRefused::Exhausted("too many sandboxes".into()),
            429,
            "too many sandboxes",
        ),
        (WakeRefused::Failed, 502, "could not be resumed"),
    ] {
        *house.wake.answer.lock().unwrap() = Some(refused);
        let answer = ask(house.address, get(&route, ENVD_PORT, "/health")).await;
        assert_eq!(answer.status, status);
        let json = answer.json();
        assert!(json["message"].as_str().unwrap().contains(says), "{json}");
        assert_eq!(json["code"], status);
        assert_eq!(json["sandboxId"], route.sandbox.as_str());
    }
    assert_eq!(house.guest.dials(), 0);
}

#[tokio::test]
async fn a_sandbox_that_pauses_in_this_moment_is_woken_with_what_the_request_brought() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let token = model::Secret::new("traffic".to_owned());
    let route = house
        .sandbox_with(|route| route.traffic_token = Some(token.clone()))
        .await;
    // Its node turns traffic away, and the news have not come to the catalog.
    house.guest.alive.lock().unwrap().clear();
    let next = ports::Route {
        seat: model::Seat {
            execution: model::ExecutionId::random(),
            ..route.seat
        },
        ..(*route).clone()
    };
    *house.wake.publishes.lock().unwrap() = Some((house.catalog.clone(), next.clone()));
    let paused = async {
        while house.guest.dials() == 0 {
            tokio::task::yield_now().await;
        }
        house.guest.alive.lock().unwrap().insert(next.seat.execution);
        house.withdraw(&route).await;
    };
    let request = get(&route, 8000, "/").header("e2b-traffic-access-token", "traffic");
    let (answer, ()) = tokio::join!(ask(house.address, request), paused);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains("e2b-traffic-access-token"));
    let asked = house.wake.asked.lock().unwrap();
    let tokens: Vec<_> = asked
        .iter()
        .map(|(_, presented)| presented.traffic_token.as_deref())
        .collect();
    assert_eq!(tokens, [Some("traffic")]);
}

#[tokio::test]
async fn a_stale_route_is_looked_up_once_more() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    // The execution is gone, and its route is never withdrawn: nobody waits for that for ever.
    house.guest.alive.lock().unwrap().clear();
    let answer = ask(house.address, get(&route, 8000, "/")).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("was not found"));
    assert_eq!(house.guest.dials(), 2);
}
