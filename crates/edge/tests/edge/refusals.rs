//! Contract 1.5: what the edge itself answers.
use http::Request;
use ports::guest::ENVD_PORT;

use crate::client::{Answer, ask, get, post, send};
use crate::house::{House, full};

#[tokio::test]
async fn an_unknown_sandbox_was_not_found() {
    let house = House::open().await;
    for id in ["i0123456789abcdefghij", "abc"] {
        let request = Request::get("/").header("host", format!("8000-{id}.x.y"));
        let answer = ask(house.address, request).await;
        assert_eq!(answer.status, 502);
        let expected = serde_json::json!({
            "sandboxId": id, "message": "The sandbox was not found", "code": 502,
        });
        assert_eq!(answer.json(), expected);
    }
}

#[tokio::test]
async fn a_closed_port_says_so_after_a_second_of_tries() {
    let house = House::open().await;
    let route = house.sandbox().await;
    let answer = ask(house.address, get(&route, 9999, "/")).await;
    assert_eq!(answer.status, 502);
    let expected = serde_json::json!({
        "sandboxId": route.sandbox.to_string(),
        "message": "The sandbox is running but port is not open",
        "port": 9999,
        "code": 502,
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(house.guest.dials(), 5);
}

#[tokio::test]
async fn a_closed_port_of_envd_is_tried_once() {
    let house = House::open().await;
    let route = house.sandbox().await;
    let answer = ask(house.address, get(&route, ENVD_PORT, "/health")).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("port is not open"));
    assert_eq!(house.guest.dials(), 1);
}

#[tokio::test]
async fn a_port_that_opens_meanwhile_is_reached() {
    let house = House::open().await;
    let route = house.sandbox().await;
    let opened = async {
        while house.guest.dials() == 0 {
            tokio::task::yield_now().await;
        }
        house.guest.echo(8000).await;
    };
    let (answer, ()) = tokio::join!(ask(house.address, get(&route, 8000, "/")), opened);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_service_that_hangs_up_without_a_word_is_a_closed_port() {
    let house = House::open().await;
    house
        .guest
        .raw(8000, |mut stream| async move {
            crate::house::read_head(&mut stream).await;
        })
        .await;
    let route = house.sandbox().await;
    let answer = ask(house.address, get(&route, 8000, "/")).await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["port"], 8000);
}

#[tokio::test]
async fn people_get_a_page_and_programs_json() {
    let house = House::open().await;
    let route = house.sandbox().await;
    let browser = "Mozilla/5.0 (X11; Linux) Firefox/140";
    let asked = || get(&route, ENVD_PORT, "/").header("user-agent", browser);
    let page = ask(house.address, asked()).await;
    assert_eq!(page.status, 502);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert!(page.text().contains("port is not open") && page.text().contains(route.sandbox.as_str()));
    let json = ask(house.address, asked().header("accept", "application/json")).await;
    assert_eq!(json.json()["code"], 502);
    let json = ask(house.address, asked().header("sec-fetch-mode", "cors")).await;
    assert_eq!(json.json()["code"], 502);
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_the_refusal() {
    let house = House::open().await;
    let route = house.sandbox().await;
    let request = post(&route, ENVD_PORT, "/files")
        .body(full(vec![0; 900_000]))
        .unwrap();
    let answer = Answer::of(send(house.address, request).await).await;
    assert_eq!(answer.status, 502);
}
