//! How long a client may keep a connection without a request.
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::body::{Body, Broken};

/// From the first byte of a request's head to its last, and from the start of a connection to its first request, or to
/// the end of HTTP/2's preface. A client that needs longer is not one.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Between two requests (contract 1.4). No request and no response has a deadline.
const IDLE: Duration = Duration::from_secs(620);

/// What HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What one connection is at. Whoever serves it asks for its deadline after each of its steps.
pub(crate) struct Pace(Mutex<State>);

struct State {
    spoken: Spoken,
    /// Requests whose responses have not gone out.
    under_way: usize,
    /// Whether a part of a head has come.
    in_head: bool,
    /// When it is over; `None` while a request is under way.
    deadline: Option<Instant>,
}

/// What the client speaks.
enum Spoken {
    /// So many bytes of the preface have come, and nothing else.
    Unknown(usize),
    One,
    /// It frames what it says, so that single bytes tell nothing; silence is what counts.
    Two,
}

const UNPOISONED: &str = "nothing panics while it holds the pace";

impl Pace {
    /// The pace of a connection that begins now.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            spoken: Spoken::Unknown(0),
            under_way: 0,
            in_head: true,
            deadline: Some(Instant::now() + HEAD_WITHIN),
        })))
    }

    /// A request has come. It is under way until the returned value is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = self.0.lock().expect(UNPOISONED);
        state.under_way += 1;
        state.in_head = false;
        state.deadline = None;
        UnderWay(Arc::clone(self))
    }

    fn heard(&self, bytes: &[u8]) {
        let mut state = self.0.lock().expect(UNPOISONED);
        if state.under_way > 0 {
            return;
        }
        match state.spoken {
            Spoken::Unknown(seen) => {
                let expected = &PREFACE[seen..];
                let same = expected.len().min(bytes.len());
                if expected[..same] != bytes[..same] {
                    state.spoken = Spoken::One;
                } else if same == expected.len() {
                    state.spoken = Spoken::Two;
                    state.in_head = false;
                    state.deadline = Some(Instant::now() + IDLE);
                } else {
                    state.spoken = Spoken::Unknown(seen + same);
                }
            }
            Spoken::One if !state.in_head => {
                state.in_head = true;
                state.deadline = Some(Instant::now() + HEAD_WITHIN);
            }
            Spoken::One | Spoken::Two => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.0.lock().expect(UNPOISONED).deadline
    }

    /// Ready once the connection's time is over. `alarm` rings no later than that; it is moved only where it must
    /// ring earlier, or has rung, so that a busy connection costs no timer.
    pub(crate) fn poll_over(&self, mut alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.deadline() else {
                return Poll::Pending;
            };
            if deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(deadline);
        }
    }

    /// What [`Pace::poll_over`] needs.
    pub(crate) fn alarm() -> Sleep {
        tokio::time::sleep(HEAD_WITHIN)
    }
}

/// A request under way.
pub(crate) struct UnderWay(Arc<Pace>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().expect(UNPOISONED);
        state.under_way -= 1;
        if state.under_way == 0 {
            state.deadline = Some(Instant::now() + IDLE);
        }
    }
}

/// A body whose request is under way until it has gone out.
pub(crate) struct Carried {
    pub(crate) body: Body,
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) under_way: UnderWay,
}

impl HttpBody for Carried {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's bytes, overheard.
pub(crate) struct Overheard<S> {
    pub(crate) stream: S,
    pub(crate) pace: Arc<Pace>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let bytes = &buffer.filled()[before..];
        if !bytes.is_empty() {
            self.pace.heard(bytes);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds from now until the connection is over.
    fn left(pace: &Pace) -> Option<u64> {
        pace.deadline()
            .map(|at| at.duration_since(Instant::now()).as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_http_1_has_30_s_for_each_head_and_620_s_between_requests() {
        let pace = Pace::new();
        assert_eq!(left(&pace), Some(30));
        tokio::time::advance(Duration::from_secs(10)).await;
        // A first letter that is HTTP/2's as well, and a second that is not, win no time.
        pace.heard(b"P");
        pace.heard(b"OST");
        assert_eq!(left(&pace), Some(20));
        let request = pace.begin();
        assert_eq!(left(&pace), None);
        drop(request);
        assert_eq!(left(&pace), Some(620));
        pace.heard(b"G");
        assert_eq!(left(&pace), Some(30));
        tokio::time::advance(Duration::from_secs(10)).await;
        pace.heard(b"E");
        assert_eq!(left(&pace), Some(20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_http_2_has_30_s_for_its_preface_and_620_s_without_a_request() {
        let pace = Pace::new();
        let (first, rest) = PREFACE.split_at(3);
        pace.heard(first);
        assert_eq!(left(&pace), Some(30));
        pace.heard(rest);
        assert_eq!(left(&pace), Some(620));
        let (one, two) = (pace.begin(), pace.begin());
        drop(one);
        assert_eq!(left(&pace), None);
        drop(two);
        tokio::time::advance(Duration::from_secs(20)).await;
        pace.heard(b"a ping");
        assert_eq!(left(&pace), Some(600));
    }

    #[tokio::test(start_paused = true)]
    async fn the_alarm_rings_at_the_deadline_that_holds_then() {
        let pace = Pace::new();
        let begun = Instant::now();
        let mut alarm = std::pin::pin!(Pace::alarm());
        pace.heard(b"G");
        drop(pace.begin());
        std::future::poll_fn(|cx| pace.poll_over(alarm.as_mut(), cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 620);
    }
}
