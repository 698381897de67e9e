//! Logs, metrics and traces.
use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::settings::Resolved;
use crate::traces;

/// From a tenth of a millisecond to a minute: a create is in the middle.
const SECONDS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0,
    5.0, 15.0, 60.0,
];

/// What was started.
pub(crate) struct Telemetry {
    pub(crate) metrics: PrometheusHandle,
    traces: Option<SdkTracerProvider>,
}

/// Starts logs, metrics and, where a collector is named, traces. Once in a process, within its runtime.
pub(crate) fn start(settings: &Resolved) -> Result<Telemetry> {
    let filter = EnvFilter::try_new(&settings.log)
        .with_context(|| format!("--log {:?} is no filter", settings.log))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if settings.log_json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines.with_ansi(false).boxed()
    };
    let traces = settings.otlp_endpoint.as_deref().map(traces::start).transpose()?;
    tracing_subscriber::registry()
        .with(traces.as_ref().map(traces::layer))
        .with(lines.with_filter(filter))
        .try_init()
        .context("logs cannot be started")?;
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()
        .context("metrics cannot be started")?;
    Ok(Telemetry { metrics, traces })
}

/// How often what was measured is put into its histogram: until then, every sample is kept by itself.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Keeps the memory of the metrics bounded, also where nobody reads them; until `stop`.
pub(crate) async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => metrics.run_upkeep(),
        }
    }
}

impl Telemetry {
    /// Sends what has not been sent.
    pub(crate) fn flush(&self) {
        self.metrics.run_upkeep();
        if let Some(Err(error)) = self.traces.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the last traces were not sent"
            );
        }
    }
}
