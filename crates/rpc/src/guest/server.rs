//! The node's end of streams into its sandboxes.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use model::{NodeId, Seat};
use ports::{Guest, Route};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::access::{self, DIAL};
use crate::guest::preface::{PREFACE_BYTES, Preface, Verdict};
use crate::guest::{COPY_BYTES, IDLE_MAX, keep_alive};
use crate::identity::Certified;

/// A client keeps connections ready for less than this.
const UNUSED_MAX: Duration = IDLE_MAX.saturating_mul(2);

/// Serves streams into the sandboxes of one node.
#[derive(Clone)]
pub(crate) struct GuestService {
    pub(crate) node: NodeId,
    pub(crate) guest: Arc<dyn Guest>,
    pub(crate) room: Arc<Semaphore>,
}

impl GuestService {
    /// Carries one connection from its preface to its end. Dropped, it breaks off on both sides.
    pub(crate) async fn carry(
        &self,
        mut stream: TlsStream<TcpStream>,
        peer: &Certified,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        keep_alive(stream.get_ref().0)?;
        let mut bytes = [0; PREFACE_BYTES];
        tokio::select! {
            read = stream.read_exact(&mut bytes) => read?,
            // Nothing was asked yet.
            () = stop.cancelled() => return stream.shutdown().await,
            () = tokio::time::sleep(UNUSED_MAX) => return stream.shutdown().await,
        };
        let preface = match Preface::of(&bytes) {
            Ok(preface) => preface,
            Err(error) => {
                tracing::warn!(peer = %peer.identity, error = crate::causes(&error), "a dial is refused");
                return end(stream, Verdict::Refused).await;
            }
        };
        if !access::may(peer.identity.role(), DIAL) {
            metrics::counter!("atoll_rpc_refused_total", "what" => "role").increment(1);
            tracing::warn!(peer = %peer.identity, "a dial is refused: its role may not dial into sandboxes");
            return end(stream, Verdict::Refused).await;
        }
        let Preface::Dial {
            sandbox,
            execution,
            port,
        } = preface
        else {
            return pulse(stream).await;
        };
        let Ok(_place) = self.room.try_acquire() else {
            metrics::counter!("atoll_rpc_refused_total", "what" => "calls").increment(1);
            return end(stream, Verdict::Full).await;
        };
        // Who may come in was asked by the edge: here only where it leads matters.
        let route = Route {
            sandbox,
            seat: Seat {
                node: self.node,
                execution,
            },
            version: 0,
            envd_token: None,
            traffic_token: None,
            mask_host: None,
        };
        let mut inside = match self.guest.dial(&route, port).await {
            Ok(inside) => inside,
            Err(error) => {
                tracing::debug!(%sandbox, error = crate::causes(&error), "a dial came to nothing");
                return end(stream, Verdict::of_error(&error)).await;
            }
        };
        stream.write_all(&Verdict::Open.bytes()).await?;
        stream.flush().await?;
        // Each direction has one buffer: who does not read stops who writes.
        tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut inside, COPY_BYTES, COPY_BYTES)
            .await
            .map(drop)
    }
}

async fn end(mut stream: TlsStream<TcpStream>, verdict: Verdict) -> io::Result<()> {
    stream.write_all(&verdict.bytes()).await?;
    stream.shutdown().await
}

/// Sends back what comes, a little at a time.
async fn pulse(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    stream.write_all(&Verdict::Open.bytes()).await?;
    stream.flush().await?;
    let mut bytes = [0; 16];
    loop {
        let read = stream.read(&mut bytes).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&bytes[..read]).await?;
        stream.flush().await?;
    }
}
