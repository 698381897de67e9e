//! One request and its response.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, request};
use hyper::body::{Body as _, Incoming};
use ports::guest::ENVD_PORT;
use ports::{DialError, Guest, Route, Stream};

use crate::body::{Body, Carrier};
use crate::cut::NoPlace;
use crate::forward;
use crate::line::{Line, SendError, Upload};
use crate::lines::Lines;
use crate::meters::Meters;

/// Pauses between dials to a port on which nothing listens yet (contract 1.4): a server that was started a moment
/// ago gets a second to open it.
const BACKOFF: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(400),
];

/// A connection within one machine or one network takes milliseconds; this is a guest that does not answer.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);

/// Where a request goes.
#[derive(Clone, Copy)]
pub(crate) enum Upstream<'a> {
    /// A port inside a sandbox.
    Sandbox {
        guest: &'a dyn Guest,
        route: &'a Route,
        port: u16,
    },
    /// The API, on this machine.
    Api(SocketAddr),
}

/// A request on its way, until somebody has sent it.
pub(crate) struct Call {
    /// When its head was read.
    pub(crate) begun: Instant,
    /// `None` once it has been sent.
    pub(crate) request: Option<Request<Upload>>,
    /// Raised when its body has been sent; `None`: it has none.
    pub(crate) sent: Option<Arc<AtomicBool>>,
}

impl Call {
    /// Changes the head of the request, where it has not been sent.
    pub(crate) fn map_head(&mut self, change: impl FnOnce(&mut request::Parts)) {
        if let Some(request) = self.request.take() {
            let (mut parts, upload) = request.into_parts();
            change(&mut parts);
            forward::frame(&mut parts.headers, upload.size_hint().exact());
            self.request = Some(Request::from_parts(parts, upload));
        }
    }
}

/// Why there is no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The execution is gone.
    Gone,
    /// Nothing answers on the port.
    Closed,
    /// The execution has as many connections as it may have.
    Full,
}

