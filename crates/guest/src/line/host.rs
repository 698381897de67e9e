//! The host's end of a line.
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ports::guest::{DialError, ENVD_PORT, Stream};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::mux::{self, MuxStream, Opened, STREAMS_MAX};
use super::{
    ANSWER_BYTES_MAX, Answer, Done, Header, Hello, Nothing, Order, Reason, Refusal, Resume, Usage,
    VSOCK_PORT, read_line, serial, vsock,
};

/// Whoever asks for a stream while so many others do waits with them.
const ASKING_MAX: usize = 64;
/// A header and an answer fit in it, and what is read next goes past it where more is read at once.
const BUFFER_BYTES: usize = 4096;

/// A line to a machine. Clones are the same line; it hangs up, and all its streams end, when the last of them is dropped.
///
/// Nothing here has a deadline: whoever waits on a guest sets one.
#[derive(Debug, Clone)]
pub struct Line(Arc<Way>);

#[derive(Debug)]
enum Way {
    /// The one conversation that there is.
    Taken(Talk),
    /// A conversation that begins when a stream is wanted, and anew after it was over.
    Vsock {
        socket: PathBuf,
        talk: Mutex<Option<Arc<Talk>>>,
    },
}

/// A conversation: many streams.
#[derive(Debug)]
struct Talk {
    opens: mpsc::Sender<Opened>,
    places: Arc<Semaphore>,
    over: watch::Receiver<bool>,
}

impl Talk {
    fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (opens, asked) = mpsc::channel(ASKING_MAX);
        let (ended, over) = watch::channel(false);
        tokio::spawn(async move {
            if let Err(error) = mux::open_for(io, asked).await {
                tracing::debug!(%error, "a line to a machine ended");
            }
            ended.send_replace(true);
        });
        Self {
            opens,
            places: Arc::new(Semaphore::new(STREAMS_MAX)),
            over,
        }
    }

    async fn stream(&self) -> Result<LineStream, LineError> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (opened, stream) = oneshot::channel();
        self.opens.send(opened).await.map_err(|_| LineError::Gone)?;
        let stream = stream.await.map_err(|_| LineError::Gone)?;
        let stream = stream.map_err(|_| LineError::Gone)?;
        Ok(LineStream {
            inner: BufReader::with_capacity(BUFFER_BYTES, stream),
            _place: place,
        })
    }
}

