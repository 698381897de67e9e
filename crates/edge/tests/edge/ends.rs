//! How a listener ends, and what a flood of changes does.
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use ports::Catalog as _;
use ports::guest::ENVD_PORT;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::client::{PATIENCE, bare, chunk, connect, get, post, send};
use crate::house::{House, full, read_head, say};

#[tokio::test]
async fn a_listener_that_ends_lets_requests_finish() {
    let house = House::open().await;
    let (asked, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, go) = (asked.clone(), go_on.clone());
    house
        .guest
        .serve(8000, move |_| {
            tell.notify_one();
            let go = go.clone();
            async move {
                go.notified().await;
                http::Response::new(full("done"))
            }
        })
        .await;
    let route = house.sandbox().await;
    let answer = tokio::spawn(send(house.address, bare(get(&route, 8000, "/"))));
    asked.notified().await;
    house.shutdown.cancel();
    while TcpStream::connect(house.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    go_on.notify_one();
    let body = answer.await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "done");
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_its_listener_ends() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let mut sender = connect(house.address).await;
    let response = sender.send_request(bare(get(&route, 8000, "/"))).await.unwrap();
    response.into_body().collect().await.unwrap();
    house.shutdown.cancel();
    let closed = async {
        while sender.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("the connection ends");
}

#[tokio::test]
async fn a_flood_of_changes_loses_no_withdrawal() {
    let house = House::open().await;
    house
        .guest
        .raw(ENVD_PORT, |mut stream| async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
            )
            .await;
            std::future::pending().await
        })
        .await;
    let (killed, spared) = (house.sandbox().await, house.sandbox().await);
    let mut bodies = Vec::new();
    for route in [&killed, &spared] {
        let mut body = send(house.address, bare(post(route, ENVD_PORT, "/")))
            .await
            .into_body();
        assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "hi");
        bodies.push(body);
    }
    // More changes, in one go of one thread, than the catalog keeps for a slow reader.
    house.kill(&killed).await;
    for version in 2..5002 {
        let again = ports::Route {
            version,
            ..(*spared).clone()
        };
        house.catalog.publish(again).await.unwrap();
    }
    assert!(chunk(&mut bodies[0]).await.expect("no clean end").is_err());
    let answer = send(house.address, bare(post(&spared, ENVD_PORT, "/"))).await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_client_that_never_finishes_a_head_is_not_kept() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let mut begun = Vec::new();
    for says in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nHost: "] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        say(&mut stream, says).await;
        begun.push(stream);
    }
    // One that has had an answer, and begins another request.
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let host = crate::client::host(&route, 8000);
    say(&mut stream, &format!("HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    read_head(&mut stream).await;
    say(&mut stream, "HEAD /").await;
    begun.push(stream);
    ended_within(begun, Duration::from_secs(120)).await;
}

#[tokio::test]
async fn a_connection_without_a_request_ends_in_either_protocol() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let host = crate::client::host(&route, 8000);
    say(&mut stream, &format!("HEAD / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    read_head(&mut stream).await;
    let mut second = TcpStream::connect(house.address).await.unwrap();
    // The preface, and settings that set nothing.
    say(
        &mut second,
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0",
    )
    .await;
    ended_within(vec![stream, second], Duration::from_secs(1000)).await;
}

/// Lets time pass as fast as it may, until the edge has closed them all.
async fn ended_within(streams: Vec<TcpStream>, patience: Duration) {
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for mut stream in streams {
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    }
    assert!(begun.elapsed() <= patience, "{:?}", begun.elapsed());
}