impl Upstream<'_> {
    async fn dial(&self) -> Result<Box<dyn Stream>, DialError> {
        match *self {
            Upstream::Sandbox { guest, route, port } => guest.dial(route, port).await,
            Upstream::Api(address) => {
                let port = address.port();
                let stream = tokio::net::TcpStream::connect(address).await;
                let stream = stream.map_err(|source| DialError::Io { port, source })?;
                // Failing that, the stream is slower, not wrong.
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
        }
    }

    const fn port(&self) -> u16 {
        match self {
            Upstream::Sandbox { port, .. } => *port,
            Upstream::Api(_) => 0,
        }
    }

    /// Pauses between dials: envd listens before its sandbox has a route, and the API before the edge.
    const fn backoff(&self) -> &'static [Duration] {
        match self {
            Upstream::Sandbox { port, .. } if *port != ENVD_PORT => &BACKOFF,
            _ => &[],
        }
    }

    /// Whether a request may go over a line that has been idle. A service may hang up an idle line at any moment, so
    /// what cannot be sent again goes over a fresh one; but envd hangs up none.
    const fn reuses(&self, replayable: bool) -> bool {
        match self {
            Upstream::Sandbox { port, .. } => replayable || *port == ENVD_PORT,
            Upstream::Api(_) => false,
        }
    }

    /// Sends the call's request and waits for the head of its response. The call still holds the request where
    /// none of it was sent.
    pub(crate) async fn exchange(
        &self,
        lines: &Arc<Lines>,
        call: &mut Call,
        meters: &Meters,
    ) -> Result<Response<Body>, Lost> {
        let mut request = call.request.take().expect("a call is exchanged with its request");
        let replayable = call.sent.is_none() && request.method().is_idempotent();
        let reuses = self.reuses(replayable);
        if reuses && let Some(mut line) = take(lines, self.port()).await {
            let copy = replayable.then(|| Head::of(&request));
            meters.pooled.increment(1);
            meters.added.record(call.begun.elapsed());
            match line.send(request, None::<fn()>).await {
                Ok(response) => return respond(response, line, Some(lines), call).await,
                Err(SendError::Cut) => return Err(Lost::Gone),
                Err(SendError::Unsent(unsent)) => request = *unsent,
                Err(SendError::Broken(error)) => match copy {
                    Some(copy) if !error.is_parse() => request = copy.into_request(),
                    _ => return Err(lost(&error)),
                },
            }
        }
        let mut line = match self.open(lines).await {
            Ok(line) => line,
            Err(lost) => {
                call.request = Some(request);
                return Err(lost);
            }
        };
        meters.fresh.increment(1);
        meters.added.record(call.begun.elapsed());
        match line
            .send(request, reuses.then_some(|| lines.hang_up(self.port())))
            .await
        {
            Ok(response) => respond(response, line, reuses.then_some(lines), call).await,
            Err(SendError::Cut) => Err(Lost::Gone),
            Err(SendError::Unsent(unsent)) => {
                call.request = Some(*unsent);
                Err(Lost::Closed)
            }
            Err(SendError::Broken(error)) => Err(lost(&error)),
        }
    }

    /// A fresh line.
    pub(crate) async fn open(&self, lines: &Lines) -> Result<Box<Line>, Lost> {
        let port = self.port();
        let failed = |source| DialError::Io { port, source };
        let ticket = lines.enter().map_err(|none| match none {
            NoPlace::Cut => Lost::Gone,
            NoPlace::Taken => Lost::Full,
        })?;
        let mut pauses = self.backoff().iter();
        loop {
            let dialled = tokio::select! {
                biased;
                () = ticket.cut() => Err(DialError::Gone),
                dialled = tokio::time::timeout(DIAL_PATIENCE, self.dial()) => {
                    dialled.unwrap_or_else(|late| Err(failed(late.into())))
                }
            };
            match (dialled, pauses.as_slice()) {
                (Ok(stream), _) => {
                    let line = Line::open(stream, ticket, port).await;
                    return line.map_err(|error| refused(&failed(std::io::Error::other(error))));
                }
                (Err(DialError::Closed(_)), [_, ..]) => {
                    let pause = pauses.next().copied().unwrap_or_default();
                    tokio::select! {
                        () = ticket.cut() => return Err(Lost::Gone),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                (Err(error), _) => return Err(refused(&error)),
            }
        }
    }
}

async fn take(lines: &Lines, port: u16) -> Option<Box<Line>> {
    std::future::poll_fn(|cx| Poll::Ready(lines.take(port, cx))).await
}

/// The client's response, carried by the line on which it comes.
async fn respond(
    response: Response<Incoming>,
    line: Box<Line>,
    home: Option<&Arc<Lines>>,
    call: &Call,
) -> Result<Response<Body>, Lost> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked it to, and the client would not know what follows.
        return Err(Lost::Closed);
    }
    let (mut parts, incoming) = response.into_parts();
    forward::response(&mut parts);
    let still_sending = call
        .sent
        .as_ref()
        .is_some_and(|sent| !sent.load(Ordering::Acquire));
    let body = if still_sending {
        let (detached, ticket) = line.into_task();
        Body::relay(incoming, Carrier::Task { detached, ticket })
    } else if incoming.is_end_stream() {
        if let Some(home) = home {
            let mut line = Some(line);
            std::future::poll_fn(|cx| {
                if let Some(line) = line.take() {
                    home.park(line, cx);
                }
                Poll::Ready(())
            })
            .await;
        }
        Body::empty()
    } else {
        let home = home.cloned();
        Body::relay(incoming, Carrier::Inline { line, home })
    };
    Ok(Response::from_parts(parts, body))
}

/// What a failed dial means for the client.
fn refused(error: &DialError) -> Lost {
    match error {
        DialError::Gone => Lost::Gone,
        DialError::Closed(_) => Lost::Closed,
        DialError::Io { port, source } => {
            tracing::debug!(port, error = %source, "a dial into a sandbox failed");
            Lost::Closed
        }
    }
}

fn lost(error: &hyper::Error) -> Lost {
    tracing::debug!(%error, "a service broke off before it answered");
    Lost::Closed
}

/// A request without a body, to be sent again.
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn of(request: &Request<Upload>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        }
    }

    fn into_request(self) -> Request<Upload> {
        let mut request = Request::new(Upload::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}
