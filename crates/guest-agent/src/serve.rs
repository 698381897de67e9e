//! What a host says on a line: many streams, and of each its header, the answer, and what follows.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use guest::line::{Answer, HEADER_BYTES_MAX, Header, Hello, Nothing, Order, Reason, mux, read_line};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::console::say;
use crate::machine::Machine;
use crate::resume::resume;
use crate::usage::usage;
use crate::volumes::{self, Refused};

/// A host sends its header with the first bytes, or is none.
const HEADER_WITHIN: Duration = Duration::from_secs(10);
/// For each direction of a stream.
const COPY_BYTES: usize = 16 * 1024;

/// Serves a conversation with a host until it ends. What it left open, no other host can take up.
pub(crate) async fn serve_line(io: impl AsyncRead + AsyncWrite + Unpin, machine: &Arc<Machine>) {
    let mut streams = JoinSet::new();
    let served = mux::serve(io, |stream| {
        while streams.try_join_next().is_some() {}
        streams.spawn(serve_stream(stream, Arc::clone(machine)));
    });
    if let Err(error) = served.await {
        say(format_args!("the line was given up: {error}"));
    }
    streams.shutdown().await;
}

/// Serves a stream until it ends.
async fn serve_stream(stream: impl AsyncRead + AsyncWrite + Unpin, machine: Arc<Machine>) {
    let mut stream = BufReader::new(stream);
    // A stream that breaks is the host's business; what was under way for it is dropped.
    let _ = answer(&mut stream, &machine).await;
    let _ = stream.shutdown().await;
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    machine: &Arc<Machine>,
) -> io::Result<()> {
    let line = tokio::time::timeout(HEADER_WITHIN, read_line(stream, HEADER_BYTES_MAX));
    let header = match line.await {
        Ok(Ok(line)) => Header::parse(&line),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(error.to_string()),
        Ok(Err(error)) => return Err(error),
        Err(_) => Err("no header came".to_owned()),
    };
    let order = match header {
        Ok(Header::Envd) => {
            machine.ready().await;
            return relay(stream, machine.envd().await, "envd").await;
        }
        Ok(Header::Port { port }) => {
            return relay(stream, connect(port).await, &format!("port {port}")).await;
        }
        Ok(Header::Volume { tag }) => {
            let Some(relay) = machine.volumes.find(tag) else {
                return refuse(stream, Reason::Closed, "there is no such volume".to_owned()).await;
            };
            tell(stream, Ok(Nothing {})).await?;
            return relay.serve(stream).await;
        }
        Ok(Header::Agent(order)) => order,
        Err(wrong) => return refuse(stream, Reason::Failed, wrong).await,
    };
    match order {
        Order::Hello => {
            machine.ready().await;
            tell(stream, Ok(hello())).await
        }
        Order::Resume(order) => {
            let machine = Arc::clone(machine);
            tell(stream, blocking(move || resume(&machine, &order)).await).await
        }
        Order::Usage => {
            let machine = Arc::clone(machine);
            tell(stream, blocking(move || usage(&machine)).await).await
        }
        Order::Sync => {
            let volumes = machine.volumes.all();
            let synced = blocking(move || {
                // Of its file system, by any of its files.
                let root = std::fs::File::open(crate::boot::MACHINE).map_err(|error| error.to_string())?;
                rustix::fs::syncfs(&root).map_err(|error| error.to_string())?;
                for volume in volumes {
                    volume.sync().map_err(|error| format!("a volume: {error}"))?;
                }
                Ok(Nothing {})
            });
            tell(stream, synced.await).await
        }
        Order::Volumes { keep } => {
            let machine = Arc::clone(machine);
            tell(stream, blocking(move || volumes::keep(&machine, &keep)).await).await
        }
        Order::Attach { tag, path } => match volumes::have(machine, tag, &path).await {
            Ok(had) => tell(stream, Ok(had)).await,
            Err(Refused::Unfit(why)) => refuse(stream, Reason::Unfit, why.to_owned()).await,
            Err(Refused::Failed(why)) => tell::<Nothing>(stream, Err(why)).await,
        },
        Order::Shutdown { grace_ms } => {
            machine.end(Duration::from_millis(grace_ms));
            let told = tell(stream, Ok(Nothing {})).await;
            machine.end_told.notify_one();
            told
        }
    }
}

/// Who we are.
pub(crate) fn hello() -> Hello {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = uptime
        .tv_sec
        .saturating_mul(1000)
        .saturating_add(uptime.tv_nsec / 1_000_000);
    Hello {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        uptime_ms: u64::try_from(ms).unwrap_or_default(),
    }
}

/// To whoever listens on a port of the machine's loopback, in either family.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port))
                .await
                .map_err(|_| error)?
        }
        connected => connected?,
    };
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Says that the other end is there, and lets them talk.
async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    other: io::Result<impl AsyncRead + AsyncWrite + Unpin>,
    what: &str,
) -> io::Result<()> {
    let mut other = match other {
        Ok(other) => other,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return refuse(stream, Reason::Closed, format!("{what} is not open")).await;
        }
        Err(error) => return refuse(stream, Reason::Failed, format!("{what}: {error}")).await,
    };
    tell(stream, Ok(Nothing {})).await?;
    tokio::io::copy_bidirectional_with_sizes(stream, &mut other, COPY_BYTES, COPY_BYTES).await?;
    Ok(())
}

async fn tell<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    told: Result<T, String>,
) -> io::Result<()> {
    let answer = match told {
        Ok(told) => Answer::done(told),
        Err(error) => Answer::refused(Reason::Failed, error),
    };
    stream.write_all(&answer.to_line()).await?;
    stream.flush().await
}

async fn refuse(stream: &mut (impl AsyncWrite + Unpin), reason: Reason, error: String) -> io::Result<()> {
    let line = Answer::<Nothing>::refused(reason, error).to_line();
    stream.write_all(&line).await?;
    stream.flush().await
}

/// Does what blocks where blocking harms nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(broken) => Err(broken.to_string()),
    }
}
