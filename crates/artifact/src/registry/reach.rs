//! Connections to addresses that may be connected to.
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::policy::{Policy, is_public};

/// A connection on a healthy way is made in milliseconds; this leaves two retransmissions for each of two addresses.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// Names have a handful of addresses.
const ADDRESSES_MAX: usize = 8;

/// Connects where the policy lets it.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    policy: Arc<Policy>,
}

/// A name leads to an address that is not for everybody, and the policy does not name it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{host} has the address {address}, which is not public")]
pub(super) struct Refused {
    pub(super) host: String,
    pub(super) address: IpAddr,
}

impl Reach {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        Self { policy }
    }

    async fn connect(self, url: Uri) -> io::Result<TcpStream> {
        let odd = || io::Error::new(io::ErrorKind::InvalidInput, "the address has no host");
        let authority = url.authority().ok_or_else(odd)?.as_str().to_ascii_lowercase();
        let host = url
            .host()
            .ok_or_else(odd)?
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = url
            .port_u16()
            .unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), port))
            .await?
            .take(ADDRESSES_MAX)
            .collect();
        // What was looked at is what is connected to: the name is not asked again.
        if !self.policy.may_be_private(&authority)
            && let Some(address) = found
                .iter()
                .map(SocketAddr::ip)
                .find(|address| !is_public(*address))
        {
            return Err(io::Error::other(Refused {
                host: authority,
                address,
            }));
        }
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in found {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Service<Uri> for Reach {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let reach = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_WITHIN, reach.connect(url)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "connecting took too long",
                )),
            }
        })
    }
}
