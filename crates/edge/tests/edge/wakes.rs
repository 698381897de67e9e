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
async fn a_stale_route_is_looked_up_once_more() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    // The execution is gone, and its route is not withdrawn yet.
    house.guest.alive.lock().unwrap().clear();
    let answer = ask(house.address, get(&route, 8000, "/")).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("was not found"));
    assert_eq!(house.guest.dials(), 2);
}
