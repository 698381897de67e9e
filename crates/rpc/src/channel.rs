//! Kept connections to one peer.
//!
//! Two HTTP/2 connections, made when they are needed and made again when they are gone, or near the end of a certificate. Pings
//! find a dead peer within [`PING_EVERY`] + [`PING_MAX`]. Nothing is repeated here but what certainly was not sent: see
//! [`crate::call`].
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::breaker::{Breaker, Open};
use crate::identity::Certified;
use crate::protocol::{Foreign, HEADER, PROTOCOL, Protocol};
use crate::tls::{Expected, PeerRefused, Tls};

/// HTTP/2, as it is named in handshakes.
pub(crate) const ALPN_H2: &[u8] = b"h2";
/// A machine of the same cluster answers in milliseconds; one that is gone does not at all.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A busy peer takes some tens of milliseconds.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// A connection that is not used is asked after this time.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(2);
/// And is gone if it has not answered after this one.
pub(crate) const PING_MAX: Duration = Duration::from_secs(3);
/// What one stream may have under way: a fast one is not slowed by 10 ms of way at 1 Gbit/s.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// What all streams of a connection may have under way together.
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;
/// What headers of an answer may hold.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// More than one core works at a time.
const LANES: usize = 2;
/// New calls take a new connection so long before a certificate ends.
pub(crate) const RETIRED_BEFORE: Duration = Duration::from_secs(30);

/// Why a call came to nothing before it was answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallFailed {
    /// Nobody asks the peer now. Nothing was sent.
    #[error("{0} is not asked: {1}")]
    Open(Arc<str>, Open),
    /// There is no connection. Nothing was sent.
    #[error("{address} cannot be reached")]
    Unreached {
        /// Who.
        address: Arc<str>,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The peer speaks another protocol. It may have understood, which is not known.
    #[error("{0} cannot be talked with: {1}")]
    Foreign(Arc<str>, Foreign),
    /// The connection was lost: whether the call was carried out is not known.
    #[error("the connection to {address} was lost")]
    Lost {
        /// Who.
        address: Arc<str>,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

/// The way to one peer.
#[derive(Clone)]
pub(crate) struct Channel(Arc<Inner>);

struct Inner {
    dialer: Dialer,
    lanes: [Mutex<Option<Lane>>; LANES],
    next: AtomicUsize,
    breaker: Breaker,
}

type Lane = Shared<futures_util::future::BoxFuture<'static, Result<Live, Arc<io::Error>>>>;

#[derive(Clone)]
struct Live {
    send: SendRequest<ClientBody>,
    retired_at: SystemTime,
}

impl Live {
    fn is_good(&self) -> bool {
        !self.send.is_closed() && SystemTime::now() < self.retired_at
    }
}

/// Makes connections to one peer, and to no other.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) address: Arc<str>,
    tls: Tls,
    connector: TlsConnector,
}

impl Dialer {
    pub(crate) fn new(address: &str, expected: Expected, alpn: &[u8], tls: &Tls) -> Self {
        Self {
            address: address.into(),
            tls: tls.clone(),
            connector: tls.client(expected, alpn).into(),
        }
    }

    /// A connection, and when it must not be used any more.
    pub(crate) async fn dial(&self) -> io::Result<(TlsStream<TcpStream>, SystemTime)> {
        let late = |what: &'static str| move |_| io::Error::new(io::ErrorKind::TimedOut, what);
        let stream = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&*self.address))
            .await
            .map_err(late("nobody answered"))??;
        stream.set_nodelay(true)?;
        // Whom a certificate must be of is told by `Expected`; this name is in no certificate.
        let name = ServerName::try_from("peer.atoll.internal").expect("it is a name");
        let own_end = self.tls.until();
        let stream = tokio::time::timeout(HANDSHAKE_MAX, self.connector.connect(name, stream))
            .await
            .map_err(late("the handshake took too long"))?
            .map_err(told)?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = certificates.first().map(|der| Certified::of(der));
        let peer = peer.and_then(Result::ok);
        let peer = peer.ok_or_else(|| io::Error::other("the peer showed no certificate"))?;
        Ok((stream, peer.until.min(own_end)))
    }
}

impl Channel {
    pub(crate) fn new(address: &str, expected: Expected, tls: &Tls) -> Self {
        Self(Arc::new(Inner {
            dialer: Dialer::new(address, expected, ALPN_H2, tls),
            lanes: Default::default(),
            next: AtomicUsize::new(0),
            breaker: Breaker::default(),
        }))
    }

    /// A connection that is there, or a new one. All who ask at the same time wait for the same.
    async fn live(&self, index: usize) -> Result<Live, Arc<io::Error>> {
        let lane = {
            let mut lane = self.0.lanes[index].lock().unwrap_or_else(PoisonError::into_inner);
            let is_good = |lane: &Lane| match lane.peek() {
                None => true,
                Some(Ok(live)) => live.is_good(),
                Some(Err(_)) => false,
            };
            match &*lane {
                Some(lane) if is_good(lane) => lane.clone(),
                _ => {
                    let dialer = self.0.dialer.clone();
                    let fresh = async move { open(dialer).await.map_err(Arc::new) }
                        .boxed()
                        .shared();
                    lane.insert(fresh).clone()
                }
            }
        };
        lane.await
    }

