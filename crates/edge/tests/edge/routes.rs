//! Contract 1.3 and 1.4: which sandbox, and what changes on the way.
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use ports::guest::ENVD_PORT;
use tokio::io::AsyncReadExt as _;

use crate::client::{Answer, ask, bare, connect_h2, get, host, post, send};
use crate::house::{House, full, say};

#[tokio::test]
async fn a_host_name_leads_to_its_port() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let answer = ask(
        house.address,
        get(&route, 8000, "/a%20b?c=d&e").header("x-mine", "yes"),
    )
    .await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("GET /a%20b?c=d&e\n"));
    assert!(answer.text().contains("x-mine: yes\n"));
    assert!(answer.text().contains(&format!("host: {}\n", host(&route, 8000))));
    assert!(!answer.text().contains("x-forwarded"));
}

#[tokio::test]
async fn headers_lead_there_from_any_other_host() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    for name in [
        "localhost:3002",
        "127.0.0.1",
        "sandbox.e2b.app",
        "my-proxy.example.com",
    ] {
        let request = Request::get("/x")
            .header("host", name)
            .header("e2b-sandbox-id", route.sandbox.to_string())
            .header("e2b-sandbox-port", "8000");
        let answer = ask(house.address, request).await;
        assert_eq!(answer.status, 200, "{name}");
        assert!(answer.text().contains(&format!("host: {name}\n")));
    }
}

#[tokio::test]
async fn a_get_with_a_body_of_unknown_length_keeps_its_body() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let chunked = || {
        let frames = ["hel", "lo"].map(|text| Ok::<_, std::io::Error>(Frame::data(Bytes::from(text))));
        StreamBody::new(futures_util::stream::iter(frames)).boxed()
    };
    let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
    let head = format!(
        "GET /one HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        host(&route, 8000)
    );
    say(&mut stream, &format!("{head}3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\n\n5"), "{answer}");

    let mut sender = connect_h2(house.address).await;
    for request in [Request::get, Request::delete] {
        let request = request(format!("http://{}/two", host(&route, 8000)));
        let sent = sender.send_request(request.body(chunked()).unwrap()).await;
        let answer = Answer::of(sent.unwrap()).await;
        assert!(answer.text().ends_with("\n\n5"), "{}", answer.text());
    }
    // And one without a body has none.
    let answer = ask(house.address, get(&route, 8000, "/")).await;
    assert!(!answer.text().contains("transfer-encoding") && answer.text().ends_with("\n\n0"));
}

#[tokio::test]
async fn a_request_for_no_sandbox_is_refused_in_plain_text() {
    let house = House::open().await;
    let id = "i0123456789abcdefghij";
    for (host, id, port, says) in [
        ("localhost", None, None, "Invalid host"),
        ("8000-ABC.x.y", None, None, "Invalid sandbox ID"),
        (
            "http-i0123456789abcdefghij.x.y",
            None,
            None,
            "Invalid sandbox port",
        ),
        ("localhost", Some(id), None, "missing header"),
        ("localhost", None, Some("80"), "missing header"),
        ("localhost", Some(id), Some("eighty"), "Invalid sandbox port"),
    ] {
        let mut request = Request::get("/").header("host", host);
        if let Some(id) = id {
            request = request.header("e2b-sandbox-id", id);
        }
        if let Some(port) = port {
            request = request.header("e2b-sandbox-port", port);
        }
        let answer = ask(house.address, request).await;
        assert_eq!(answer.status, 400, "{host}");
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        assert!(answer.text().contains(says), "{} for {host}", answer.text());
    }
}

#[tokio::test]
async fn control_paths_of_envd_are_not_there_however_they_are_written() {
    let house = House::open().await;
    house.guest.echo(ENVD_PORT).await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    for path in [
        "/init",
        "//init",
        "/./init",
        "/x/../init",
        "/%69nit",
        "/%2569nit",
        "/init?a=b",
        "/host/logs",
        "/x/..//host/logs",
        "/freeze",
        "/upgrade",
    ] {
        let answer = ask(house.address, post(&route, ENVD_PORT, path)).await;
        assert_eq!(answer.status, 404, "{path}");
        let json = answer.json();
        assert_eq!(json["code"], 404);
        assert_eq!(json["path"], path.split('?').next().unwrap());
        assert!(json["message"].is_string());
        let by_header = Request::post(path)
            .header("host", "localhost")
            .header("e2b-sandbox-id", route.sandbox.to_string())
            .header("e2b-sandbox-port", ENVD_PORT.to_string());
        assert_eq!(ask(house.address, by_header).await.status, 404, "{path}");
        assert_eq!(
            ask(house.address, get(&route, 8000, path)).await.status,
            200,
            "{path}"
        );
    }
    assert_eq!(
        ask(house.address, get(&route, ENVD_PORT, "/health")).await.status,
        200
    );
    // Before any look-up: an unknown sandbox's control paths are no more there.
    let unknown = Request::get("/init").header("host", "49983-i0123456789abcdefghij.x.y");
    assert_eq!(ask(house.address, unknown).await.status, 404);
}

