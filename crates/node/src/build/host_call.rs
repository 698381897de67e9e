//! What a lab's envd does beside running commands: `POST /host/…` on its host-only socket.
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body::Body;
use http_body_util::Full;
use ports::Machine;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::host_calls::Refused;

use super::connection::{self, ConnectionError};
use super::talk::cut;

/// Answers hold a path or the variables of a step: both are bounded by what was asked.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Longer messages are cut.
const MESSAGE_BYTES_MAX: usize = 2 << 10;

/// Why envd did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostCallError {
    /// It refused: the step is wrong, the disk is full, or something is broken inside.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    /// envd went away.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// Asks with a question of a few bytes.
pub(super) async fn ask<A: DeserializeOwned>(
    machine: &dyn Machine,
    path: &str,
    question: &impl Serialize,
) -> Result<A, HostCallError> {
    let body = serde_json::to_vec(question).map_err(|error| ConnectionError::Garbled(error.to_string()))?;
    send(machine, path, "application/json", Full::new(Bytes::from(body))).await
}

/// Asks with a body that may be long.
pub(super) async fn send<A: DeserializeOwned, B>(
    machine: &dyn Machine,
    target: &str,
    kind: &str,
    body: B,
) -> Result<A, HostCallError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let garbled = |error: String| ConnectionError::Garbled(error);
    let request = Request::builder()
        .method(Method::POST)
        .uri(target)
        .header(header::HOST, "envd")
        .header(header::CONTENT_TYPE, kind)
        .body(body)
        .map_err(|error| garbled(error.to_string()))?;
    let mut answer = connection::ask(machine, request).await?;
    let status = answer.head.status;
    let told = answer.whole(ANSWER_BYTES_MAX).await?;
    if status.is_success() {
        return serde_json::from_slice(&told).map_err(|error| garbled(error.to_string()).into());
    }
    let message = serde_json::from_slice::<Refused>(&told).map_or_else(
        |_| format!("envd answered {status}"),
        |refused| cut(&refused.message, MESSAGE_BYTES_MAX),
    );
    Err(HostCallError::Refused { status, message })
}
