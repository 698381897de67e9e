//! Many streams on one ([yamux](https://github.com/hashicorp/yamux/blob/master/spec.md)).
use std::task::Poll;

use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};
use yamux::{Config, Connection, ConnectionError, Mode};

/// Streams that may be open at once on a line; whoever wants one more waits. Envd serves twice as many.
pub const STREAMS_MAX: usize = 512;
/// Streams that ended stay in the count until their peer heard of it. One too many ends the whole connection, so there is room.
const STREAMS_COUNTED_MAX: usize = 2 * STREAMS_MAX;
/// What may be under way to us on one stream, and is in memory where nobody reads it: yamux begins with it, and no more is given.
const WINDOW_BYTES: usize = 256 * 1024;

/// One of the streams.
pub type MuxStream = Compat<yamux::Stream>;

/// Where the opened stream is to go.
pub type Opened = oneshot::Sender<Result<MuxStream, ConnectionError>>;

fn config() -> Config {
    let mut config = Config::default();
    // In this order: each step is checked against the other.
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(STREAMS_COUNTED_MAX);
    config.set_max_connection_receive_window(Some(STREAMS_COUNTED_MAX * WINDOW_BYTES));
    config
}

/// The host's end: opens a stream for each of `opens`, until nobody can ask any more, the guest hangs up, or it breaks the
/// rules: opening a stream by itself does. When it ends, so do all streams.
///
/// # Errors
/// How the connection ended, if not because nobody asks any more.
pub async fn open_for(
    io: impl AsyncRead + AsyncWrite + Unpin,
    mut opens: mpsc::Receiver<Opened>,
) -> Result<(), ConnectionError> {
    let mut connection = Connection::new(io.compat(), config(), Mode::Client);
    let mut next: Option<Opened> = None;
    poll_fn(|cx| {
        loop {
            if next.as_ref().is_some_and(oneshot::Sender::is_closed) {
                next = None;
            }
            if next.is_none() {
                match opens.poll_recv(cx) {
                    Poll::Ready(Some(asked)) => next = Some(asked),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {}
                }
            }
            if next.is_some()
                && let Poll::Ready(opened) = connection.poll_new_outbound(cx)
            {
                let asked = next.take().expect("there is one, as was just seen");
                let _ = asked.send(opened.map(|stream| stream.compat()));
                continue;
            }
            return match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(_unasked))) => Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
                Poll::Ready(None) => Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Pending => Poll::Pending,
            };
        }
    })
    .await
}

/// The guest's end: hands every stream that the host opens to `serve`, until the connection ends, and with it all streams.
///
/// # Errors
/// How it ended, if not by being closed.
pub async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin,
    mut serve: impl FnMut(MuxStream),
) -> Result<(), ConnectionError> {
    let mut connection = Connection::new(io.compat(), config(), Mode::Server);
    while let Some(stream) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        serve(stream?.compat());
    }
    Ok(())
}
