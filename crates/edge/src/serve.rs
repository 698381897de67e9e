//! Listening, and ending.
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cut::Ticket;
use crate::door::Door;
use crate::edge::Edge;
use crate::pace::{Carried, Overheard, Pace};

/// Connections of one listener at once; more wait in the kernel's queue. Each may need a second descriptor for its
/// line into a sandbox.
const CONNECTIONS_MAX: usize = 16_384;
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
/// How often an HTTP/2 client is asked whether it is still there: a stream that is quiet tells nothing of a client
/// that vanished.
const PING_EVERY: Duration = Duration::from_secs(60);
/// How long the answer may take.
const PONG_WITHIN: Duration = Duration::from_secs(30);

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
        self.serve(stream).await;
    }

    async fn secured(self, stream: TcpStream, tls: TlsAcceptor) {
        match tokio::time::timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let door = &self.door;
        door.edge.meters.connections.increment(1.0);
        let pace = Pace::new();
        let mut builder = Builder::new(TokioExecutor::new());
        // Without a timer of its own: the pace knows more than when a head began.
        builder.http1().title_case_headers(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN);
        let service = service_fn(|request| {
            let (door, under_way) = (Arc::clone(door), pace.begin());
            async move {
                let answered = door.handle(request).await;
                answered.map(|response| response.map(|body| Carried { body, under_way }))
            }
        });
        let io = TokioIo::new(Overheard {
            stream,
            pace: Arc::clone(&pace),
        });
        let connection = builder.serve_connection_with_upgrades(io, service);
        let (mut connection, mut alarm) = (std::pin::pin!(connection), std::pin::pin!(Pace::alarm()));
        let ended = std::future::poll_fn(|cx| {
            if self.ticket.poll_cut(cx).is_ready() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(ended));
            }
            pace.poll_over(alarm.as_mut(), cx).map(|()| None)
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
