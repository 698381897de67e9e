//! One listener for whatever a process offers to its cluster.
//!
//! ```text
//! accept ──▶ handshake: whose certificate ──▶ h2: each call: protocol, role, room ──▶ its service
//!                                        └──▶ a dial: see `guest`
//! ```
//!
//! Who is slow is cut: a handshake has [`HANDSHAKE_MAX`], a message its call's time, a silent connection is pinged. When `stop` comes
//! nothing new is taken, calls that are under way end, and what is left after the grace is cut.
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use connectrpc::{ConnectError, ConnectRpcService, DeadlinePolicy, Limits, Router};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use model::{Kind, NodeId};
use ports::{Guest, Node, VolumeFiles, Wake};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use tracing::Instrument as _;
use wire::node as proto;
use wire::node::{NodeExt as _, VolumesExt as _, WakeExt as _};

use crate::access;
use crate::call::{ANSWER_BYTES_MAX, with_detail};
use crate::channel::{ALPN_H2, CONNECTION_WINDOW, PING_EVERY, PING_MAX, RETIRED_BEFORE, STREAM_WINDOW, told};
use crate::convert::span_nanos;
use crate::guest::{ALPN_DIAL, GuestService};
use crate::identity::{Certified, Role};
use crate::node::NodeService;
use crate::protocol::{HEADER, PROTOCOL, Protocol};
use crate::status::code;
use crate::tls::Tls;
use crate::volumes::VolumesService;
use crate::wake::WakeService;

/// A peer of the same cluster takes milliseconds.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// What headers of a call may hold.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// What a message may hold. An order has the environment of a sandbox, and a recipe all steps of a build.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Calls of one connection.
const CALLS_MAX: u32 = 4096;
/// A call that says no time has this one.
const TIME_MAX: Duration = Duration::from_secs(60);
/// When it may be worth another try where there is no room.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// How much a process takes at a time. What is more is refused at once, with when to try again.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections, of all peers together.
    pub connections: usize,
    /// Sandboxes being started.
    pub starts: usize,
    /// Pauses and copies.
    pub pauses: usize,
    /// Builds.
    pub builds: usize,
    /// Bytes on their way: exports, files, builds to and from the blobs.
    pub moves: usize,
    /// Listeners to events.
    pub listeners: usize,
    /// Sandboxes being woken.
    pub wakes: usize,
    /// Everything else.
    pub words: usize,
    /// Streams into sandboxes.
    pub dials: usize,
    /// How long what is under way may take when the process stops.
    pub grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 16_384,
            starts: 1024,
            pauses: 512,
            builds: 64,
            moves: 64,
            listeners: 64,
            wakes: 2048,
            words: 2048,
            dials: 8192,
            grace: Duration::from_secs(10),
        }
    }
}

/// What a process offers. What it does not is refused by name.
#[derive(Clone, Default)]
pub struct Services {
    node: Option<Arc<dyn Node>>,
    guest: Option<Arc<dyn Guest>>,
    wake: Option<Arc<dyn Wake>>,
    volumes: Option<Arc<dyn VolumeFiles>>,
    bounds: Bounds,
}

impl Services {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// And a node.
    #[must_use]
    pub fn node(mut self, node: Arc<dyn Node>) -> Self {
        self.node = Some(node);
        self
    }

    /// And streams into the sandboxes of this node: the one that is offered, else the one that the certificate names.
    #[must_use]
    pub fn guest(mut self, guest: Arc<dyn Guest>) -> Self {
        self.guest = Some(guest);
        self
    }

    /// And resume on traffic.
    #[must_use]
    pub fn wake(mut self, wake: Arc<dyn Wake>) -> Self {
        self.wake = Some(wake);
        self
    }

    /// And the files in a node's volumes.
    #[must_use]
    pub fn volumes(mut self, volumes: Arc<dyn VolumeFiles>) -> Self {
        self.volumes = Some(volumes);
        self
    }

    /// Within these bounds.
    #[must_use]
    pub fn bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    fn router(&self, stop: &CancellationToken) -> Router {
        let mut router = Router::new();
        if let Some(node) = &self.node {
            router = Arc::new(NodeService::new(Arc::clone(node), stop.clone()))
                .register(router)
                .with_route_limits("atoll.rpc.v1.Node/SweepStowed", limits(ANSWER_BYTES_MAX));
        }
        if let Some(wake) = &self.wake {
            router = Arc::new(WakeService(Arc::clone(wake))).register(router);
        }
        if let Some(volumes) = &self.volumes {
            router = Arc::new(VolumesService(Arc::clone(volumes))).register(router);
        }
        router
    }
}

/// What a message of a request may hold, and a request that is one message.
fn limits(bytes_max: usize) -> Limits {
    Limits::default()
        .with_max_message_size(bytes_max)
        .with_max_request_body_size(bytes_max)
        .with_element_memory_limit(bytes_max * 2)
}

