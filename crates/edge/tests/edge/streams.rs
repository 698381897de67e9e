//! Streams: open-ended, cut, upgraded.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use ports::guest::ENVD_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};

use crate::client::{PATIENCE, ask, bare, chunk, connect, connect_h2, get, host, post, send};
use crate::house::{Body, House, full, read_head, say};

/// A body made of what is sent into the channel.
fn channel() -> (mpsc::Sender<&'static str>, Body) {
    let (sender, receiver) = mpsc::channel(8);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let text: &'static str = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from(text))), receiver))
    });
    (sender, StreamBody::new(frames).boxed())
}

/// A service whose every answer is a stream that the test feeds.
async fn fed(house: &House, port: u16) -> mpsc::Receiver<mpsc::Sender<&'static str>> {
    let (feeds, fed) = mpsc::channel(8);
    house
        .guest
        .serve(port, move |_| {
            let feeds = feeds.clone();
            async move {
                let (feed, body) = channel();
                feeds.send(feed).await.unwrap();
                Response::new(body)
            }
        })
        .await;
    fed
}

#[tokio::test]
async fn chunks_pass_one_by_one() {
    let house = House::open().await;
    let mut feeds = fed(&house, ENVD_PORT).await;
    let route = house.sandbox().await;
    let response = send(
        house.address,
        bare(post(&route, ENVD_PORT, "/process.Process/Start")),
    )
    .await;
    let feed = feeds.recv().await.unwrap();
    let mut body = response.into_body();
    for text in ["one", "two", "three"] {
        feed.send(text).await.unwrap();
        assert_eq!(chunk(&mut body).await.unwrap().unwrap(), text);
    }
    drop(feed);
    assert!(chunk(&mut body).await.is_none());
}

#[tokio::test]
async fn a_quiet_stream_is_not_cut_however_long_it_is_quiet() {
    let house = House::open().await;
    let mut feeds = fed(&house, ENVD_PORT).await;
    let route = house.sandbox().await;
    let response = send(house.address, bare(post(&route, ENVD_PORT, "/"))).await;
    let feed = feeds.recv().await.unwrap();
    let mut body = response.into_body();
    feed.send("before").await.unwrap();
    assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "before");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(24 * 60 * 60)).await;
    tokio::time::resume();
    feed.send("after").await.unwrap();
    assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "after");
}

#[tokio::test]
async fn a_withdrawn_route_breaks_its_streams_and_leaves_the_others() {
    let house = House::open().await;
    let mut feeds = fed(&house, ENVD_PORT).await;
    let (route, other) = (house.sandbox().await, house.sandbox().await);
    let mut bodies = Vec::new();
    for route in [&route, &other] {
        let response = send(house.address, bare(post(route, ENVD_PORT, "/"))).await;
        let feed = feeds.recv().await.unwrap();
        feed.send("begun").await.unwrap();
        let mut body = response.into_body();
        assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "begun");
        bodies.push((feed, body));
    }
    house.kill(&route).await;
    let (_, cut) = &mut bodies[0];
    assert!(chunk(cut).await.expect("no clean end").is_err());
    let answer = ask(house.address, get(&route, ENVD_PORT, "/health")).await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("The sandbox was not found"));
    let (feed, spared) = &mut bodies[1];
    feed.send("on").await.unwrap();
    assert_eq!(chunk(spared).await.unwrap().unwrap(), "on");
}

#[tokio::test]
async fn a_withdrawn_route_breaks_a_body_of_known_length() {
    let house = House::open().await;
    house
        .guest
        .raw(8000, |mut stream| async move {
            read_head(&mut stream).await;
            say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
            std::future::pending().await
        })
        .await;
    let route = house.sandbox().await;
    let response = send(house.address, bare(get(&route, 8000, "/"))).await;
    let mut body = response.into_body();
    assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "half");
    house.kill(&route).await;
    assert!(chunk(&mut body).await.expect("no clean end").is_err());
}