    async fn carry(&self, mut request: Request<ClientBody>) -> Result<Response<Incoming>, CallFailed> {
        let address = &self.0.dialer.address;
        let pass = self.0.breaker.enter();
        let pass = pass.map_err(|open| CallFailed::Open(Arc::clone(address), open))?;
        let index = self.0.next.fetch_add(1, Ordering::Relaxed) % LANES;
        request.headers_mut().insert(HEADER, PROTOCOL.value());
        if let Some(parent) = ports::trace::traceparent(&tracing::Span::current())
            && let Ok(parent) = parent.try_into()
        {
            request.headers_mut().insert(ports::trace::TRACEPARENT, parent);
        }
        // A connection that has just ended is not known to have: what it did not take another does.
        for _ in 0..=LANES {
            let mut live = match self.live(index).await {
                Ok(live) => live,
                Err(source) => {
                    pass.failed();
                    return Err(CallFailed::Unreached {
                        address: Arc::clone(address),
                        source,
                    });
                }
            };
            match live.send.try_send_request(request).await {
                Ok(response) => {
                    pass.answered();
                    return match Protocol::check(response.headers()) {
                        Ok(_) => Ok(response),
                        Err(foreign) => Err(CallFailed::Foreign(Arc::clone(address), foreign)),
                    };
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        pass.failed();
                        return Err(self.lost(error.into_error()));
                    }
                },
            }
        }
        pass.failed();
        Err(CallFailed::Unreached {
            address: Arc::clone(address),
            source: Arc::new(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "its connections end as soon as they are made",
            )),
        })
    }

    fn lost(&self, error: hyper::Error) -> CallFailed {
        let address = Arc::clone(&self.0.dialer.address);
        // Who is refused in the handshake learns it after it: nothing of the call was read.
        match refused_by_peer(&error) {
            Some(alert) => CallFailed::Unreached {
                address,
                source: Arc::new(io::Error::new(io::ErrorKind::PermissionDenied, alert)),
            },
            None => CallFailed::Lost {
                address,
                source: Arc::new(error),
            },
        }
    }
}

/// A peer that does not take the certificate that it was shown.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the peer refuses the certificate of this process")]
pub struct RefusedByPeer(#[source] rustls::Error);

pub(crate) fn refused_by_peer(error: &(dyn std::error::Error + 'static)) -> Option<RefusedByPeer> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let alert = inner
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .or_else(|| error.downcast_ref::<rustls::Error>());
        if let Some(alert @ rustls::Error::AlertReceived(_)) = alert {
            return Some(RefusedByPeer(alert.clone()));
        }
        next = error.source();
    }
    None
}

impl ClientTransport for Channel {
    type ResponseBody = Incoming;
    type Error = CallFailed;

    fn send(
        &self,
        request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<Incoming>, CallFailed>> {
        let channel = self.clone();
        Box::pin(async move { channel.carry(request).await })
    }
}

async fn open(dialer: Dialer) -> io::Result<Live> {
    let begun = Instant::now();
    let opened = open_now(&dialer).await;
    match &opened {
        Ok(_) => tracing::debug!(address = %dialer.address, took = ?begun.elapsed(), "connected to a peer"),
        Err(error) => {
            tracing::warn!(address = %dialer.address, error = crate::causes(error), "a peer cannot be reached");
        }
    }
    opened
}

/// A failed handshake, with this process's own reason for it where it has one.
pub(crate) fn told(error: io::Error) -> io::Error {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) = inner
        && let Some(refused) = other.0.downcast_ref::<PeerRefused>()
    {
        return io::Error::new(io::ErrorKind::PermissionDenied, refused.clone());
    }
    error
}

/// A connection on which the server has spoken: it has seen the client's certificate, and takes it.
struct Begun {
    first: Option<u8>,
    stream: TlsStream<TcpStream>,
}

impl Begun {
    /// Servers of HTTP/2 speak first. One that refuses the client says so in the place of it, and nothing was sent by then.
    async fn wait(mut stream: TlsStream<TcpStream>) -> io::Result<Self> {
        let mut first = [0];
        let read = tokio::time::timeout(HANDSHAKE_MAX, stream.read_exact(&mut first)).await;
        match read {
            Ok(Ok(_)) => Ok(Self {
                first: Some(first[0]),
                stream,
            }),
            Ok(Err(error)) => Err(match refused_by_peer(&error) {
                Some(refused) => io::Error::new(io::ErrorKind::PermissionDenied, refused),
                None => error,
            }),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the peer said nothing")),
        }
    }
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn open_now(dialer: &Dialer) -> io::Result<Live> {
    let (stream, until) = dialer.dial().await?;
    let stream = Begun::wait(stream).await?;
    let handshake = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let (send, connection) = handshake.map_err(io::Error::other)?;
    let address = Arc::clone(&dialer.address);
    // It ends with its last sender, with the peer, or with a certificate.
    tokio::spawn(async move {
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    match refused_by_peer(&error) {
                        Some(refused) => tracing::warn!(%address, error = crate::causes(&refused), "a peer refuses this process"),
                        None => tracing::debug!(%address, error = crate::causes(&error), "the connection to a peer is lost"),
                    }
                }
            }
            () = tokio::time::sleep(left) => {
                tracing::info!(%address, "a connection ends with the certificate that it was made with");
            }
        }
    });
    Ok(Live {
        send,
        retired_at: until - RETIRED_BEFORE,
    })
}
