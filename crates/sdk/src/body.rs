//! Bodies of requests: bytes that are there, or a stream that is read as the server takes it.
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

/// What is read at a time: as much as a socket's buffer takes.
const PIECE_BYTES: usize = 64 * 1024;
/// How long a server may take none of what is there for it.
const TAKES_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to store what it has taken: it may pass it on to a store of objects before it answers.
const STORES_WITHIN: Duration = Duration::from_secs(600);

/// The body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body of bytes that are there.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Bytes to upload, read as the server takes them: one piece at a time is in memory.
pub struct Upload {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    length: Option<u64>,
}

impl Upload {
    /// All that a reader gives; `length` is how much that is, where it is known. A reader that ends before is an error,
    /// and what it has beyond is not read.
    pub fn new(reader: impl AsyncRead + Send + 'static, length: Option<u64>) -> Self {
        Self {
            reader: Box::pin(reader),
            length,
        }
    }

    /// As a body, and the way to see how it goes.
    pub(crate) fn into_body(self) -> (Body, Progress) {
        let progress = Progress(Arc::new(Mutex::new(State {
            since: Instant::now(),
            phase: Phase::Offered,
            failure: None,
        })));
        let stream = Stream {
            reader: self.reader,
            left: self.length,
            progress: progress.clone(),
        };
        (stream.boxed_unsync(), progress)
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// How an upload goes. Clones see the same one.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<State>>);

struct State {
    since: Instant,
    phase: Phase,
    failure: Option<io::Error>,
}

/// Whose turn it is.
#[derive(Clone, Copy)]
enum Phase {
    /// The reader's: it is not the server's fault that nothing comes.
    Read,
    /// The server's, to take what is there.
    Offered,
    /// The server's, to answer: it has all.
    Taken,
}

impl Progress {
    fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.since = Instant::now();
        state.phase = phase;
    }

    fn fail(&self, why: &io::Error) {
        self.lock().failure = Some(io::Error::new(why.kind(), why.to_string()));
    }

    /// Why the reader gave no more, if it failed.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.lock().failure.take()
    }

    /// Until when the server has time, and how much it had.
    fn deadline(&self) -> Option<(Instant, Duration)> {
        let state = self.lock();
        let within = match state.phase {
            Phase::Read => return None,
            Phase::Offered => TAKES_WITHIN,
            Phase::Taken => STORES_WITHIN,
        };
        Some((state.since + within, within))
    }

    /// Ends when the server has been silent for longer than it may.
    pub(crate) async fn stalled(&self) -> Duration {
        loop {
            match self.deadline() {
                Some((until, within)) if until <= Instant::now() => return within,
                Some((until, _)) => tokio::time::sleep_until(until).await,
                None => tokio::time::sleep(TAKES_WITHIN).await,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the state")
    }
}

/// A reader as a body.
struct Stream {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    /// What it is still to give, where that is known.
    left: Option<u64>,
    progress: Progress,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let room = self.left.map_or(PIECE_BYTES, |left| {
            usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES))
        });
        if room == 0 {
            self.progress.enter(Phase::Taken);
            return Poll::Ready(None);
        }
        self.progress.enter(Phase::Read);
        let mut piece = BytesMut::zeroed(room);
        let mut buffer = ReadBuf::new(&mut piece);
        let read = ready!(self.reader.as_mut().poll_read(context, &mut buffer));
        let filled = buffer.filled().len();
        piece.truncate(filled);
        let failed = match (read, self.left) {
            (Err(error), _) => error,
            (Ok(()), None) if filled == 0 => {
                self.progress.enter(Phase::Taken);
                return Poll::Ready(None);
            }
            (Ok(()), Some(left)) if filled == 0 => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("it ended {left} bytes before it should: was it changed meanwhile?"),
            ),
            (Ok(()), left) => {
                self.left = left.map(|left| left - filled as u64);
                let all = self.left == Some(0);
                self.progress
                    .enter(if all { Phase::Taken } else { Phase::Offered });
                return Poll::Ready(Some(Ok(Frame::data(piece.freeze()))));
            }
        };
        self.progress.fail(&failed);
        Poll::Ready(Some(Err(failed)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &'static [u8], length: Option<u64>) -> Result<Bytes, io::Error> {
        let (body, _) = Upload::new(bytes, length).into_body();
        body.collect().await.map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn a_reader_gives_as_much_as_was_said() {
        assert_eq!(read(b"abc", None).await.unwrap(), "abc");
        assert_eq!(read(b"abc", Some(3)).await.unwrap(), "abc");
        assert_eq!(read(b"abc", Some(2)).await.unwrap(), "ab");
        assert_eq!(read(b"", Some(0)).await.unwrap(), "");
        let short = read(b"abc", Some(4)).await.unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_long_reader_is_read_in_pieces() {
        let (mut body, _) = Upload::new(tokio::io::repeat(7), Some(200_000)).into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE_BYTES);
            bytes += piece.len();
        }
        assert_eq!(bytes, 200_000);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_server_is_hurried() {
        let (mut body, progress) = Upload::new(tokio::io::repeat(7), None).into_body();
        assert_eq!(progress.stalled().await, TAKES_WITHIN);
        body.frame().await.unwrap().unwrap();
        progress.enter(Phase::Read);
        let patient = tokio::time::timeout(TAKES_WITHIN * 100, progress.stalled()).await;
        assert!(patient.is_err());
        progress.enter(Phase::Taken);
        assert_eq!(progress.stalled().await, STORES_WITHIN);
    }
}