/// Rooms for calls, one for each kind.
struct Rooms {
    starts: Arc<Semaphore>,
    pauses: Arc<Semaphore>,
    builds: Arc<Semaphore>,
    moves: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    wakes: Arc<Semaphore>,
    words: Arc<Semaphore>,
}

impl Rooms {
    fn new(bounds: Bounds) -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        Self {
            starts: room(bounds.starts),
            pauses: room(bounds.pauses),
            builds: room(bounds.builds),
            moves: room(bounds.moves),
            listeners: room(bounds.listeners),
            wakes: room(bounds.wakes),
            words: room(bounds.words),
        }
    }

    fn of(&self, method: &str) -> &Arc<Semaphore> {
        match method.strip_prefix("atoll.rpc.v1.").unwrap_or_default() {
            "Node/Start" => &self.starts,
            "Node/Pause" | "Node/Checkpoint" => &self.pauses,
            "Node/Build" => &self.builds,
            "Node/StowBuild" | "Node/FetchBuild" | "Node/SweepStowed" | "Node/Changes" | "Node/Export"
            | "Volumes/Read" | "Volumes/Write" => &self.moves,
            "Node/Events" => &self.listeners,
            "Wake/Wake" => &self.wakes,
            _ => &self.words,
        }
    }
}

/// Serves a listener until `stop`, and then until what is under way has ended, or the grace is over.
///
/// # Errors
/// Where the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    tls: Tls,
    services: Services,
    stop: CancellationToken,
) -> io::Result<()> {
    let bounds = services.bounds;
    // Ends the tasks of the services, also where this is given up.
    let stop = stop.child_token();
    let _stopped = stop.clone().drop_guard();
    let router = services.router(&stop);
    let deadlines = DeadlinePolicy::new().with_default_timeout(TIME_MAX);
    let front = Front {
        rpc: ConnectRpcService::new(router)
            .with_limits(limits(MESSAGE_BYTES_MAX))
            .with_deadline_policy(deadlines),
        rooms: Arc::new(Rooms::new(bounds)),
    };
    let node = services.node.as_ref().map(|node| node.id());
    let node = node.or_else(|| tls.identity().node());
    let dials = services.guest.as_ref().map(|guest| GuestService {
        // Of no node nobody has an execution.
        node: node.unwrap_or_else(NodeId::random),
        guest: Arc::clone(guest),
        room: Arc::new(Semaphore::new(bounds.dials)),
    });
    let acceptor = TlsAcceptor::from(match &dials {
        Some(_) => tls.server(&[ALPN_H2, ALPN_DIAL]),
        None => tls.server(&[ALPN_H2]),
    });
    let places = Arc::new(Semaphore::new(bounds.connections));
    let (connections, cut) = (TaskTracker::new(), CancellationToken::new());
    // What is left is cut with this, however it ends.
    let _cut = cut.clone().drop_guard();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("it is never closed"),
        };
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_passing(&error) => {
                    tracing::warn!(error = crate::causes(&error), "a connection of a peer was not taken");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Err(error) => return Err(error),
            },
        };
        let connection = Connection {
            front: front.clone(),
            dials: dials.clone(),
            own_end: tls.until(),
            peer,
            stop: stop.clone(),
            grace: bounds.grace,
        };
        let (acceptor, cut) = (acceptor.clone(), cut.clone());
        connections.spawn(async move {
            let _place = place;
            cut.run_until_cancelled_owned(connection.serve(acceptor, stream))
                .await;
        });
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(bounds.grace, connections.wait()).await;
    cut.cancel();
    connections.wait().await;
    Ok(())
}

/// Whether the next connection may be taken.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    let raw = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    let is_full = matches!(
        raw,
        Some(
            rustix::io::Errno::MFILE
                | rustix::io::Errno::NFILE
                | rustix::io::Errno::NOBUFS
                | rustix::io::Errno::NOMEM
        )
    );
    is_full
        || matches!(
            error.kind(),
            K::ConnectionAborted | K::ConnectionReset | K::Interrupted
        )
}

struct Connection {
    front: Front,
    dials: Option<GuestService>,
    /// When the certificate ends that this process shows.
    own_end: SystemTime,
    peer: SocketAddr,
    stop: CancellationToken,
    grace: Duration,
}

impl Connection {
    async fn serve(self, acceptor: TlsAcceptor, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let accepted = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await;
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let error = told(error);
                metrics::counter!("atoll_rpc_refused_total", "what" => "handshake").increment(1);
                tracing::warn!(peer = %self.peer, error = crate::causes(&error), "a peer is refused");
                return;
            }
            Err(_) => {
                metrics::counter!("atoll_rpc_refused_total", "what" => "handshake").increment(1);
                tracing::warn!(peer = %self.peer, "a peer is refused: its handshake took too long");
                return;
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().unwrap_or_default().first();
        let Some(Ok(mut certified)) = certificate.map(|der| Certified::of(der)) else {
            tracing::warn!(peer = %self.peer, "a peer is refused: it has no certificate");
            return;
        };
        certified.until = certified.until.min(self.own_end);
        let left = certified
            .until
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        let identity = certified.identity.to_string();
        let is_dial = stream.get_ref().1.alpn_protocol() == Some(ALPN_DIAL);
        let served = async {
            match &self.dials {
                Some(dials) if is_dial => {
                    if let Err(error) = dials.carry(stream, &certified, &self.stop).await {
                        tracing::debug!(peer = %self.peer, error = crate::causes(&error), "a stream broke off");
                    }
                }
                _ => self.calls(stream, Arc::new(certified)).await,
            }
        };
        tokio::select! {
            () = served => {}
            () = tokio::time::sleep(left) => {
                tracing::info!(peer = identity, "a connection ends with the certificate that it was made with");
            }
        }
    }

