//! Streams into sandboxes on other machines.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::world::{Cluster, PATIENCE, Proxy, Served, until};
use async_trait::async_trait;
use model::{ExecutionId, NodeId, SandboxId, Seat};
use ports::{DialError, Guest, Route, Stream};
use rpc::{Bounds, RemoteGuest, Role, Services};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

/// Sandboxes whose ports are tasks: 1 sends back what comes, 2 tells and ends, 3 hears to the end and then tells how much, 4 never
/// reads, 5 is closed, 6 fails, 7 breaks off after a word.
#[derive(Default)]
struct Ports {
    dialled: Mutex<Vec<(SandboxId, ExecutionId, NodeId, u16)>>,
    gone: Mutex<Option<ExecutionId>>,
    open: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Guest for Ports {
    async fn dial(&self, route: &Route, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let seat = route.seat;
        self.dialled
            .lock()
            .unwrap()
            .push((route.sandbox, seat.execution, seat.node, port));
        if *self.gone.lock().unwrap() == Some(seat.execution) {
            return Err(DialError::Gone);
        }
        if port == 5 {
            return Err(DialError::Closed(port));
        }
        if port == 6 {
            let source = io::ErrorKind::ConnectionReset.into();
            return Err(DialError::Io { port, source });
        }
        let (near, mut far) = tokio::io::duplex(16 * 1024);
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&self.open));
        tokio::spawn(async move {
            let _open = open;
            match port {
                1 => {
                    let (mut read, mut write) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                }
                2 => {
                    let _ = far.write_all(b"told").await;
                    let _ = far.shutdown().await;
                    let mut heard = Vec::new();
                    let _ = far.read_to_end(&mut heard).await;
                    assert_eq!(heard, b"heard after the end");
                }
                3 => {
                    let mut heard = Vec::new();
                    let _ = far.read_to_end(&mut heard).await;
                    let _ = far.write_all(heard.len().to_string().as_bytes()).await;
                    let _ = far.shutdown().await;
                }
                7 => {
                    let _ = far.write_all(b"word").await;
                }
                _ => std::future::pending::<()>().await,
            }
        });
        Ok(Box::new(near))
    }
}

struct Pair {
    cluster: Cluster,
    node: NodeId,
    ports: Arc<Ports>,
    served: Served,
    addresses: watch::Sender<HashMap<NodeId, String>>,
    remote: Arc<RemoteGuest>,
}

impl Pair {
    async fn new() -> Self {
        Self::with(Bounds::default()).await
    }

    async fn with(bounds: Bounds) -> Self {
        let cluster = Cluster::new("blue");
        let (node, ports) = (NodeId::random(), Arc::new(Ports::default()));
        let services = Services::new()
            .guest(Arc::clone(&ports) as Arc<dyn Guest>)
            .bounds(bounds);
        let served = Served::start(cluster.node_tls(node), services).await;
        let table = HashMap::from([(node, served.address())]);
        let (addresses, watched) = watch::channel(table);
        let remote = RemoteGuest::new(watched, &cluster.tls(Role::Edge, "edge-1"));
        Self {
            cluster,
            node,
            ports,
            served,
            addresses,
            remote,
        }
    }

    fn route(&self) -> Route {
        route(self.node)
    }
}

fn route(node: NodeId) -> Route {
    Route {
        sandbox: SandboxId::random(),
        seat: Seat {
            node,
            execution: ExecutionId::random(),
        },
        version: 0,
        envd_token: None,
        traffic_token: None,
        mask_host: None,
    }
}

async fn failed(remote: &RemoteGuest, route: &Route, port: u16) -> DialError {
    let dialled = timeout(PATIENCE, remote.dial(route, port)).await.unwrap();
    dialled.err().unwrap()
}