/// Why a machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// There is no line any more: the machine has ended, was reset, or broke the rules.
    #[error("the line to the machine is gone")]
    Gone,
    /// The agent said no.
    #[error("the machine's agent refused {what}: {said}")]
    Refused {
        /// What was asked.
        what: String,
        /// For programs.
        reason: Reason,
        /// What it said, shortened.
        said: String,
    },
    /// It said something that is no answer.
    #[error("the machine's agent did not answer {what} as it should")]
    Garbled {
        /// What was asked.
        what: String,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The stream broke.
    #[error("the line to the machine broke at {what}")]
    Io {
        /// What was asked.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl LineError {
    /// As whoever dials sees it.
    #[must_use]
    pub fn dialling(self, port: u16) -> DialError {
        match self {
            Self::Gone
            | Self::Refused {
                reason: Reason::Ended,
                ..
            } => DialError::Gone,
            Self::Refused {
                reason: Reason::Closed,
                ..
            } => DialError::Closed(port),
            Self::Io { source, .. } | Self::Garbled { source, .. } => DialError::Io { port, source },
            refused @ Self::Refused { .. } => DialError::Io {
                port,
                source: io::Error::other(refused),
            },
        }
    }
}

impl Line {
    /// Over a virtio-serial port named [`SERIAL_NAME`](super::SERIAL_NAME), by whatever carries its bytes. Returns when the
    /// guest takes the line: soon on one that runs, and when its agent starts on one that boots. Must be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// [`LineError::Io`]: the other side hung up before that.
    pub async fn connect(port: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<Self, LineError> {
        let io = serial::call(port).await.map_err(|source| LineError::Io {
            what: "calling".to_owned(),
            source,
        })?;
        Ok(Self::of(io))
    }

    /// Over a stream to the agent that is nobody else's. Must be called within a Tokio runtime.
    pub fn of(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self(Arc::new(Way::Taken(Talk::over(io))))
    }

    /// Over Firecracker's vsock, by its Unix socket. It is connected to when a stream is wanted, and again where the
    /// connection has ended since, so the line is never over by itself. While the agent does not listen, not yet or not
    /// any more, whatever is asked is answered by [`LineError::Gone`]; see [`vsock::Ready`] for when it does.
    #[must_use]
    pub fn vsock(socket: &Path) -> Self {
        Self(Arc::new(Way::Vsock {
            socket: socket.to_owned(),
            talk: Mutex::default(),
        }))
    }

    /// Becomes ready when the line is over: the guest hung up, began anew, or broke the rules. A line over vsock never is.
    pub async fn over(&self) {
        match &*self.0 {
            Way::Taken(talk) => {
                let mut over = talk.over.clone();
                // The task that says so says it, or is gone.
                let _ = over.wait_for(|over| *over).await;
            }
            Way::Vsock { .. } => std::future::pending().await,
        }
    }

    /// To envd's host-only socket.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn envd(&self) -> Result<Box<dyn Stream>, LineError> {
        let (stream, Nothing {}) = self.open(&Header::Envd).await?;
        Ok(Box::new(stream))
    }

    /// To a TCP port on the machine's loopback.
    ///
    /// # Errors
    /// [`LineError::Refused`] with [`Reason::Closed`] where nothing listens.
    pub async fn port(&self, port: u16) -> Result<Box<dyn Stream>, LineError> {
        let (stream, Nothing {}) = self.open(&Header::Port { port }).await?;
        Ok(Box::new(stream))
    }

    /// As [`Machine::envd`](ports::Machine::envd) and [`Machine::dial`](ports::Machine::dial) have it: to envd at
    /// [`ENVD_PORT`], else to the port.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let opened = if port == ENVD_PORT {
            self.envd().await
        } else {
            self.port(port).await
        };
        opened.map_err(|error| error.dialling(port))
    }

    /// Waits until envd listens, and says who is there.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn hello(&self) -> Result<Hello, LineError> {
        self.order(Order::Hello).await
    }

    /// Renews what must be another's after memory was restored.
    ///
    /// # Errors
    /// See [`LineError`]. The machine must not be served then: it may draw the same random bytes as another.
    pub async fn resume(&self, resume: Resume) -> Result<(), LineError> {
        let Nothing {} = self.order(Order::Resume(resume)).await?;
        Ok(())
    }

    /// What the machine uses now, as it says itself.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn usage(&self) -> Result<Usage, LineError> {
        self.order(Order::Usage).await
    }

    /// Has everything written to the disk.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn sync(&self) -> Result<(), LineError> {
        let Nothing {} = self.order(Order::Sync).await?;
        Ok(())
    }

    /// Has the machine end: it powers off when its disk is unmounted. Returns when that has begun.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn shutdown(&self, grace: Duration) -> Result<(), LineError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let Nothing {} = self.order(Order::Shutdown { grace_ms }).await?;
        Ok(())
    }

    /// Has the agent do something.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn order<T: DeserializeOwned>(&self, order: Order) -> Result<T, LineError> {
        Ok(self.open(&Header::Agent(order)).await?.1)
    }

    /// Opens a stream and has its header answered.
    ///
    /// # Errors
    /// See [`LineError`].
    pub async fn open<T: DeserializeOwned>(&self, header: &Header) -> Result<(LineStream, T), LineError> {
        let what = || match header {
            Header::Envd => "a stream to envd".to_owned(),
            Header::Port { port } => format!("a stream to port {port}"),
            Header::Volume { .. } => "a stream to a volume".to_owned(),
            Header::Agent(Order::Hello) => "hello".to_owned(),
            Header::Agent(Order::Resume(_)) => "to resume".to_owned(),
            Header::Agent(Order::Usage) => "to tell its usage".to_owned(),
            Header::Agent(Order::Sync) => "to sync".to_owned(),
            Header::Agent(Order::Volumes { .. }) => "to lose volumes".to_owned(),
            Header::Agent(Order::Attach { .. }) => "to attach a volume".to_owned(),
            Header::Agent(Order::Shutdown { .. }) => "to shut down".to_owned(),
        };
        let broke = |source: io::Error| match source.kind() {
            // An agent that hangs up without an answer is on its way out.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                LineError::Gone
            }
            io::ErrorKind::InvalidData => LineError::Garbled { what: what(), source },
            _ => LineError::Io { what: what(), source },
        };
        let mut stream = self.stream().await?;
        stream.write_all(&header.to_line()).await.map_err(broke)?;
        stream.flush().await.map_err(broke)?;
        let line = read_line(&mut stream.inner, ANSWER_BYTES_MAX)
            .await
            .map_err(broke)?;
        match Answer::parse(&line) {
            Ok(Answer::Done(Done { told, .. })) => Ok((stream, told)),
            Ok(Answer::Refused(Refusal { error, reason })) => Err(LineError::Refused {
                what: what(),
                reason,
                said: error.chars().take(200).flat_map(char::escape_default).collect(),
            }),
            Err(error) => Err(LineError::Garbled {
                what: what(),
                source: error.into(),
            }),
        }
    }

    async fn stream(&self) -> Result<LineStream, LineError> {
        let (socket, talk) = match &*self.0 {
            Way::Taken(talk) => return talk.stream().await,
            Way::Vsock { socket, talk } => (socket, talk),
        };
        // Whoever comes meanwhile wants the same connection.
        let mut begun = talk.lock().await;
        let talk = match &*begun {
            Some(talk) if !talk.opens.is_closed() => Arc::clone(talk),
            _ => {
                let connected = vsock::connect(socket, VSOCK_PORT).await;
                let io = connected.map_err(|source| match source.kind() {
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => LineError::Gone,
                    _ => LineError::Io {
                        what: "calling".to_owned(),
                        source,
                    },
                })?;
                Arc::clone(begun.insert(Arc::new(Talk::over(io))))
            }
        };
        drop(begun);
        talk.stream().await
    }
}

/// A stream whose header was answered. Shutting down its write half ends the peer's reading alone.
pub struct LineStream {
    inner: BufReader<MuxStream>,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for LineStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LineStream").finish_non_exhaustive()
    }
}

impl AsyncRead for LineStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncBufRead for LineStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().inner).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.inner).consume(amount);
    }
}

impl AsyncWrite for LineStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
