//! Streams into the sandboxes of other machines.
//!
//! A stream has a TCP connection of its own: the kernel holds back who is faster than his reader, and no stream waits for another.
//! Handshakes are made ahead: [`READY_MAX`] connections to each node that was dialled lately, so that a dial is one round trip.
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use model::NodeId;
use ports::{DialError, Guest, Route, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::breaker::Breaker;
use crate::channel::{Dialer, PING_EVERY, PING_MAX, RETIRED_BEFORE};
use crate::guest::preface::{ANSWER_BYTES, Preface, Verdict};
use crate::guest::{ALPN_DIAL, IDLE_MAX, keep_alive};
use crate::tls::{Expected, Tls};

/// Connections that wait to be used, to each node.
pub(crate) const READY_MAX: usize = 16;
/// Handshakes with one node at a time: a node's cores are there for its sandboxes.
const HANDSHAKES_MAX: usize = 32;
/// A port of a sandbox that listens takes a connection at once; the node gives up after some seconds.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// A node that was not dialled for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// Where nodes are.
pub type Addresses = watch::Receiver<HashMap<NodeId, String>>;

/// Reaches into sandboxes through the nodes that run them.
pub struct RemoteGuest {
    tls: Tls,
    addresses: Addresses,
    nodes: Mutex<HashMap<NodeId, Arc<Way>>>,
}

impl RemoteGuest {
    /// With nodes at these addresses (`host:port`), as they change. Nothing is connected yet.
    #[must_use]
    pub fn new(addresses: Addresses, tls: &Tls) -> Arc<Self> {
        Arc::new(Self {
            tls: tls.clone(),
            addresses,
            nodes: Mutex::default(),
        })
    }

    fn way(&self, node: NodeId) -> Option<Arc<Way>> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses = self.addresses.borrow();
        let address = addresses.get(&node);
        if let (Some(way), Some(address)) = (nodes.get(&node), address)
            && *way.dialer.address == **address
        {
            way.used();
            return Some(Arc::clone(way));
        }
        // Streams to where it was go on; there will be no new ones.
        nodes.remove(&node);
        nodes.retain(|_, way| !way.is_forgotten());
        let way = Arc::new(Way {
            dialer: Dialer::new(address?, Expected::node(node), ALPN_DIAL, &self.tls),
            ready: Mutex::default(),
            making: AtomicUsize::new(0),
            handshakes: Semaphore::new(HANDSHAKES_MAX),
            breaker: Breaker::default(),
            used_at: Mutex::new(Instant::now()),
            pulse: Mutex::default(),
        });
        nodes.insert(node, Arc::clone(&way));
        Some(way)
    }
}

#[async_trait]
impl Guest for RemoteGuest {
    async fn dial(&self, route: &Route, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let io = |source| DialError::Io { port, source };
        let way = self.way(route.seat.node).ok_or_else(|| {
            let text = format!("node {} is not in the fleet", route.seat.node);
            io(io::Error::new(io::ErrorKind::NotFound, text))
        })?;
        let preface = Preface::Dial {
            sandbox: route.sandbox,
            execution: route.seat.execution,
            port,
        };
        let (verdict, stream) = way.open(preface).await.map_err(io)?;
        verdict.told(port)?;
        let dead = way.pulse_of();
        Ok(Box::new(Living {
            stream,
            dead_to_reader: Box::pin(dead.clone().cancelled_owned()),
            dead_to_writer: Box::pin(dead.cancelled_owned()),
            _way: way,
        }))
    }
}

/// The way to one node.
struct Way {
    dialer: Dialer,
    ready: Mutex<Vec<Ready>>,
    /// Connections that are being made ahead.
    making: AtomicUsize,
    handshakes: Semaphore,
    breaker: Breaker,
    used_at: Mutex<Instant>,
    /// Cancelled when the node is found dead; its streams end then.
    pulse: Mutex<Option<Pulse>>,
}

struct Pulse {
    dead: CancellationToken,
    is_over: Arc<AtomicBool>,
}

struct Ready {
    stream: TlsStream<TcpStream>,
    made_at: Instant,
    retired_at: SystemTime,
}

impl Ready {
    /// Whether it may still be used: the node has not ended it.
    fn is_good(&mut self) -> bool {
        let mut byte = [0];
        self.made_at.elapsed() < IDLE_MAX
            && SystemTime::now() < self.retired_at
            && self.stream.read(&mut byte).now_or_never().is_none()
    }
}

