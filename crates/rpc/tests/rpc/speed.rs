//! How fast it is on this machine: `cargo test --release -p rpc --test rpc speed -- --ignored --nocapture`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::world::fake::order;
use crate::world::{Cluster, Pair, Served};
use async_trait::async_trait;
use model::{ExecutionId, KillReason, NodeId, SandboxId, Seat};
use ports::{DialError, Guest, Route, Stream};
use rpc::{RemoteGuest, Role, Services};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |part: usize| took[(took.len() - 1) * part / 100];
    eprintln!("{what}: p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures"]
async fn a_call() {
    let pair = Pair::new().await;
    for (what, is_start) in [("kill", false), ("start", true)] {
        let mut took = Vec::new();
        for number in 0..3000 {
            let order = order();
            let begun = Instant::now();
            if is_start {
                pair.remote.start(order).await.unwrap();
            } else {
                pair.remote
                    .kill(SandboxId::random(), KillReason::Requested)
                    .await
                    .unwrap();
            }
            if number >= 500 {
                took.push(begun.elapsed());
            }
        }
        tell(what, took);
    }
    let begun = Instant::now();
    let workers = (0..64).map(|_| {
        let remote = Arc::clone(&pair.remote);
        tokio::spawn(async move {
            for _ in 0..200 {
                remote
                    .kill(SandboxId::random(), KillReason::Requested)
                    .await
                    .unwrap();
            }
        })
    });
    futures_util::future::join_all(workers).await;
    let rate = f64::from(64 * 200) / begun.elapsed().as_secs_f64();
    eprintln!("64 at a time: {rate:.0} calls/s");
}

/// Ports are real ones of this machine.
struct Local(u16);

#[async_trait]
impl Guest for Local {
    async fn dial(&self, _: &Route, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let stream = TcpStream::connect(("127.0.0.1", self.0)).await;
        let stream = stream.map_err(|source| DialError::Io { port, source })?;
        stream.set_nodelay(true).unwrap();
        Ok(Box::new(stream))
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures"]
async fn a_dial_and_its_bytes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let (cluster, node) = (Cluster::new("blue"), NodeId::random());
    let services = Services::new().guest(Arc::new(Local(port)));
    let served = Served::start(cluster.node_tls(node), services).await;
    let (_keep, watched) = watch::channel(HashMap::from([(node, served.address())]));
    let remote = RemoteGuest::new(watched, &cluster.tls(Role::Edge, "edge-1"));
    let route = Route {
        sandbox: SandboxId::random(),
        seat: Seat {
            node,
            execution: ExecutionId::random(),
        },
        version: 0,
        envd_token: None,
        traffic_token: None,
        mask_host: None,
    };
    for (what, pause) in [
        ("dial + echo of 1 KiB, one each 10 ms", 10),
        ("without a pause", 0),
    ] {
        let mut took = Vec::new();
        for number in 0..400 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let begun = Instant::now();
            let mut stream = remote.dial(&route, 80).await.unwrap();
            stream.write_all(&[7; 1024]).await.unwrap();
            stream.flush().await.unwrap();
            stream.read_exact(&mut [0; 1024]).await.unwrap();
            if number >= 20 {
                took.push(begun.elapsed());
            }
        }
        tell(what, took);
    }
    let stream = remote.dial(&route, 80).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let total: usize = 1 << 28;
    let begun = Instant::now();
    let writing = tokio::spawn(async move {
        let piece = vec![7; 1 << 16];
        for _ in 0..total >> 16 {
            write.write_all(&piece).await.unwrap();
        }
        write.flush().await.unwrap();
    });
    let mut buffer = vec![0; 1 << 16];
    let mut heard = 0;
    while heard < total {
        heard += read.read(&mut buffer).await.unwrap();
    }
    writing.await.unwrap();
    let rate = 256.0 / begun.elapsed().as_secs_f64();
    eprintln!("echo of 256 MiB over one stream: {rate:.0} MiB/s each way");
}

/// The other way to carry streams: each one a stream of a kept HTTP/2 connection, with the same certificates.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures"]
async fn the_same_over_http_2() {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let (cluster, node) = (Cluster::new("blue"), NodeId::random());
    let acceptor = tokio_rustls::TlsAcceptor::from(cluster.node_tls(node).server(&[b"h2"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let stream = acceptor.accept(stream).await.unwrap();
            let echo = hyper::service::service_fn(|request: http::Request<Incoming>| async move {
                Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
            });
            tokio::spawn(async move {
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(8 << 20)
                    .max_frame_size(64 * 1024)
                    .serve_connection(TokioIo::new(stream), echo)
                    .await;
            });
        }
    });
    let edge = cluster.tls(Role::Edge, "edge-1");
    let connector = tokio_rustls::TlsConnector::from(edge.client(rpc::Expected::node(node), b"h2"));
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let stream = connector
        .connect("peer.atoll.internal".try_into().unwrap(), stream)
        .await
        .unwrap();
    let (mut send, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut open = || {
        let (pieces, body) = tokio::sync::mpsc::channel::<Bytes>(4);
        let body = futures_util::stream::unfold(body, |mut body| async move {
            let piece = body.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(piece)), body))
        });
        let request =
            http::Request::post("https://peer.atoll.internal/").body(StreamBody::new(Box::pin(body)));
        (pieces, send.send_request(request.unwrap()))
    };
    let mut took = Vec::new();
    for number in 0..400 {
        let begun = Instant::now();
        let (pieces, response) = open();
        // Opened when its answer is there, as a dial is.
        let mut body = response.await.unwrap().into_body();
        pieces.send(Bytes::from(vec![7; 1024])).await.unwrap();
        let mut heard = 0;
        while heard < 1024 {
            heard += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        if number >= 20 {
            took.push(begun.elapsed());
        }
    }
    tell("HTTP/2: stream + echo of 1 KiB", took);
    let (pieces, response) = open();
    let mut body = response.await.unwrap().into_body();
    let total: usize = 1 << 28;
    let begun = Instant::now();
    let writing = tokio::spawn(async move {
        let piece = Bytes::from(vec![7; 1 << 16]);
        for _ in 0..total >> 16 {
            pieces.send(piece.clone()).await.unwrap();
        }
    });
    let mut heard = 0;
    while heard < total {
        heard += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    writing.await.unwrap();
    let rate = 256.0 / begun.elapsed().as_secs_f64();
    eprintln!("HTTP/2: echo of 256 MiB over one stream: {rate:.0} MiB/s each way");
}