    async fn calls(&self, stream: TlsStream<TcpStream>, peer: Arc<Certified>) {
        let until = peer.until;
        let front = self.front.clone();
        let service = service_fn(move |request| front.clone().answer(request, Arc::clone(&peer)));
        let connection = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(CALLS_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %self.peer, error = crate::causes(&error), "the connection of a peer is lost");
                }
                return;
            }
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(left.saturating_sub(RETIRED_BEFORE)) => {}
        }
        // It takes no new calls; those that are under way have what is left.
        connection.as_mut().graceful_shutdown();
        let stopped = async {
            self.stop.cancelled().await;
            tokio::time::sleep(self.grace).await;
        };
        tokio::select! {
            _ = connection => {}
            () = stopped => {}
        }
    }
}

/// What stands before all services.
#[derive(Clone)]
struct Front {
    rpc: ConnectRpcService<Router>,
    rooms: Arc<Rooms>,
}

/// Why a call is not let in.
enum NotLetIn {
    Protocol(crate::protocol::Foreign),
    Unknown,
    Role(Role),
    Calls,
}

impl NotLetIn {
    fn told(self, method: &str) -> ConnectError {
        use proto::refusal::Reason as R;
        let (reason, kind, text) = match self {
            NotLetIn::Protocol(foreign) => (R::REASON_PROTOCOL, Kind::Unsupported, foreign.to_string()),
            NotLetIn::Unknown => (
                R::REASON_SERVICE,
                Kind::Unsupported,
                format!("this process knows nothing of {method}"),
            ),
            NotLetIn::Role(role) => (
                R::REASON_ROLE,
                Kind::Forbidden,
                format!("the role {role} may not call {method}"),
            ),
            NotLetIn::Calls => (
                R::REASON_CALLS,
                Kind::Unavailable,
                format!("too many calls of {method} are under way"),
            ),
        };
        let refusal = proto::Refusal {
            reason: reason.into(),
            text: text.clone(),
            retry_after: (kind == Kind::Unavailable).then(|| span_nanos(RETRY_AFTER)),
            ..Default::default()
        };
        with_detail(code(kind), text, &refusal)
    }
}

impl Front {
    async fn answer(
        mut self,
        request: Request<Incoming>,
        peer: Arc<Certified>,
    ) -> Result<Response<Answer>, Infallible> {
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let mut response = match self.let_in(&method, request.headers(), &peer) {
            Ok(place) => {
                let span = tracing::debug_span!("rpc", method, peer = %peer.identity);
                let parent = request.headers().get(ports::trace::TRACEPARENT);
                ports::trace::adopt(&span, parent.and_then(|parent| parent.to_str().ok()));
                let Ok(response) = self.rpc.call(request).instrument(span).await;
                response.map(|body| Answer {
                    body,
                    _place: Some(place),
                })
            }
            Err(why) => {
                let what = match &why {
                    NotLetIn::Protocol(_) => "protocol",
                    NotLetIn::Unknown => "method",
                    NotLetIn::Role(_) => "role",
                    NotLetIn::Calls => "calls",
                };
                metrics::counter!("atoll_rpc_refused_total", "what" => what).increment(1);
                let error = why.told(&method);
                if what != "calls" {
                    tracing::warn!(peer = %peer.identity, error = crate::causes(&error), "a call is refused");
                }
                let response = error.into_http_response(request.headers());
                response.map(|body| Answer { body, _place: None })
            }
        };
        response.headers_mut().insert(HEADER, PROTOCOL.value());
        Ok(response)
    }

    fn let_in(
        &self,
        method: &str,
        headers: &HeaderMap,
        peer: &Certified,
    ) -> Result<OwnedSemaphorePermit, NotLetIn> {
        Protocol::check(headers).map_err(NotLetIn::Protocol)?;
        if !access::is_known(method) {
            return Err(NotLetIn::Unknown);
        }
        let role = peer.identity.role();
        if !access::may(role, method) {
            return Err(NotLetIn::Role(role));
        }
        let room = Arc::clone(self.rooms.of(method));
        room.try_acquire_owned().map_err(|_| NotLetIn::Calls)
    }
}

/// An answer, which has its place until it is read.
struct Answer {
    body: connectrpc::ConnectRpcBody,
    _place: Option<OwnedSemaphorePermit>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