#[tokio::test]
async fn private_ports_want_the_traffic_token_and_keep_it() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    house.guest.echo(ENVD_PORT).await;
    let route = house
        .sandbox_with(|route| route.traffic_token = Some(model::Secret::new("let-me-in".to_owned())))
        .await;
    let token = "e2b-traffic-access-token";
    let answer = ask(house.address, get(&route, 8000, "/")).await;
    assert_eq!(answer.status, 403);
    let json = answer.json();
    assert_eq!(
        json["message"],
        "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
    );
    assert_eq!(
        (json["code"].as_u64(), json["sandboxId"].as_str()),
        (Some(403), Some(route.sandbox.as_str()))
    );
    let answer = ask(house.address, get(&route, 8000, "/").header(token, "let-me-im")).await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.json()["message"],
        "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
    );
    let answer = ask(house.address, get(&route, 8000, "/").header(token, "let-me-in")).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.text().contains("let-me-in"));
    assert_eq!(
        ask(house.address, get(&route, ENVD_PORT, "/health")).await.status,
        200
    );
}

#[tokio::test]
async fn a_masked_host_is_what_services_see_and_envd_does_not() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    house.guest.echo(ENVD_PORT).await;
    let mask = "localhost:${PORT}".parse().unwrap();
    let route = house.sandbox_with(|route| route.mask_host = Some(mask)).await;
    let answer = ask(house.address, get(&route, 8000, "/")).await;
    assert!(answer.text().contains("host: localhost:8000\n"));
    assert!(
        answer
            .text()
            .contains(&format!("x-forwarded-host: {}\n", host(&route, 8000)))
    );
    let answer = ask(house.address, get(&route, ENVD_PORT, "/")).await;
    assert!(
        answer
            .text()
            .contains(&format!("host: {}\n", host(&route, ENVD_PORT)))
    );
}

#[tokio::test]
async fn what_speaks_of_one_connection_is_not_passed_on() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let request = get(&route, 8000, "/")
        .header("connection", "x-private, close")
        .header("x-private", "1")
        .header("keep-alive", "timeout=1")
        .header("te", "trailers")
        .header("proxy-connection", "keep-alive");
    let answer = ask(house.address, request).await;
    for name in ["x-private", "connection", "keep-alive", "te:"] {
        assert!(
            !answer.text().contains(&format!("\n{name}")),
            "{name}: {}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn names_reach_services_in_title_case() {
    let house = House::open().await;
    house
        .guest
        .raw(8000, |mut stream| async move {
            let head = crate::house::read_head(&mut stream).await.unwrap();
            let answer = format!("HTTP/1.0 200 OK\r\n\r\n{head}");
            crate::house::say(&mut stream, &answer).await;
        })
        .await;
    let route = house.sandbox().await;
    let answer = ask(house.address, get(&route, 8000, "/").header("x-mine", "yes")).await;
    assert!(answer.text().contains("\r\nX-Mine: yes\r\n"), "{}", answer.text());
}

#[tokio::test]
async fn an_http_2_client_reaches_an_http_1_service() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let mut sender = connect_h2(house.address).await;
    let uri = format!("http://{}/x?y", host(&route, 8000));
    let mut ask = |request: http::request::Builder, body: Vec<u8>| {
        let sent = sender.send_request(request.body(full(body)).unwrap());
        async move { Answer::of(sent.await.unwrap()).await }
    };
    let first = ask(
        Request::get(&uri).header("cookie", "a=1").header("cookie", "b=2"),
        Vec::new(),
    );
    let second = ask(Request::post(&uri), vec![7; 3_000_000]);
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
    assert!(first.text().starts_with("GET /x?y\n"));
    assert!(first.text().contains(&format!("host: {}\n", host(&route, 8000))));
    assert!(first.text().contains("cookie: a=1; b=2\n"));
    assert!(second.text().ends_with("\n3000000"));
}

#[tokio::test]
async fn a_target_in_absolute_form_beats_the_host_header() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let request = Request::get(format!("http://{}/x", host(&route, 8000))).header("host", "elsewhere");
    let answer = ask(house.address, request).await;
    assert!(answer.text().starts_with("GET /x\n"), "{}", answer.text());
}

#[tokio::test]
async fn bodies_pass_both_ways_whatever_their_size() {
    let house = House::open().await;
    house
        .guest
        .serve(8000, |request| async move {
            let body = http_body_util::BodyExt::map_err(request.into_body(), std::io::Error::other);
            http::Response::new(http_body_util::BodyExt::boxed(body))
        })
        .await;
    let route = house.sandbox().await;
    for size in [1, 4096, 10_000_000] {
        let body: Vec<u8> = (0..size).map(|n: usize| n.to_le_bytes()[0]).collect();
        let request = post(&route, 8000, "/").body(full(body.clone())).unwrap();
        let answer = Answer::of(send(house.address, request).await).await;
        assert!(answer.body == body, "{size}");
    }
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length_header() {
    let house = House::open().await;
    house
        .guest
        .raw(8000, |mut stream| async move {
            while crate::house::read_head(&mut stream).await.is_some() {
                crate::house::say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n").await;
            }
        })
        .await;
    let route = house.sandbox().await;
    for _ in 0..3 {
        let request = Request::head("/").header("host", host(&route, 8000));
        let response = send(house.address, bare(request)).await;
        assert_eq!(response.headers()["content-length"], "12345");
    }
    assert_eq!(house.guest.dials(), 1);
}

#[tokio::test]
async fn connect_is_refused() {
    let house = House::open().await;
    let request = Request::connect("example.com:443").header("host", "example.com:443");
    assert_eq!(ask(house.address, request).await.status, 405);
}