impl Way {
    fn ready(&self) -> MutexGuard<'_, Vec<Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_forgotten(&self) -> bool {
        let used_at = *self.used_at.lock().unwrap_or_else(PoisonError::into_inner);
        used_at.elapsed() > FORGOTTEN_AFTER
    }

    /// A stream behind its verdict.
    async fn open(self: &Arc<Self>, preface: Preface) -> io::Result<(Verdict, TlsStream<TcpStream>)> {
        // The newest first: the oldest are those that may have ended.
        loop {
            let ready = self.ready().pop();
            self.make_ready();
            let Some(mut ready) = ready else { break };
            if !ready.is_good() {
                continue;
            }
            match ask(&mut ready.stream, preface).await {
                Ok(verdict) => return Ok((verdict, ready.stream)),
                // It may have ended in this moment: a new one will tell.
                Err(error) => {
                    tracing::debug!(address = %self.dialer.address, error = crate::causes(&error), "a ready connection was of no use");
                    break;
                }
            }
        }
        let mut fresh = self.make().await?;
        let verdict = ask(&mut fresh.stream, preface).await?;
        Ok((verdict, fresh.stream))
    }

    async fn make(&self) -> io::Result<Ready> {
        let pass = self.breaker.enter().map_err(io::Error::other)?;
        let _turn = self.handshakes.acquire().await.map_err(io::Error::other)?;
        match self.dialer.dial().await {
            Ok((stream, until)) => {
                keep_alive(stream.get_ref().0)?;
                pass.answered();
                Ok(Ready {
                    stream,
                    made_at: Instant::now(),
                    retired_at: until - RETIRED_BEFORE,
                })
            }
            Err(error) => {
                pass.failed();
                tracing::warn!(address = %self.dialer.address, error = crate::causes(&error), "a node cannot be dialled");
                Err(error)
            }
        }
    }

    /// Makes connections ahead, in the background, where there are too few.
    fn make_ready(self: &Arc<Self>) {
        loop {
            let there = self.ready().len();
            let making = self.making.fetch_add(1, Ordering::Relaxed);
            if there + making >= READY_MAX {
                self.making.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let way = Arc::clone(self);
            tokio::spawn(async move {
                let made = way.make().await;
                if let Ok(made) = made {
                    way.ready().insert(0, made);
                }
                way.making.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    /// What tells that the node is dead; somebody feels its pulse from now on.
    fn pulse_of(self: &Arc<Self>) -> CancellationToken {
        let mut pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pulse) = pulse
            .as_ref()
            .filter(|pulse| !pulse.is_over.load(Ordering::Acquire))
        {
            return pulse.dead.clone();
        }
        let (dead, is_over) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        *pulse = Some(Pulse {
            dead: dead.clone(),
            is_over: Arc::clone(&is_over),
        });
        let (way, told) = (Arc::downgrade(self), dead.clone());
        let dialer = self.dialer.clone();
        tokio::spawn(async move {
            let alone = || way.strong_count() == 0;
            if let Err(error) = feel(&dialer, alone).await {
                tracing::warn!(address = %dialer.address, error = crate::causes(&error), "a node does not answer: its streams end");
                told.cancel();
                if let Some(way) = way.upgrade() {
                    way.ready().clear();
                }
            }
            is_over.store(true, Ordering::Release);
        });
        dead
    }
}

/// Says what a connection is for, and hears the verdict.
async fn ask(stream: &mut TlsStream<TcpStream>, preface: Preface) -> io::Result<Verdict> {
    let asking = async {
        stream.write_all(&preface.bytes()).await?;
        stream.flush().await?;
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(Verdict::of(answer))
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the node did not answer");
    tokio::time::timeout(ANSWER_MAX, asking).await.map_err(late)?
}

/// Feels a node's pulse until nobody needs it. An error where it was there, and is not to be felt again.
async fn feel(dialer: &Dialer, is_alone: impl Fn() -> bool) -> io::Result<()> {
    let mut was_there = false;
    while !is_alone() {
        let opened = async {
            let (mut stream, until) = dialer.dial().await?;
            ask(&mut stream, Preface::Pulse).await?;
            Ok::<_, io::Error>((stream, until))
        };
        let (mut stream, until) = match opened.await {
            Ok(opened) => opened,
            Err(error) if was_there => return Err(error),
            // A node that has no time for a handshake may still carry its streams.
            Err(_) => {
                tokio::time::sleep(PING_EVERY).await;
                continue;
            }
        };
        was_there = true;
        while !is_alone() && SystemTime::now() < until - RETIRED_BEFORE {
            tokio::time::sleep(PING_EVERY).await;
            let beat = async {
                stream.write_all(&[1]).await?;
                stream.flush().await?;
                stream.read_exact(&mut [0]).await
            };
            // One more handshake tells whether it is the connection or the node.
            if !matches!(tokio::time::timeout(PING_MAX, beat).await, Ok(Ok(_))) {
                break;
            }
        }
    }
    Ok(())
}

/// A stream that ends with its node.
struct Living {
    stream: TlsStream<TcpStream>,
    /// Reader and writer may be two tasks, and both are to wake.
    dead_to_reader: Dead,
    dead_to_writer: Dead,
    /// As long as there are streams, the pulse is felt.
    _way: Arc<Way>,
}

type Dead = Pin<Box<WaitForCancellationFutureOwned>>;

/// What a stream that has nothing to say says when its node is dead.
fn or_dead<T>(
    outcome: Poll<io::Result<T>>,
    dead: &mut Dead,
    context: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    if outcome.is_pending() && dead.as_mut().poll(context).is_ready() {
        return Poll::Ready(Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the node does not answer any more",
        )));
    }
    outcome
}

impl AsyncRead for Living {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_read(context, buffer);
        or_dead(outcome, &mut this.dead_to_reader, context)
    }
}

impl AsyncWrite for Living {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(context, bytes);
        or_dead(outcome, &mut this.dead_to_writer, context)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(context);
        or_dead(outcome, &mut this.dead_to_writer, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_shutdown(context);
        or_dead(outcome, &mut this.dead_to_writer, context)
    }
}
