//! Talking to a sandbox's envd on its host-only socket. What it answers is a guest's: bounded, and believed as little as
//! need be.
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use ports::Machine;
use serde::Serialize;
use tracing::Instrument as _;
use wire::host_calls::Quiesce;
use wire::init::{Init, LogEntries, Shutdown};

/// An answer of envd to its node is small; a guest that sends more is not envd.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Settings are taken in a millisecond; a sandbox that swaps or has just been thawed needs longer.
const INIT_WITHIN: Duration = Duration::from_secs(10);
/// A healthy envd answers at once.
const HEALTH_WITHIN: Duration = Duration::from_secs(2);
/// What requests have to come to their end before memory is written down. Streams do not end by themselves, however long
/// they are given: whoever follows one begins anew.
const QUIESCE_GRACE: Duration = Duration::from_secs(1);
/// What processes have between SIGTERM and SIGKILL when a sandbox is shut down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// envd did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvdError {
    #[error("envd cannot be reached")]
    Dial(#[from] ports::DialError),
    #[error("talking to envd failed")]
    Http(#[from] hyper::Error),
    #[error("envd's answer is broken or too long")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("envd answered {0}")]
    Status(StatusCode),
    #[error("envd did not answer in time")]
    Late(#[from] tokio::time::error::Elapsed),
}

/// Tells envd its settings.
pub(crate) async fn init(machine: &dyn Machine, init: &Init) -> Result<(), EnvdError> {
    let span = tracing::debug_span!(
        "envd.init",
        otel.kind = "client",
        sandbox = init.sandbox_id,
        execution = init.lifecycle_id
    );
    let told = async { ask(machine, Method::POST, "/init", Some(init), INIT_WITHIN).await };
    told.instrument(span).await.map(drop)
}

/// Whether envd answers.
pub(crate) async fn is_healthy(machine: &dyn Machine) -> bool {
    ask(machine, Method::GET, "/health", None::<&()>, HEALTH_WITHIN)
        .await
        .is_ok()
}

/// Ends all processes in good order, and has everything written to the disk.
pub(crate) async fn shut_down(machine: &dyn Machine) -> Result<(), EnvdError> {
    let grace_ms = u64::try_from(SHUTDOWN_GRACE.as_millis()).unwrap_or(0);
    ask(
        machine,
        Method::POST,
        "/host/shutdown",
        Some(&Shutdown { grace_ms }),
        SHUTDOWN_GRACE * 4,
    )
    .await
    .map(drop)
}

/// Asks envd to hold no connection of its host, because none can be written down with its memory. One that does not know
/// this, or does not answer, is copied as it is: whether that works is the copy's to say. Nobody may connect meanwhile.
pub(crate) async fn quiesce(machine: &dyn Machine) {
    let quiesce = Quiesce {
        grace_ms: u64::try_from(QUIESCE_GRACE.as_millis()).unwrap_or(0),
    };
    let asked = tokio::time::timeout(QUIESCE_GRACE + HEALTH_WITHIN, async {
        exchange(
            machine,
            Method::POST,
            "/host/quiesce",
            Some(&quiesce),
            Until::Closed,
        )
        .await
    });
    match asked.await.map_err(EnvdError::from).flatten() {
        Ok(_) | Err(EnvdError::Status(StatusCode::NOT_FOUND)) => {}
        Err(error) => {
            tracing::warn!(sandbox = %machine.sandbox(), error = &error as &dyn std::error::Error, "envd was not made quiet before a copy of its memory");
        }
    }
}

/// What envd has logged since.
pub(crate) async fn logs(machine: &dyn Machine, after: u64) -> Result<LogEntries, EnvdError> {
    let answer = ask(
        machine,
        Method::GET,
        &format!("/host/logs?after={after}"),
        None::<&()>,
        HEALTH_WITHIN,
    )
    .await?;
    serde_json::from_slice(&answer).map_err(|error| EnvdError::Answer(error.into()))
}

async fn ask(
    machine: &dyn Machine,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
    within: Duration,
) -> Result<Bytes, EnvdError> {
    tokio::time::timeout(within, exchange(machine, method, path, body, Until::Answered)).await?
}

/// How long a conversation is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Answered,
    /// Until envd has closed the connection.
    Closed,
}

async fn exchange(
    machine: &dyn Machine,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
    until: Until,
) -> Result<Bytes, EnvdError> {
    let stream = machine.envd().await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let body = body
        .map(serde_json::to_vec)
        .transpose()
        .map_err(|error| EnvdError::Answer(error.into()))?;
    let mut request = Request::builder().method(method).uri(path);
    if let Some(traceparent) = ports::trace::traceparent(&tracing::Span::current()) {
        request = request.header(ports::trace::TRACEPARENT, traceparent);
    }
    let request = request
        .header(http::header::HOST, "envd")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|error| EnvdError::Answer(error.into()))?;
    let talk = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(EnvdError::Answer)?;
        if status.is_success() {
            Ok(body.to_bytes())
        } else {
            Err(EnvdError::Status(status))
        }
    };
    tokio::pin!(connection);
    // One task for both ends: nothing is left behind when the caller gives up.
    let (answer, is_closed) = {
        tokio::pin!(talk);
        tokio::select! {
            answer = &mut talk => (answer, false),
            ended = &mut connection => {
                ended?;
                (talk.await, true)
            }
        }
    };
    if until == Until::Closed && !is_closed && answer.is_ok() {
        drop(sender);
        connection.await?;
    }
    answer
}
