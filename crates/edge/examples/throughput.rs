//! How many requests a second pass through the edge, and what it adds to one of them.
//!
//! `cargo run --release -p edge --example throughput [seconds]`. Everything is in this process: the load, the edge,
//! and a service that answers with a few bytes; the machine's cores are shared by all three.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use edge::{Edge, EdgeParts};
use model::{ExecutionId, NodeId, SandboxId, Seat};
use ports::catalog::Memory;
use ports::{Catalog, DialError, Guest, Presented, Route, Stream, Wake, WakeRefused};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const BULK_BYTES: usize = 100 << 20;
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";

struct OneService(SocketAddr);

#[async_trait]
impl Guest for OneService {
    async fn dial(&self, _: &Route, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let failed = |source| DialError::Io { port, source };
        let stream = TcpStream::connect(self.0).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Box::new(stream))
    }
}

struct NoWake;

#[async_trait]
impl Wake for NoWake {
    async fn wake(&self, _: SandboxId, _: Presented) -> Result<(), WakeRefused> {
        Err(WakeRefused::NotFound)
    }
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let span = Duration::from_secs(seconds.unwrap_or(5));
    let service = apart(serve());
    let (edge, host) = apart_with(2, open_edge(service));
    for upload in [false, true] {
        let (direct, through) = (bulk(service, &host, upload), bulk(edge, &host, upload));
        let what = if upload { "up" } else { "down" };
        say(&format!(
            "100 MiB {what}: direct {direct:?}, through the edge {through:?}"
        ));
    }
    for connections in [1, 64] {
        let direct = report(connections, "direct", span, || {
            load(service, &host, connections, span)
        });
        let through = report(connections, "through the edge", span, || {
            load(edge, &host, connections, span)
        });
        let added = through[through.len() / 2].saturating_sub(direct[direct.len() / 2]);
        say(&format!(
            "{connections:>3} connections: {added:?} added to the median"
        ));
    }
}

/// Runs a server's beginning on threads of its own, where the rest of it stays.
fn apart<T: Send + 'static>(begin: impl Future<Output = T> + Send + 'static) -> T {
    apart_with(1, begin)
}

fn apart_with<T: Send + 'static>(threads: usize, begin: impl Future<Output = T> + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let _ = tell.send(begin.await);
            std::future::pending::<()>().await;
        });
    });
    told.recv().expect("it begins")
}

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let mut buffer = [0; 4096];
                let mut held = 0;
                while let Ok(read @ 1..) = stream.read(&mut buffer[held..]).await {
                    held += read;
                    if buffer.starts_with(b"GET /bulk ") || buffer.starts_with(b"POST /bulk ") {
                        move_bulk(&mut stream, &buffer[..held]).await;
                        return;
                    }
                    if buffer[..held].ends_with(b"\r\n\r\n") {
                        held = 0;
                        if stream.write_all(ANSWER).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// Takes or gives a large body, as the head asks.
async fn move_bulk(stream: &mut TcpStream, held: &[u8]) {
    let mut chunk = vec![7; 1 << 18];
    if held.starts_with(b"GET") {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BULK_BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("a reader");
        for _ in 0..BULK_BYTES / chunk.len() {
            stream.write_all(&chunk).await.expect("a reader");
        }
        return;
    }
    let head = held
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .expect("a whole head")
        + 4;
    let mut left = BULK_BYTES - (held.len() - head);
    while left > 0 {
        left -= stream.read(&mut chunk).await.expect("a writer");
    }
    stream.write_all(ANSWER).await.expect("a reader");
}

/// How long a large body takes.
fn bulk(to: SocketAddr, host: &str, upload: bool) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(to).await.expect("a connection");
        let mut chunk = vec![7; 1 << 18];
        let mut left = BULK_BYTES;
        if upload {
            let head = format!("POST /bulk HTTP/1.1\r\nHost: {host}\r\nContent-Length: {BULK_BYTES}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("a reader");
            while left > 0 {
                let most = left.min(chunk.len());
                left -= stream.write(&chunk[..most]).await.expect("a reader");
            }
            assert!(stream.read(&mut chunk).await.expect("an answer") > 0);
        } else {
            let head = format!("GET /bulk HTTP/1.1\r\nHost: {host}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("a reader");
            while left > 0 {
                let read = stream.read(&mut chunk).await.expect("an answer");
                assert!(read > 0, "the answer broke off");
                left = left.saturating_sub(read);
            }
        }
        begun.elapsed()
    })
}

async fn open_edge(service: SocketAddr) -> (SocketAddr, String) {
    let catalog = Arc::new(Memory::default());
    let route = Route {
        sandbox: SandboxId::random(),
        seat: Seat {
            node: NodeId::random(),
            execution: ExecutionId::random(),
        },
        version: 1,
        envd_token: None,
        traffic_token: None,
        mask_host: None,
    };
    let host = format!("8000-{}.atoll.localhost", route.sandbox);
    catalog.publish(route).await.expect("memory");
    let edge = Edge::new(EdgeParts {
        catalog,
        guest: Arc::new(OneService(service)),
        wake: Arc::new(NoWake),
        domain: "atoll.localhost".to_owned(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(edge.serve(listener, CancellationToken::new()));
    (address, host)
}

/// Requests one after another on each of some connections; returns how long each took, sorted.
fn load(to: SocketAddr, host: &str, connections: usize, span: Duration) -> Vec<Duration> {
    let request = format!("GET /hello HTTP/1.1\r\nHost: {host}\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let over = Arc::new(AtomicBool::new(false));
    let mut all = runtime.block_on(async {
        let workers: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(ask_on(to, request.clone(), Arc::clone(&over))))
            .collect();
        tokio::time::sleep(span).await;
        over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await.expect("no panic"));
        }
        all
    });
    all.sort_unstable();
    all
}

async fn ask_on(to: SocketAddr, request: String, over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    let mut took = Vec::with_capacity(1 << 16);
    let mut buffer = [0; 4096];
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        stream
            .write_all(request.as_bytes())
            .await
            .expect("a live connection");
        let mut held = 0;
        while !buffer[..held].ends_with(b"Hello, world!") {
            let read = stream.read(&mut buffer[held..]).await.expect("an answer");
            assert!(read > 0, "the answer broke off");
            held += read;
        }
        assert!(
            buffer.starts_with(b"HTTP/1.1 200 OK\r\n"),
            "an error instead of an answer"
        );
        took.push(begun.elapsed());
    }
    took
}

/// Runs a load and tells of it; with the processor time of all three parties, which a busy machine changes least.
fn report(
    connections: usize,
    what: &str,
    span: Duration,
    load: impl FnOnce() -> Vec<Duration>,
) -> Vec<Duration> {
    let before = processor_seconds();
    let took = load();
    let each = (processor_seconds() - before) / took.len() as f64;
    let at = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)];
    say(&format!(
        "{connections:>3} connections, {what:<16}: {:>8.0} requests/s, {:.1} µs of processor each, p50 {:?}, p95 {:?}, p99 {:?}",
        took.len() as f64 / span.as_secs_f64(),
        each * 1e6,
        at(50),
        at(95),
        at(99),
    ));
    took
}

/// What this process has used so far: `utime` and `stime` of proc(5), in ticks of 10 ms.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a Linux system");
    let fields = stat
        .rsplit(')')
        .next()
        .expect("a name in parentheses")
        .split_whitespace();
    let ticks: u32 = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u32>().expect("a number"))
        .sum();
    f64::from(ticks) / 100.0
}

#[expect(clippy::print_stdout, reason = "an example's output")]
fn say(text: &str) {
    println!("{text}");
}