#[tokio::test]
async fn a_withdrawn_route_resets_http_2_streams_alone() {
    let house = House::open().await;
    let mut feeds = fed(&house, ENVD_PORT).await;
    let (route, other) = (house.sandbox().await, house.sandbox().await);
    let mut sender = connect_h2(house.address).await;
    let mut bodies = Vec::new();
    for route in [&route, &other] {
        let uri = format!("http://{}/", host(route, ENVD_PORT));
        let sent = sender.send_request(bare(Request::post(uri)));
        let body = sent.await.unwrap().into_body();
        bodies.push((feeds.recv().await.unwrap(), body));
    }
    house.kill(&route).await;
    assert!(chunk(&mut bodies[0].1).await.expect("no clean end").is_err());
    bodies[1].0.send("on").await.unwrap();
    assert_eq!(chunk(&mut bodies[1].1).await.unwrap().unwrap(), "on");
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_told_that_the_sandbox_is_gone() {
    let house = House::open().await;
    let asked = Arc::new(Notify::new());
    let seen = asked.clone();
    house
        .guest
        .serve(8000, move |_| {
            seen.notify_one();
            std::future::pending()
        })
        .await;
    let route = house.sandbox().await;
    let killed = async {
        asked.notified().await;
        house.kill(&route).await;
    };
    let (answer, ()) = tokio::join!(ask(house.address, get(&route, 8000, "/")), killed);
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("The sandbox was not found"));
}

#[tokio::test]
async fn a_resumed_sandbox_cuts_the_streams_of_its_last_life() {
    let house = House::open().await;
    let mut feeds = fed(&house, ENVD_PORT).await;
    let route = house.sandbox().await;
    let response = send(house.address, bare(post(&route, ENVD_PORT, "/"))).await;
    let _feed = feeds.recv().await.unwrap();
    let next = house.sandbox_with(|next| next.sandbox = route.sandbox).await;
    assert!(
        chunk(&mut response.into_body())
            .await
            .expect("no clean end")
            .is_err()
    );
    let response = send(house.address, bare(post(&next, ENVD_PORT, "/"))).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_service_that_breaks_off_breaks_the_answer_off() {
    let house = House::open().await;
    house
        .guest
        .raw(8000, |mut stream| async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            )
            .await;
        })
        .await;
    let route = house.sandbox().await;
    let mut body = send(house.address, bare(get(&route, 8000, "/")))
        .await
        .into_body();
    assert_eq!(chunk(&mut body).await.unwrap().unwrap(), "half");
    assert!(chunk(&mut body).await.expect("no clean end").is_err());
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let house = House::open().await;
    let (gone, left) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (asked, hung_up) = (gone.clone(), left.clone());
    house
        .guest
        .raw(8000, move |mut stream| {
            let (asked, hung_up) = (asked.clone(), hung_up.clone());
            async move {
                let head = read_head(&mut stream).await.unwrap();
                if head.starts_with("GET /stream") {
                    say(
                        &mut stream,
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
                    )
                    .await;
                }
                asked.notify_one();
                let mut rest = [0; 16];
                if matches!(stream.read(&mut rest).await, Ok(0) | Err(_)) {
                    hung_up.notify_one();
                }
            }
        })
        .await;
    let route = house.sandbox().await;
    for path in ["/wait", "/stream"] {
        let mut sender = connect(house.address).await;
        let answer = tokio::spawn(sender.send_request(bare(get(&route, 8000, path))));
        gone.notified().await;
        let answered = if path == "/stream" {
            Some(answer.await.unwrap().unwrap())
        } else {
            answer.abort();
            None
        };
        drop((sender, answered));
        tokio::time::timeout(PATIENCE, left.notified()).await.expect(path);
    }
    let mut sender = connect_h2(house.address).await;
    let sent =
        tokio::spawn(sender.send_request(bare(Request::get(format!("http://{}/wait", host(&route, 8000))))));
    gone.notified().await;
    sent.abort();
    tokio::time::timeout(PATIENCE, left.notified())
        .await
        .expect("the reset reaches the service");
}

#[tokio::test]
async fn a_request_and_its_answer_run_side_by_side() {
    let house = House::open().await;
    house
        .guest
        .serve(8000, |request| async move {
            Response::new(request.into_body().map_err(std::io::Error::other).boxed())
        })
        .await;
    let route = house.sandbox().await;
    let (feed, body) = channel();
    let response = send(house.address, post(&route, 8000, "/").body(body).unwrap()).await;
    let mut echoed = response.into_body();
    for text in ["one", "two"] {
        feed.send(text).await.unwrap();
        assert_eq!(chunk(&mut echoed).await.unwrap().unwrap(), text);
    }
    drop(feed);
    assert!(chunk(&mut echoed).await.is_none());
}

