//! Traces for a collector: OTLP as protobuf over HTTP, in batches, behind everybody's back.
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use ports::trace::{TRACEPARENT, Traces};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

/// Where a collector takes spans.
const PATH: &str = "/v1/traces";
/// A collector that needs longer loses the batch: shorter than what the end of the daemon waits for it.
const SEND_WITHIN: Duration = Duration::from_secs(4);
/// An answer says how many spans were refused.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Whose spans are exported: not those of the libraries that carry them.
const OURS: [&str; 7] = ["atoll", "api", "orchestrator", "node", "container", "edge", "sql"];

/// Sends spans from now on, to `endpoint`. Within the runtime that does the sending.
///
/// # Errors
/// The endpoint is no address of HTTP, or the machine's certificate authorities cannot be read.
pub(crate) fn start(endpoint: &str) -> Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(address(endpoint)?.to_string())
        .with_http_client(Wire::new(endpoint.starts_with("https:"))?)
        .build()
        .context("traces cannot be exported")?;
    let resource = Resource::builder_empty()
        .with_service_name("atoll")
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(exporter)
        .build();
    ports::trace::install(W3c);
    Ok(provider)
}

/// What hands the spans of this process over.
pub(crate) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("atoll"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(is_exported).with_max_level_hint(LevelFilter::DEBUG))
}

fn is_exported(metadata: &Metadata<'_>) -> bool {
    let most = if metadata.is_span() {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let from = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= most && OURS.contains(&from)
}

/// The address for spans of a collector's.
fn address(endpoint: &str) -> Result<Uri> {
    let base = endpoint.trim_end_matches('/');
    let whole = if base.ends_with(PATH) {
        base.to_owned()
    } else {
        format!("{base}{PATH}")
    };
    let uri: Uri = whole
        .parse()
        .with_context(|| format!("--otlp-endpoint {endpoint:?} is no address"))?;
    ensure!(
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty()),
        "--otlp-endpoint {endpoint:?} must be http://… or https://…, such as http://127.0.0.1:4318"
    );
    Ok(uri)
}

/// W3C's header, for those who pass it on.
struct W3c;

impl Traces for W3c {
    fn adopt(&self, span: &Span, traceparent: &str) {
        let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
        let context = TraceContextPropagator::new().extract(&carrier);
        if context.span().span_context().is_valid() {
            // Fails for a span that nobody exports, which has no trace to be part of.
            let _ = span.set_parent(context);
        }
    }

    fn traceparent(&self, span: &Span) -> Option<String> {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
        carrier.remove(TRACEPARENT)
    }
}

/// The way to the collector: the exporter's own thread asks, the runtime sends.
#[derive(Debug)]
struct Wire {
    pool: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: tokio::runtime::Handle,
    /// Said once, and not with every batch.
    is_lost: AtomicBool,
}

impl Wire {
    fn new(secure: bool) -> Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = if secure {
            builder
                .with_provider_and_native_roots(provider)
                .context("the machine's certificate authorities cannot be read")?
        } else {
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()?;
            builder.with_tls_config(
                config
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            )
        };
        let connector = builder.https_or_http().enable_http1().build();
        Ok(Self {
            pool: Client::builder(TokioExecutor::new()).build(connector),
            runtime: tokio::runtime::Handle::current(),
            is_lost: AtomicBool::new(false),
        })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let pool = self.pool.clone();
        let exchange = async move {
            let (head, body) = pool.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        // Timers and sockets are the runtime's: the exporter's thread has none.
        let sent = self
            .runtime
            .spawn(async move { tokio::time::timeout(SEND_WITHIN, exchange).await });
        sent.await??
    }
}

#[async_trait]
impl HttpClient for Wire {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let to = request.uri().to_string();
        let answer = self.send(request).await;
        let fault = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let was_lost = self.is_lost.swap(fault.is_some(), Ordering::Relaxed);
        match fault {
            Some(fault) if !was_lost => tracing::warn!(%to, %fault, "traces do not reach the collector"),
            None if was_lost => tracing::info!(%to, "traces reach the collector again"),
            _ => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_go_to_the_collectors_own_path_however_it_is_named() {
        for endpoint in [
            "http://127.0.0.1:4318",
            "http://127.0.0.1:4318/",
            "http://127.0.0.1:4318/v1/traces",
        ] {
            assert_eq!(
                address(endpoint).unwrap().to_string(),
                "http://127.0.0.1:4318/v1/traces"
            );
        }
        assert_eq!(
            address("https://c.test/otlp").unwrap().to_string(),
            "https://c.test/otlp/v1/traces"
        );
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for endpoint in ["127.0.0.1:4318", "grpc://127.0.0.1:4317", "", "http://"] {
            let error = address(endpoint).unwrap_err().to_string();
            assert!(error.contains("--otlp-endpoint"), "{error}");
        }
    }
}
