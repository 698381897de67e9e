//! An edge with everything around it in memory.
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use edge::{Edge, EdgeParts};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use model::{ExecutionId, NodeId, SandboxId, Seat, Secret};
use ports::catalog::Memory;
use ports::{Catalog, DialError, Guest, Presented, Route, Stream, Wake, WakeRefused};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub(crate) struct House {
    pub(crate) edge: Arc<Edge>,
    pub(crate) address: SocketAddr,
    pub(crate) catalog: Arc<Memory>,
    pub(crate) guest: Arc<FakeGuest>,
    pub(crate) wake: Arc<FakeWake>,
    pub(crate) shutdown: CancellationToken,
    _end: DropGuard,
}

impl House {
    pub(crate) async fn open() -> Self {
        let catalog = Arc::new(Memory::default());
        let guest = Arc::new(FakeGuest::default());
        let wake = Arc::new(FakeWake::default());
        let edge = Edge::new(EdgeParts {
            catalog: catalog.clone(),
            guest: guest.clone(),
            wake: wake.clone(),
            domain: "atoll.localhost".to_owned(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(edge.clone().serve(listener, shutdown.clone()));
        Self {
            edge,
            address,
            catalog,
            guest,
            wake,
            _end: shutdown.clone().drop_guard(),
            shutdown,
        }
    }

    /// A running sandbox with nothing in it.
    pub(crate) async fn sandbox(&self) -> Arc<Route> {
        self.sandbox_with(|_| {}).await
    }

    pub(crate) async fn sandbox_with(&self, change: impl FnOnce(&mut Route)) -> Arc<Route> {
        let mut route = Route {
            sandbox: SandboxId::random(),
            seat: Seat {
                node: NodeId::random(),
                execution: ExecutionId::random(),
            },
            version: 1,
            envd_token: Some(Secret::new("envd-token".to_owned())),
            traffic_token: None,
            mask_host: None,
        };
        change(&mut route);
        self.guest.alive.lock().unwrap().insert(route.seat.execution);
        self.catalog.publish(route.clone()).await.unwrap();
        Arc::new(route)
    }

    /// The execution goes on, and has no route.
    pub(crate) async fn withdraw(&self, route: &Route) {
        self.catalog.withdraw(route.sandbox, route.seat).await.unwrap();
    }

    /// What a kill does: the route first, then the execution.
    pub(crate) async fn kill(&self, route: &Route) {
        self.withdraw(route).await;
        self.guest.alive.lock().unwrap().remove(&route.seat.execution);
    }
}

/// Sandboxes whose ports are servers on loopback, the same for all.
#[derive(Default)]
pub(crate) struct FakeGuest {
    pub(crate) alive: Mutex<HashSet<ExecutionId>>,
    ports: Mutex<HashMap<u16, SocketAddr>>,
    dials: AtomicUsize,
}

impl FakeGuest {
    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    pub(crate) fn address_of(&self, port: u16) -> SocketAddr {
        self.ports.lock().unwrap()[&port]
    }

    /// Serves HTTP/1.1 on a port of all sandboxes.
    pub(crate) async fn serve<F>(
        &self,
        port: u16,
        service: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        self.raw(port, move |stream| {
            let service = service.clone();
            async move {
                let service = service_fn(move |request| {
                    let answer = service(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        })
        .await;
    }

    /// Serves anything on a port of all sandboxes.
    pub(crate) async fn raw<F>(&self, port: u16, service: impl Fn(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.ports
            .lock()
            .unwrap()
            .insert(port, listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(service(stream));
            }
        });
    }

    /// Serves an echo of the request's head: its method, path and headers as they arrived, and its body's length.
    pub(crate) async fn echo(&self, port: u16) {
        self.serve(port, |request| async move {
            let mut text = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                text += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes().len());
            text += &format!("\n{}", body.unwrap_or_default());
            Response::new(full(text))
        })
        .await;
    }
}

#[async_trait]
impl Guest for FakeGuest {
    async fn dial(&self, route: &Route, port: u16) -> Result<Box<dyn Stream>, DialError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        if !self.alive.lock().unwrap().contains(&route.seat.execution) {
            return Err(DialError::Gone);
        }
        let address = self.ports.lock().unwrap().get(&port).copied();
        let address = address.ok_or(DialError::Closed(port))?;
        match TcpStream::connect(address).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(source) => Err(DialError::Io { port, source }),
        }
    }
}

/// Wakes what it is told to, as it is told to.
#[derive(Default)]
pub(crate) struct FakeWake {
    pub(crate) asked: Mutex<Vec<(SandboxId, Presented)>>,
    pub(crate) answer: Mutex<Option<WakeRefused>>,
    pub(crate) publishes: Mutex<Option<(Arc<Memory>, Route)>>,
}

#[async_trait]
impl Wake for FakeWake {
    async fn wake(&self, sandbox: SandboxId, presented: Presented) -> Result<(), WakeRefused> {
        self.asked.lock().unwrap().push((sandbox, presented));
        let publishes = self.publishes.lock().unwrap().take();
        if let Some((catalog, route)) = publishes {
            catalog.publish(route).await.unwrap();
            return Ok(());
        }
        Err(self
            .answer
            .lock()
            .unwrap()
            .clone()
            .unwrap_or(WakeRefused::NotFound))
    }
}

/// Reads one request head off a raw connection.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

pub(crate) async fn say(stream: &mut TcpStream, text: &str) {
    let _ = stream.write_all(text.as_bytes()).await;
}