#[tokio::test]
async fn an_upload_goes_on_while_nobody_reads_the_answer() {
    const SIZE: usize = 32 * 1024 * 1024;
    let house = House::open().await;
    let received = Arc::new(Notify::new());
    let seen = received.clone();
    house
        .guest
        .raw(8000, move |mut stream| {
            let seen = seen.clone();
            async move {
                read_head(&mut stream).await;
                let (mut from, mut to) = stream.into_split();
                let answer = tokio::spawn(async move {
                    to.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes())
                        .await
                        .unwrap();
                    let _ = to.write_all(&vec![1; SIZE]).await;
                });
                let mut left = SIZE;
                let mut buffer = vec![0; 65536];
                while left > 0 {
                    left -= from.read(&mut buffer).await.unwrap();
                }
                seen.notify_one();
                answer.await.unwrap();
            }
        })
        .await;
    let route = house.sandbox().await;
    let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: {SIZE}\r\n\r\n",
        host(&route, 8000)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![2; SIZE]).await.unwrap();
    tokio::time::timeout(PATIENCE, received.notified())
        .await
        .expect("all of the upload");
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        host(&route, 8000)
    );
    say(&mut stream, &head).await;
    let told = tokio::time::timeout(PATIENCE, read_head(&mut stream))
        .await
        .expect("leave to send");
    assert_eq!(told.as_deref(), Some("HTTP/1.1 100 Continue\r\n\r\n"));
    say(&mut stream, "hello").await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\n\n5"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_protocol_that_nobody_asked_for_is_refused() {
    let house = House::open().await;
    house
        .guest
        .raw(8000, |mut stream| async move {
            read_head(&mut stream).await;
            say(
                &mut stream,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            )
            .await;
            std::future::pending().await
        })
        .await;
    let route = house.sandbox().await;
    assert_eq!(ask(house.address, get(&route, 8000, "/")).await.status, 502);
}

fn upgrade(request: http::request::Builder) -> Request<Body> {
    bare(
        request
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    )
}

/// A service that agrees to any upgrade, and then echoes.
async fn echoing(house: &House, port: u16) {
    house
        .guest
        .serve(port, |mut request| async move {
            if !request.headers().contains_key("upgrade") {
                return Response::new(full("plain"));
            }
            assert_eq!(request.headers()["sec-websocket-key"], "dGhlIHNhbXBsZSBub25jZQ==");
            tokio::spawn(async move {
                let client = hyper::upgrade::on(&mut request).await.unwrap();
                let (mut from, mut to) = tokio::io::split(TokioIo::new(client));
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
                .body(full(""))
                .unwrap()
        })
        .await;
}

async fn tunnel(house: &House, request: Request<Body>) -> TokioIo<hyper::upgrade::Upgraded> {
    let response = send(house.address, request).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "websocket");
    assert_eq!(
        response.headers()["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

#[tokio::test]
async fn a_websocket_passes_both_ways_and_ends_with_either_side() {
    let house = House::open().await;
    echoing(&house, 8000).await;
    let route = house.sandbox().await;
    let mut tunnel = tunnel(&house, upgrade(get(&route, 8000, "/ws"))).await;
    for text in ["ping", "pong"] {
        tunnel.write_all(text.as_bytes()).await.unwrap();
        let mut echo = [0; 4];
        tunnel.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, text.as_bytes());
    }
    tunnel.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, tunnel.read_to_end(&mut rest))
        .await
        .expect("an end")
        .unwrap();
}

#[tokio::test]
async fn a_withdrawn_route_cuts_its_websockets() {
    let house = House::open().await;
    echoing(&house, 8000).await;
    let route = house.sandbox().await;
    let mut tunnel = tunnel(&house, upgrade(get(&route, 8000, "/ws"))).await;
    house.kill(&route).await;
    let mut byte = [0];
    let read = tokio::time::timeout(PATIENCE, tunnel.read(&mut byte))
        .await
        .expect("an end");
    assert!(matches!(read, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_service_may_decline_to_change_the_protocol() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let response = send(house.address, upgrade(get(&route, 8000, "/ws"))).await;
    assert_eq!(
        (response.status(), response.version()),
        (StatusCode::OK, Version::HTTP_11)
    );
    let answer = crate::client::Answer::of(response).await;
    assert!(answer.text().contains("upgrade: websocket\n"));
}

#[tokio::test]
async fn envd_is_asked_for_no_other_protocol() {
    let house = House::open().await;
    echoing(&house, ENVD_PORT).await;
    let route = house.sandbox().await;
    let response = send(house.address, upgrade(get(&route, ENVD_PORT, "/health"))).await;
    assert_eq!(crate::client::Answer::of(response).await.text(), "plain");
}
