//! Health and metrics, for machines that watch.
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use axum::Router;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;
use crate::telemetry::{self, Telemetry};

/// What may be ready.
#[async_trait]
pub(crate) trait Ready: Send + Sync {
    /// Whether it can do what it is there for; if not, what keeps it.
    async fn ready(&self) -> Result<(), &'static str>;
}

/// What serves, once it is recovered.
pub(crate) type Opened = Arc<OnceLock<Arc<dyn Ready>>>;

/// Has health and metrics served from now on; whoever opens what serves says so by what this returns.
pub(crate) fn begin(listener: TcpListener, telemetry: &Telemetry, tasks: &mut Tasks) -> Opened {
    let opened = Opened::default();
    let (metrics, stop) = (telemetry.metrics.clone(), tasks.stop());
    tasks.spawn("the upkeep of metrics", telemetry::upkeep(metrics, stop));
    let (metrics, stop) = (telemetry.metrics.clone(), tasks.stop());
    tasks.spawn(
        "the admin listener",
        serve(listener, metrics, Arc::clone(&opened), stop),
    );
    opened
}

/// Serves until `shutdown`: from before recovery on, so that whoever watches can tell a long recovery from a dead daemon.
async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    opened: Opened,
    shutdown: CancellationToken,
) {
    let routes = Router::new()
        .route("/health/live", get(async || StatusCode::NO_CONTENT))
        .route("/health/ready", get(async move || ready(opened.get()).await))
        .route("/metrics", get(async move || metrics.render()));
    let served = axum::serve(listener, routes)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the admin listener ended"
        );
    }
}

async fn ready(opened: Option<&Arc<dyn Ready>>) -> Response {
    let outcome = match opened {
        Some(opened) => opened.ready().await,
        None => Err("what earlier daemons left is being recovered"),
    };
    match outcome {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_daemon_that_recovers_is_alive_and_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, metrics.handle(), Opened::default(), stop.clone()));
        assert!(ask(address, "/health/live").await.starts_with("HTTP/1.1 204 "));
        let ready = ask(address, "/health/ready").await;
        assert!(
            ready.starts_with("HTTP/1.1 503 ") && ready.contains("recovered"),
            "{ready}"
        );
        stop.cancel();
        served.await.unwrap();
    }
}
