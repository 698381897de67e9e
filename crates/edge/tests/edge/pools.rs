//! Connections that are used again, and requests that survive their loss.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use ports::guest::ENVD_PORT;
use tokio::sync::Notify;

use crate::client::{Answer, ask, bare, connect, get, post, send};
use crate::house::{House, full, read_head, say};

#[tokio::test]
async fn requests_that_follow_each_other_share_a_connection() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    let mut sender = connect(house.address).await;
    for _ in 0..20 {
        let response = sender.send_request(bare(get(&route, 8000, "/"))).await.unwrap();
        assert_eq!(Answer::of(response).await.status, 200);
    }
    assert_eq!(ask(house.address, get(&route, 8000, "/")).await.status, 200);
    assert_eq!(house.guest.dials(), 1);
}

#[tokio::test]
async fn a_connection_leads_to_one_execution_and_port_only() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    house.guest.echo(8001).await;
    let (one, two) = (house.sandbox().await, house.sandbox().await);
    for (route, port) in [(&one, 8000), (&one, 8001), (&two, 8000)] {
        ask(house.address, get(route, port, "/")).await;
    }
    assert_eq!(house.guest.dials(), 3);
    let next = house.sandbox_with(|next| next.sandbox = one.sandbox).await;
    assert_eq!(ask(house.address, get(&next, 8000, "/")).await.status, 200);
    assert_eq!(house.guest.dials(), 4);
}

/// A service that answers `answers` requests on each connection, then hangs up without having said so.
async fn forgetful(house: &House, port: u16, answers: usize) -> Arc<AtomicUsize> {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    house
        .guest
        .raw(port, move |mut stream| {
            let count = count.clone();
            async move {
                for _ in 0..answers {
                    if read_head(&mut stream).await.is_none() {
                        return;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
                // Reads the next request, and hangs up on it.
                read_head(&mut stream).await;
            }
        })
        .await;
    seen
}

#[tokio::test]
async fn a_request_that_can_be_repeated_is_when_an_idle_connection_was_hung_up() {
    let house = House::open().await;
    let seen = forgetful(&house, 8000, 1).await;
    let route = house.sandbox().await;
    for _ in 0..5 {
        assert_eq!(ask(house.address, get(&route, 8000, "/")).await.status, 200);
    }
    assert_eq!(seen.load(Ordering::SeqCst), 5);
    assert_eq!(house.guest.dials(), 5);
}

#[tokio::test]
async fn what_cannot_be_repeated_takes_no_idle_connection_to_a_service() {
    let house = House::open().await;
    let seen = forgetful(&house, 8000, 1).await;
    let route = house.sandbox().await;
    assert_eq!(ask(house.address, get(&route, 8000, "/")).await.status, 200);
    for body in ["", "x"] {
        let request = post(&route, 8000, "/").body(full(body)).unwrap();
        assert_eq!(send(house.address, request).await.status(), 200);
    }
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    assert_eq!(house.guest.dials(), 3);
}

#[tokio::test]
async fn a_body_survives_an_envd_connection_that_was_closed_while_idle() {
    let house = House::open().await;
    let closed = Arc::new(Notify::new());
    let close = closed.clone();
    house
        .guest
        .raw(ENVD_PORT, move |mut stream| {
            let close = close.clone();
            async move {
                let head = read_head(&mut stream).await.unwrap();
                let length: usize = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: "))
                    .map_or(0, |length| length.parse().unwrap());
                let mut body = vec![0; length];
                tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body)
                    .await
                    .unwrap();
                say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                drop(stream);
                close.notify_one();
            }
        })
        .await;
    let route = house.sandbox().await;
    for _ in 0..3 {
        let request = post(&route, ENVD_PORT, "/process.Process/List")
            .body(full("{}"))
            .unwrap();
        assert_eq!(send(house.address, request).await.status(), 200);
        closed.notified().await;
    }
    assert_eq!(house.guest.dials(), 3);
}

#[tokio::test]
async fn a_request_that_reached_a_service_is_not_sent_twice() {
    let house = House::open().await;
    let seen = forgetful(&house, ENVD_PORT, 1).await;
    let route = house.sandbox().await;
    assert_eq!(
        ask(house.address, get(&route, ENVD_PORT, "/health")).await.status,
        200
    );
    let answer = ask(house.address, post(&route, ENVD_PORT, "/process.Process/Start")).await;
    assert_eq!(answer.status, 502);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_service_that_handles_one_connection_at_a_time_is_not_kept_waiting() {
    let house = House::open().await;
    let begun = Arc::new(Notify::new());
    let (first, go_on) = (begun.clone(), Arc::new(Notify::new()));
    let go = go_on.clone();
    let one_at_a_time = Arc::new(tokio::sync::Mutex::new(()));
    house
        .guest
        .raw(8000, move |mut stream| {
            let (lock, first, go) = (one_at_a_time.clone(), first.clone(), go.clone());
            async move {
                // Kept until the connection ends, as a server without threads keeps it.
                let _turn = lock.lock().await;
                while let Some(head) = read_head(&mut stream).await {
                    if head.starts_with("GET /first") {
                        first.notify_one();
                        go.notified().await;
                    }
                    say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
            }
        })
        .await;
    let route = house.sandbox().await;
    let second = async {
        begun.notified().await;
        let asked = ask(house.address, get(&route, 8000, "/second"));
        let released = async {
            while house.guest.dials() < 2 {
                tokio::task::yield_now().await;
            }
            go_on.notify_one();
        };
        tokio::join!(asked, released).0
    };
    let (first, second) = tokio::join!(ask(house.address, get(&route, 8000, "/first")), second);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
}

#[tokio::test]
async fn a_connection_that_was_idle_for_long_is_not_used_again() {
    let house = House::open().await;
    house.guest.echo(8000).await;
    let route = house.sandbox().await;
    ask(house.address, get(&route, 8000, "/")).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(25)).await;
    tokio::time::resume();
    assert_eq!(ask(house.address, get(&route, 8000, "/")).await.status, 200);
    assert_eq!(house.guest.dials(), 2);
}

#[tokio::test]
async fn a_service_that_says_that_it_closes_is_believed() {
    let house = House::open().await;
    house
        .guest
        .serve(8000, |_| async {
            Response::builder()
                .header("connection", "close")
                .body(full("bye"))
                .unwrap()
        })
        .await;
    let route = house.sandbox().await;
    let mut sender = connect(house.address).await;
    for _ in 0..3 {
        let response = sender.send_request(bare(get(&route, 8000, "/"))).await.unwrap();
        assert!(!response.headers().contains_key("connection"));
        assert_eq!(Answer::of(response).await.text(), "bye");
    }
    assert_eq!(house.guest.dials(), 3);
}
