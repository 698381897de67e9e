//! Contract 1.1: signed file URLs that name no sandbox.
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use http::Request;
use model::Secret;
use ports::guest::ENVD_PORT;
use sha2::{Digest as _, Sha256};

use crate::client::ask;
use crate::house::House;

fn signature(text: &str) -> String {
    let signature = BASE64_STANDARD_NO_PAD.encode(Sha256::digest(text));
    format!("v1_{}", signature.replace('+', "%2B").replace('/', "%2F"))
}

#[tokio::test]
async fn the_signature_leads_to_the_sandbox_that_made_it() {
    let house = House::open().await;
    house.guest.echo(ENVD_PORT).await;
    let mut routes = Vec::new();
    for n in 0..600 {
        let token = Secret::new(format!("token-{n}"));
        routes.push(house.sandbox_with(|route| route.envd_token = Some(token)).await);
    }
    for n in [0, 299, 599, 299] {
        let signature = signature(&format!("/home/user/a b.txt:read:user:token-{n}:1900000000"));
        let path = format!(
            "/files?path=%2Fhome%2Fuser%2Fa+b.txt&username=user&signature={signature}&signature_expiration=1900000000"
        );
        let answer = ask(
            house.address,
            Request::get(&path).header("host", "127.0.0.1:3002"),
        )
        .await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().starts_with(&format!("GET {path}\n")));
    }
    let path = format!("/files?signature={}", signature(":write::token-7"));
    let answer = ask(
        house.address,
        Request::post(&path).header("host", "localhost:3002"),
    )
    .await;
    assert_eq!(answer.status, 200);
    // Each to the execution that signed: a killed one's URL leads nowhere.
    house.kill(&routes[7]).await;
    let answer = ask(
        house.address,
        Request::post(&path).header("host", "localhost:3002"),
    )
    .await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("was not found") && answer.text().contains(routes[7].sandbox.as_str()));
}

#[tokio::test]
async fn a_signature_of_nobody_is_refused_in_envds_words() {
    let house = House::open().await;
    house.guest.echo(ENVD_PORT).await;
    house.sandbox().await;
    for (query, says) in [
        (String::from("path=/x"), "missing signature query parameter"),
        (String::from("path=/x&signature=v1_x"), "invalid signature"),
        (
            format!("path=/x&signature={}", signature("/x:read::another")),
            "invalid signature",
        ),
        (
            format!("path=/y&signature={}", signature("/x:read::envd-token")),
            "invalid signature",
        ),
    ] {
        let request = Request::get(format!("/files?{query}")).header("host", "localhost");
        let answer = ask(house.address, request).await;
        assert_eq!(answer.status, 401, "{query}");
        assert_eq!(answer.json(), serde_json::json!({"code": 401, "message": says}));
    }
    assert_eq!(house.guest.dials(), 0);
}
