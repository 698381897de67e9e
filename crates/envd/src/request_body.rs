//! A request's body, which remembers whether it was read to its end.
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// A body on its way in.
pub(crate) struct RequestBody {
    incoming: Incoming,
    whole: Arc<AtomicBool>,
}

/// Where to see whether a body was read to its end. A connection on which something of a request is left cannot carry
/// the next one, and the client must be told so with the answer: one that learns of it later has lost a request.
pub(crate) struct Reading(Arc<AtomicBool>);

impl RequestBody {
    pub(crate) fn of(incoming: Incoming) -> (Self, Reading) {
        let whole = Arc::new(AtomicBool::new(incoming.is_end_stream()));
        let reading = Reading(Arc::clone(&whole));
        (Self { incoming, whole }, reading)
    }
}

impl Reading {
    pub(crate) fn is_whole(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        let ended = matches!(frame, Poll::Ready(None));
        if ended || frame.is_ready() && self.incoming.is_end_stream() {
            self.whole.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
