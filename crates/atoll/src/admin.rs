//! Health and metrics, for machines that watch.
use axum::Router;
use axum::routing::get;
use http::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `shutdown`. That it serves says that recovery is over: it is started after it.
pub(crate) async fn serve(listener: TcpListener, metrics: PrometheusHandle, shutdown: CancellationToken) {
    let routes = Router::new()
        .route("/health/live", get(async || StatusCode::NO_CONTENT))
        .route("/health/ready", get(async || StatusCode::NO_CONTENT))
        .route(
            "/metrics",
            get(async move || {
                metrics.run_upkeep();
                metrics.render()
            }),
        );
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
