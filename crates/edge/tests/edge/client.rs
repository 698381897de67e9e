//! A client that hides nothing.
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ports::Route;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::house::{Body, full};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn host(route: &Route, port: u16) -> String {
    format!("{port}-{}.atoll.localhost", route.sandbox)
}

/// `GET path` for a port of a sandbox, by its host name.
pub(crate) fn get(route: &Route, port: u16, path: &str) -> request::Builder {
    Request::get(path).header("host", host(route, port))
}

pub(crate) fn post(route: &Route, port: u16, path: &str) -> request::Builder {
    Request::post(path).header("host", host(route, port))
}

pub(crate) fn bare(request: request::Builder) -> Request<Body> {
    request.body(full("")).unwrap()
}

/// An HTTP/1.1 connection to the edge.
pub(crate) async fn connect(address: SocketAddr) -> http1::SendRequest<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// An HTTP/2 connection to the edge, with prior knowledge.
pub(crate) async fn connect_h2(address: SocketAddr) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// One request over a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: Request<Body>) -> Response<Incoming> {
    let mut sender = connect(address).await;
    tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .expect("an answer in time")
        .expect("an answer")
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect())
            .await
            .expect("a body in time");
        Self {
            status: parts.status,
            headers: parts.headers,
            body: body.expect("a whole body").to_bytes(),
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json; charset=utf-8");
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One request over a connection of its own, and the whole answer.
pub(crate) async fn ask(address: SocketAddr, request: request::Builder) -> Answer {
    Answer::of(send(address, bare(request)).await).await
}

/// The next chunk of a body: `None` at a clean end, an error at any other.
pub(crate) async fn chunk(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    let frame = tokio::time::timeout(PATIENCE, body.frame())
        .await
        .expect("a chunk in time");
    frame.map(|frame| frame.map(|frame| frame.into_data().expect("data")))
}
