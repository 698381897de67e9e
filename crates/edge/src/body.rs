//! What goes back to the client.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use crate::cut::Ticket;
use crate::line::{Detached, Line};
use crate::lines::Lines;

/// The body of every response.
pub(crate) enum Body {
    /// The edge's own words.
    Text(Option<Bytes>),
    /// What the sandbox says.
    Relay(Relay),
}

/// A response on its way out of a sandbox. Ends in an error, never cleanly, when the execution is withdrawn: the
/// client must be able to tell an answer from half of one (contract 1.5).
pub(crate) struct Relay {
    incoming: Incoming,
    carrier: Carrier,
}

/// What moves the bytes.
pub(crate) enum Carrier {
    /// The line is driven by this body, and parked at its end.
    Inline {
        line: Box<Line>,
        home: Option<Arc<Lines>>,
    },
    /// A task drives the connection, because the request still comes in.
    Task {
        #[expect(dead_code, reason = "held for its drop, which ends the task")]
        detached: Option<Detached>,
        ticket: Ticket,
    },
    /// The response breaks off, once what came before has gone out.
    Breaking(Broken),
    /// The response is over.
    Done,
}

/// Why a response broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The execution was withdrawn.
    #[error("the sandbox is gone")]
    Cut,
    /// The service hung up.
    #[error("the service broke off")]
    Service(#[source] hyper::Error),
}

impl Body {
    pub(crate) const fn text(text: Bytes) -> Self {
        Body::Text(Some(text))
    }

    pub(crate) const fn empty() -> Self {
        Body::Text(None)
    }

    /// The body of a response that came over `line`, which goes `home` afterwards.
    pub(crate) fn relay(incoming: Incoming, carrier: Carrier) -> Self {
        Body::Relay(Relay { incoming, carrier })
    }
}

impl Relay {
    /// The next frame. The body comes out of the line which is driven here: no one else needs to wake it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.carrier {
            Carrier::Breaking(_) | Carrier::Done => Poll::Ready(None),
            Carrier::Task { .. } => Pin::new(&mut self.incoming).poll_frame(cx),
            Carrier::Inline { line, .. } => {
                let mut own = Context::from_waker(Waker::noop());
                let first = Pin::new(&mut self.incoming).poll_frame(&mut own);
                if first.is_ready() {
                    return first;
                }
                line.drive(cx);
                Pin::new(&mut self.incoming).poll_frame(&mut own)
            }
        }
    }

    /// Fails with the next poll, in the same turn of the task: an error drops what the connection still holds back,
    /// and it holds back until this body has nothing more to say.
    fn break_off<T>(&mut self, broken: Broken, cx: &mut Context<'_>) -> Poll<T> {
        self.carrier = Carrier::Breaking(broken);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn broken(&mut self) -> Option<Broken> {
        match std::mem::replace(&mut self.carrier, Carrier::Done) {
            Carrier::Breaking(broken) => Some(broken),
            _ => None,
        }
    }

    /// Gives the line back; whatever the client still sends is no longer awaited.
    fn finish(&mut self, cx: &mut Context<'_>) {
        if let Carrier::Inline {
            line,
            home: Some(home),
        } = std::mem::replace(&mut self.carrier, Carrier::Done)
        {
            home.park(line, cx);
        }
    }
}

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let cut = match &this.carrier {
            Carrier::Inline { line, .. } => line.ticket().poll_cut(cx),
            Carrier::Task { ticket, .. } => ticket.poll_cut(cx),
            Carrier::Breaking(_) | Carrier::Done => return Poll::Ready(this.broken().map(Err)),
        };
        if cut.is_ready() {
            return this.break_off(Broken::Cut, cx);
        }
        let next = match this.poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(next) => next,
        };
        match next {
            Some(Ok(frame)) => {
                if this.incoming.is_end_stream() {
                    this.finish(cx);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => this.break_off(Broken::Service(error), cx),
            None => {
                this.finish(cx);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream() && !matches!(self.carrier, Carrier::Breaking(_))
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Body::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Body::Relay(relay) => Pin::new(relay).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Text(text) => text.is_none(),
            Body::Relay(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Body::Relay(relay) => relay.size_hint(),
        }
    }
}
