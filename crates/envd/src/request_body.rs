//! A request's body, which remembers whether it was read to its end, and does not wait for ever for it to go on.
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

/// A client that sends nothing of what it announced for this long has gone, whatever its connection says.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(60);

/// A body on its way in.
pub(crate) struct RequestBody<B = Incoming> {
    incoming: B,
    progress: Arc<AtomicU8>,
    /// While nothing comes: until when that is borne. A body that may rest has none.
    idle: Option<Idle>,
}

/// Where to see whether a body was read to its end. A connection on which something of a request is left cannot carry
/// the next one, and the client must be told so with the answer: one that learns of it later has lost a request.
pub(crate) struct Reading(Arc<AtomicU8>);

struct Idle {
    until: Pin<Box<Sleep>>,
    waits: bool,
}

const UNDER_WAY: u8 = 0;
const WHOLE: u8 = 1;
const GIVEN_UP: u8 = 2;

impl<B: Body> RequestBody<B> {
    /// A body that goes on again and again; or that `may_rest`, as one whose messages somebody types.
    pub(crate) fn of(incoming: B, may_rest: bool) -> (Self, Reading) {
        let is_whole = incoming.is_end_stream();
        let progress = Arc::new(AtomicU8::new(if is_whole { WHOLE } else { UNDER_WAY }));
        let reading = Reading(Arc::clone(&progress));
        let idle = (!may_rest && !is_whole).then(|| Idle {
            until: Box::pin(tokio::time::sleep(IDLE_MAX)),
            waits: false,
        });
        let body = Self {
            incoming,
            progress,
            idle,
        };
        (body, reading)
    }
}

impl Reading {
    pub(crate) fn is_whole(&self) -> bool {
        self.0.load(Ordering::Acquire) == WHOLE
    }

    /// Whether it was waited for in vain.
    pub(crate) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) == GIVEN_UP
    }
}

impl Idle {
    /// Whether nothing has come for too long.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if !std::mem::replace(&mut self.waits, true) {
            self.until.as_mut().reset(Instant::now() + IDLE_MAX);
        }
        self.until.as_mut().poll(cx).is_ready()
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.progress.load(Ordering::Acquire) == GIVEN_UP {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        if frame.is_pending() {
            if self.idle.as_mut().is_some_and(|idle| idle.is_over(cx)) {
                self.progress.store(GIVEN_UP, Ordering::Release);
                return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
            }
            return Poll::Pending;
        }
        if let Some(idle) = &mut self.idle {
            idle.waits = false;
        }
        let ended = matches!(frame, Poll::Ready(None));
        if ended || self.incoming.is_end_stream() {
            self.progress.store(WHOLE, Ordering::Release);
        }
        frame.map_err(io::Error::other)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    type Pieces = mpsc::Sender<&'static str>;

    fn body(
        may_rest: bool,
    ) -> (
        Pieces,
        RequestBody<impl Body<Data = Bytes, Error = io::Error> + Unpin>,
        Reading,
    ) {
        let (send, receive) = mpsc::channel(1);
        let frames =
            futures_util::stream::unfold(receive, async |mut receive: mpsc::Receiver<&'static str>| {
                let piece = receive.recv().await?;
                Some((Ok(Frame::data(Bytes::from_static(piece.as_bytes()))), receive))
            });
        let (body, reading) = RequestBody::of(StreamBody::new(Box::pin(frames)), may_rest);
        (send, body, reading)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_go_on_is_given_up() {
        let (send, mut body, reading) = body(false);
        for _ in 0..3 {
            // Slow is not idle.
            send.send("x").await.unwrap();
            assert!(body.frame().await.unwrap().is_ok());
            tokio::time::sleep(IDLE_MAX * 3).await;
            let wait = tokio::time::timeout(IDLE_MAX / 2, body.frame()).await;
            assert!(wait.is_err(), "time that it was not asked in does not count");
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(reading.is_given_up() && !reading.is_whole());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_may_rest_rests() {
        let (send, mut body, reading) = body(true);
        let wait = tokio::time::timeout(IDLE_MAX * 100, body.frame()).await;
        assert!(wait.is_err() && !reading.is_given_up());
        drop(send);
        assert!(body.frame().await.is_none() && reading.is_whole());
    }
}