#[tokio::test]
async fn a_dial_reaches_the_execution_that_is_meant_and_bytes_go_both_ways() {
    let pair = Pair::new().await;
    let route = pair.route();
    let mut stream = pair.remote.dial(&route, 1).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|at| u8::try_from(at % 253).unwrap())
        .collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let reading = async {
        let mut heard = Vec::new();
        read.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let ((), heard) = tokio::join!(writing, reading);
    assert!(heard == sent);
    let dialled = pair.ports.dialled.lock().unwrap().clone();
    assert_eq!(dialled, [(route.sandbox, route.seat.execution, pair.node, 1)]);
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let pair = Pair::new().await;
    let mut stream = pair.remote.dial(&pair.route(), 3).await.unwrap();
    stream.write_all(&[7; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "100000");

    let mut stream = pair.remote.dial(&pair.route(), 2).await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"told");
    stream.write_all(b"heard after the end").await.unwrap();
    stream.shutdown().await.unwrap();
    until("it is over there", || pair.ports.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn every_refusal_arrives_as_what_it_is() {
    let pair = Pair::new().await;
    let route = pair.route();
    *pair.ports.gone.lock().unwrap() = Some(route.seat.execution);
    assert!(matches!(failed(&pair.remote, &route, 1).await, DialError::Gone));
    let route = pair.route();
    assert!(matches!(
        failed(&pair.remote, &route, 5).await,
        DialError::Closed(5)
    ));
    let error = failed(&pair.remote, &route, 6).await;
    let DialError::Io { port: 6, source } = error else {
        panic!("{error:?}");
    };
    assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_node_that_is_nowhere_or_another_is_not_dialled() {
    let pair = Pair::new().await;
    let error = failed(&pair.remote, &route(NodeId::random()), 1).await;
    assert!(
        matches!(&error, DialError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound),
        "{error:?}"
    );
    let another = NodeId::random();
    let table = HashMap::from([(another, pair.served.address())]);
    pair.addresses.send(table).unwrap();
    let error = failed(&pair.remote, &route(another), 1).await;
    assert!(matches!(error, DialError::Io { .. }), "{error:?}");
    assert!(pair.ports.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_an_edge_may_dial() {
    let pair = Pair::new().await;
    for role in Role::ALL {
        let name = match role {
            Role::Node => NodeId::random().to_string(),
            _ => "two".to_owned(),
        };
        let (_keep, watched) = watch::channel(HashMap::from([(pair.node, pair.served.address())]));
        let remote = RemoteGuest::new(watched, &pair.cluster.tls(role, &name));
        let dialled = remote.dial(&pair.route(), 1).await;
        assert_eq!(dialled.is_ok(), role == Role::Edge, "{role}");
        if let Err(error) = dialled {
            assert!(
                matches!(&error, DialError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied),
                "{error:?}"
            );
        }
    }
}

#[tokio::test]
async fn who_does_not_read_stops_who_writes() {
    let pair = Pair::new().await;
    let mut stream = pair.remote.dial(&pair.route(), 4).await.unwrap();
    let mut sent = 0_usize;
    let piece = vec![7; 64 * 1024];
    loop {
        match timeout(Duration::from_millis(500), stream.write(&piece)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
        assert!(sent < 64 << 20, "nothing holds it back");
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_ends_in_the_sandbox_and_one_that_breaks_there_breaks_here() {
    let pair = Pair::new().await;
    let stream = pair.remote.dial(&pair.route(), 1).await.unwrap();
    until("it is open", || pair.ports.open.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    until("it has ended there", || {
        pair.ports.open.load(Ordering::SeqCst) == 0
    })
    .await;
    let mut stream = pair.remote.dial(&pair.route(), 7).await.unwrap();
    let mut heard = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"word");
}

#[tokio::test]
async fn a_thousand_dials_at_a_time_are_all_carried_out() {
    let pair = Pair::new().await;
    let dials = (0..1000).map(|_| async {
        let mut stream = pair.remote.dial(&pair.route(), 1).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        // TLS holds back what the socket did not take at once.
        stream.flush().await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        stream
    });
    let streams = timeout(Duration::from_secs(120), futures_util::future::join_all(dials))
        .await
        .unwrap();
    assert_eq!(streams.len(), 1000);
    assert_eq!(pair.ports.open.load(Ordering::SeqCst), 1000);
    drop(streams);
    until("all have ended", || pair.ports.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn what_is_too_much_at_a_time_is_refused() {
    let bounds = Bounds {
        dials: 2,
        ..Bounds::default()
    };
    let pair = Pair::with(bounds).await;
    let first = pair.remote.dial(&pair.route(), 1).await.unwrap();
    let _second = pair.remote.dial(&pair.route(), 1).await.unwrap();
    let error = failed(&pair.remote, &pair.route(), 1).await;
    assert!(
        matches!(&error, DialError::Io { source, .. } if source.kind() == io::ErrorKind::QuotaExceeded),
        "{error:?}"
    );
    drop(first);
    until("there is room", || pair.ports.open.load(Ordering::SeqCst) == 1).await;
    let waiting = async { while pair.remote.dial(&pair.route(), 1).await.is_err() {} };
    timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn streams_end_at_once_with_the_process_of_their_node() {
    let pair = Pair::new().await;
    let mut stream = pair.remote.dial(&pair.route(), 1).await.unwrap();
    let begun = std::time::Instant::now();
    pair.served.kill().await;
    let read = timeout(PATIENCE, stream.read(&mut [0; 16])).await.unwrap();
    // It broke off: it did not end well.
    assert!(read.is_err(), "{read:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn streams_end_in_seconds_when_their_node_is_silent() {
    let pair = Pair::new().await;
    let proxy = Proxy::to(pair.served.address).await;
    let table = HashMap::from([(pair.node, proxy.address.to_string())]);
    pair.addresses.send(table).unwrap();
    let mut stream = pair.remote.dial(&pair.route(), 1).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
    // Somebody feels its pulse.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = std::time::Instant::now();
    proxy.stalled.cancel();
    let read = timeout(PATIENCE, stream.read(&mut [0; 16])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_node_that_stops_cuts_its_streams_after_the_grace() {
    let bounds = Bounds {
        grace: Duration::from_millis(300),
        ..Bounds::default()
    };
    let mut pair = Pair::with(bounds).await;
    let mut stream = pair.remote.dial(&pair.route(), 1).await.unwrap();
    pair.served.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(b"still").await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
    assert!(
        timeout(PATIENCE, stream.read(&mut [0; 16]))
            .await
            .unwrap()
            .is_err()
    );
    timeout(PATIENCE, &mut pair.served.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
