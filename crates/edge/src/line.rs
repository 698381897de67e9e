//! One HTTP/1.1 connection into a sandbox, driven by whoever uses it.
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use ports::Stream;
use tokio_util::task::AbortOnDropHandle;

use crate::cut::Ticket;

pub(crate) type Io = TokioIo<Box<dyn Stream>>;

/// A connection without a task of its own: its bytes move while the request or the response that uses it is
/// polled, in the task of the client's connection. That spares two wake-ups across tasks for each request.
pub(crate) struct Line {
    sender: SendRequest<Upload>,
    /// `None` once the connection is over.
    connection: Option<Connection<Io, Upload>>,
    ticket: Ticket,
    port: u16,
}

/// Why there is no response.
pub(crate) enum SendError {
    /// The execution was withdrawn.
    Cut,
    /// The connection broke, and the request with it.
    Broken(hyper::Error),
    /// The connection broke before the request was touched.
    Unsent(Box<Request<Upload>>),
}

impl Line {
    pub(crate) async fn open(stream: Box<dyn Stream>, ticket: Ticket, port: u16) -> hyper::Result<Box<Self>> {
        // Title case is what most proxies and clients send; services that look at raw names expect it.
        let (sender, connection) = Builder::new()
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Box::new(Self {
            sender,
            connection: Some(connection),
            ticket,
            port,
        }))
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) const fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Moves bytes both ways, as far as they go.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    /// Whether another request may be sent.
    pub(crate) fn poll_free(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of its response. `impatient` is called each time that
    /// [`IMPATIENCE`] has passed in vain.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
        impatient: Option<impl Fn()>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut response = pin!(self.sender.try_send_request(request));
        let mut patience = impatient.map(|call| {
            let first = tokio::time::Instant::now() + IMPATIENCE;
            (tokio::time::interval_at(first, IMPATIENCE), call)
        });
        std::future::poll_fn(|cx| {
            if self.ticket.poll_cut(cx).is_ready() {
                return Poll::Ready(Err(SendError::Cut));
            }
            if let Some((interval, call)) = &mut patience {
                while interval.poll_tick(cx).is_ready() {
                    call();
                }
            }
            if let Some(connection) = &mut self.connection
                && Pin::new(connection).poll(cx).is_ready()
            {
                self.connection = None;
            }
            // The response comes out of the connection just polled: nobody else needs to wake it.
            let mut own = Context::from_waker(Waker::noop());
            response
                .as_mut()
                .poll(&mut own)
                .map_err(|mut failed| match failed.take_message() {
                    Some(request) => SendError::Unsent(Box::new(request)),
                    None => SendError::Broken(failed.into_error()),
                })
        })
        .await
    }

    /// Lets the connection go on in a task of its own: a response has begun while its request still comes in, and
    /// neither may wait for the other. The task ends with the returned handle.
    pub(crate) fn into_task(self: Box<Self>) -> (Option<Detached>, Ticket) {
        let detached = self.connection.map(Detached::spawn);
        (detached, self.ticket)
    }

    /// Sends a request after which the connection may speak another protocol.
    pub(crate) fn into_upgradeable(self: Box<Self>, request: Request<Upload>) -> Option<Upgrading> {
        let Self {
            mut sender,
            connection,
            ticket,
            ..
        } = *self;
        let task = Detached::spawn(connection?.with_upgrades());
        let response = sender.send_request(request);
        Some((Box::pin(response), task, ticket))
    }
}

/// A request for another protocol: its response, what drives the connection, and its place among the cuts.
pub(crate) type Upgrading = (
    Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>,
    Detached,
    Ticket,
);

/// A fresh connection that gets no answer for so long may be waiting for a service that handles one connection at
/// a time, and waits itself on one that we keep idle.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(200);

/// The task of a connection whose request and response run side by side. Ends when this is dropped.
pub(crate) struct Detached(#[expect(dead_code, reason = "held for its drop")] AbortOnDropHandle<()>);

impl Detached {
    fn spawn(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        Self(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection into a sandbox broke");
            }
        })))
    }
}

/// A request's body on its way into the sandbox.
pub(crate) enum Upload {
    /// None at all.
    Empty,
    /// The client's, and the flag to raise when it has been sent or dropped.
    Body(Incoming, #[expect(dead_code, reason = "held for its drop")] Sent),
}

/// Raised when an upload has ended.
pub(crate) struct Sent(Arc<AtomicBool>);

impl Upload {
    /// The body of a request, and where to see that it has been sent; `None`: there is nothing to send.
    pub(crate) fn of(body: Incoming) -> (Self, Option<Arc<AtomicBool>>) {
        if hyper::body::Body::is_end_stream(&body) {
            return (Upload::Empty, None);
        }
        let ended = Arc::new(AtomicBool::new(false));
        (Upload::Body(body, Sent(Arc::clone(&ended))), Some(ended))
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Upload::Empty => Poll::Ready(None),
            Upload::Body(body, _) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Upload::Empty => true,
            Upload::Body(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Upload::Empty => SizeHint::with_exact(0),
            Upload::Body(body, _) => body.size_hint(),
        }
    }
}
