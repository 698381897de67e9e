//! Requests over HTTP/1.1, in the clear or through TLS, to servers that may be anybody's.
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use wire::rest::LogLevel;

use crate::body::{Body, Progress};
use crate::error::CallError;

/// How long a request may take; the deadline that E2B's clients have too (contract 2.4).
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A connection on a healthy way is made in milliseconds; this leaves two retransmissions.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// An answer that is read whole: a thousand log lines of 16 KiB fit.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// An error's body; what is longer is not shown to people anyway.
const ERROR_BYTES_MAX: usize = 64 << 10;
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("atoll/", env!("CARGO_PKG_VERSION")));

/// A pool of connections. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Transport(Pool<HttpsConnector<HttpConnector<Resolver>>, Body>);

/// An answer that was read whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_slice(&self.body).map_err(CallError::garbled)
    }
}

impl Transport {
    /// A pool; `secure` where TLS may be asked for, which needs the machine's certificate authorities.
    pub(crate) fn new(secure: bool) -> Result<Self, CallError> {
        let provider = rustls::crypto::ring::default_provider();
        let connector = HttpsConnectorBuilder::new();
        let connector = if secure {
            connector
                .with_provider_and_native_roots(provider)
                .map_err(CallError::Authorities)?
        } else {
            let config = rustls::ClientConfig::builder_with_provider(provider.into());
            let config = config
                .with_safe_default_protocol_versions()
                .expect("ring speaks TLS 1.2 and 1.3");
            connector.with_tls_config(
                config
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            )
        };
        let mut plain = HttpConnector::new_with_resolver(Resolver);
        plain.enforce_http(false);
        plain.set_nodelay(true);
        plain.set_connect_timeout(Some(CONNECT_WITHIN));
        let connector = connector.https_or_http().enable_http1().wrap_connector(plain);
        Ok(Self(
            Pool::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .build(connector),
        ))
    }

    /// Sends a request and waits for the head of a good answer; a bad one is read and becomes an error. Without a
    /// deadline, the caller has its own reason to stop waiting.
    pub(crate) async fn open(
        &self,
        mut request: Request<Body>,
        within: Option<Duration>,
    ) -> Result<Response<Incoming>, CallError> {
        let server = request
            .uri()
            .authority()
            .map_or_else(String::new, ToString::to_string);
        request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
        let sent = self.0.request(request);
        let answered = match within {
            None => sent.await,
            Some(within) => {
                let late = |_| CallError::Late {
                    server: server.clone(),
                    within,
                };
                tokio::time::timeout(within, sent).await.map_err(late)?
            }
        };
        let answer = answered.map_err(|source| CallError::Unreachable { server, source })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let read = tokio::time::timeout(
            ANSWER_WITHIN,
            Limited::new(answer.into_body(), ERROR_BYTES_MAX).collect(),
        )
        .await;
        let body = read
            .ok()
            .and_then(Result::ok)
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        Err(CallError::refused(status, &body))
    }

    /// Sends a request whose body is read as the server takes it, and waits for the head of a good answer as long as the
    /// server takes more.
    pub(crate) async fn upload(
        &self,
        request: Request<Body>,
        progress: &Progress,
    ) -> Result<Answer, CallError> {
        let server = request
            .uri()
            .authority()
            .map_or_else(String::new, ToString::to_string);
        let answered = tokio::select! {
            biased;
            answered = self.open(request, None) => answered,
            within = progress.stalled() => Err(CallError::Stalled { server, within }),
        };
        match (answered, progress.failure()) {
            (Ok(answer), _) => read(answer).await,
            (Err(error @ CallError::Refused { .. }), _) | (Err(error), None) => Err(error),
            (Err(_), Some(source)) => Err(CallError::Source(source)),
        }
    }

    /// Sends a request and reads all of a good answer.
    pub(crate) async fn call(
        &self,
        request: Request<Body>,
        within: Option<Duration>,
    ) -> Result<Answer, CallError> {
        read(self.open(request, within).await?).await
    }
}

/// Reads all of an answer.
async fn read(answer: Response<Incoming>) -> Result<Answer, CallError> {
    let (head, body) = answer.into_parts();
    let read = tokio::time::timeout(ANSWER_WITHIN, Limited::new(body, ANSWER_BYTES_MAX).collect()).await;
    let read = read.map_err(|_| CallError::Late {
        server: "the server".to_owned(),
        within: ANSWER_WITHIN,
    })?;
    let body = read.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(cut) => CallError::Cut(*cut),
        Err(_) => CallError::garbled(format!("it is longer than {ANSWER_BYTES_MAX} bytes")),
    })?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: body.to_bytes(),
    })
}

/// A header's value out of something that a person wrote.
pub(crate) fn header_value(what: &'static str, text: &str) -> Result<HeaderValue, CallError> {
    HeaderValue::from_str(text).map_err(|_| CallError::Unsendable { what })
}

/// A level, as queries name it.
pub(crate) const fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

/// Names below `localhost` are this machine (RFC 6761, section 6.3), whatever its resolver thinks; others are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolver;

type Resolving = Pin<Box<dyn Future<Output = io::Result<std::vec::IntoIter<SocketAddr>>> + Send>>;

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Resolving;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), io::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port is the connector's to fill in.
            if is_below_localhost(name.as_str()) {
                return Ok(vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)].into_iter());
            }
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(found.into_iter())
        })
    }
}

fn is_below_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() > ".localhost".len() && name.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_localhost_are_this_machine() {
        assert!(is_below_localhost("49983-i0.atoll.localhost"));
        assert!(is_below_localhost("Sandbox.Atoll.LOCALHOST."));
        assert!(!is_below_localhost("localhost"));
        assert!(!is_below_localhost("notlocalhost"));
        assert!(!is_below_localhost("localhost.example"));
    }
}
