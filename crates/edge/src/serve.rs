//! Listening, and ending.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cut::Ticket;
use crate::door::Door;
use crate::edge::Edge;

/// Connections of one listener at once; more wait in the kernel's queue. Each may need a second descriptor for its
/// line into a sandbox.
const CONNECTIONS_MAX: usize = 16_384;
/// How long a connection may wait for its next request (contract 1.4). No request and no response has a deadline.
const IDLE: Duration = Duration::from_secs(620);
/// A TLS handshake is three packets.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long requests may go on once the listener closes; what is left then is cut.
const GRACE: Duration = Duration::from_secs(5);
/// Between two tries of a listener that is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 256;
/// What an HTTP/2 client may send ahead, for one stream and for all: a fast upload at 10 ms needs this much.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

impl Edge {
    /// Serves HTTP/1.1 and HTTP/2 with prior knowledge, in clear text, until `shutdown`; then within five seconds.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let door = Arc::new(Door::new(self, None));
        accept(&door, listener, None, shutdown).await;
    }

    /// Serves HTTP/1.1 and HTTP/2 over TLS, like [`Edge::serve`]. Requests for `api.<domain>` go to `api`.
    pub async fn serve_tls(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        api: Option<SocketAddr>,
        shutdown: CancellationToken,
    ) {
        let door = Arc::new(Door::new(self, api));
        accept(&door, listener, Some(TlsAcceptor::from(tls)), shutdown).await;
    }
}

impl Door {
    fn new(edge: Arc<Edge>, api: Option<SocketAddr>) -> Self {
        Self {
            edge,
            api,
            tasks: TaskTracker::new(),
            closing: Arc::default(),
        }
    }
}

async fn accept(
    door: &Arc<Door>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                // Failing that, small answers are slower, not wrong.
                let _ = stream.set_nodelay(true);
                let Some(ticket) = door.closing.enter() else { break };
                let guest = Guest {
                    door: Arc::clone(door),
                    ticket,
                    _place: place,
                };
                match tls.clone() {
                    None => door.tasks.spawn(guest.clear(stream)),
                    Some(tls) => door.tasks.spawn(guest.secured(stream, tls)),
                };
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    door.closing.fire();
    door.tasks.close();
    if tokio::time::timeout(GRACE + Duration::from_secs(1), door.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(left = door.tasks.len(), "connections outlived the edge's grace");
    }
}

/// A client that was let in.
struct Guest {
    door: Arc<Door>,
    ticket: Ticket,
    _place: OwnedSemaphorePermit,
}

impl Guest {
    async fn clear(self, stream: TcpStream) {
        // A client that says nothing at all is not kept for ever.
        if let Ok(Ok(())) = tokio::time::timeout(IDLE, stream.readable()).await {
            self.serve(TokioIo::new(stream)).await;
        }
    }

    async fn secured(self, stream: TcpStream, tls: TlsAcceptor) {
        match tokio::time::timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(TokioIo::new(stream)).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn serve(self, io: impl Read + Write + Send + Unpin + 'static) {
        let door = &self.door;
        door.edge.meters.connections.increment(1.0);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .title_case_headers(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let service = service_fn(|request| Arc::clone(door).handle(request));
        let connection = builder.serve_connection_with_upgrades(io, service);
        let mut connection = std::pin::pin!(connection);
        let ended = std::future::poll_fn(|cx| {
            if self.ticket.poll_cut(cx).is_ready() {
                return std::task::Poll::Ready(None);
            }
            connection.as_mut().poll(cx).map(Some)
        })
        .await;
        let ended = match ended {
            Some(ended) => Ok(ended),
            None => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(GRACE, connection).await
            }
        };
        if let Ok(Err(error)) = ended {
            tracing::debug!(%error, "a client's connection broke");
        }
        door.edge.meters.connections.decrement(1.0);
    }
}
