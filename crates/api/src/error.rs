//! Every way to fail, as its body (contract 3.1).
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use model::Kind;
use ports::volumes::FileError;
use ports::{ManagerError, StoreError, TemplateError, VolumeError};
use serde::Serialize;

/// A request that was not carried out.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: u16,
    message: String,
    error_code: Option<&'static str>,
    /// For statuses that clients try again on: when, or not at all.
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            status: wire::status::http(kind),
            message: message.into(),
            error_code: None,
            retry_after: None,
        }
    }
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }
    /// A status that no kind stands for: those of HTTP itself.
    pub(crate) fn http(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            message: message.into(),
            error_code: None,
            retry_after: None,
        }
    }
    pub(crate) fn exhausted(message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(Kind::Exhausted, message)
        }
    }
    pub(crate) fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(Kind::Unavailable, message)
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// As every body of the API tells it, also where it is one of several results.
    pub(crate) fn body(&self) -> wire::rest::Error {
        wire::rest::Error {
            code: self.status().as_u16(),
            message: self.message.clone(),
            error_code: self.error_code.map(str::to_owned),
        }
    }
}

impl From<ManagerError> for ApiError {
    fn from(error: ManagerError) -> Self {
        // The manager has logged it, with the ids, where it is a fault.
        let answer = match error {
            // The request is well formed, and at odds with another: published clients know this status for it.
            ManagerError::IdempotencyMismatch => {
                Self::http(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            _ => Self::new(error.kind(), error.to_string()),
        };
        Self {
            error_code: error.code(),
            retry_after: error.retry_after(),
            ..answer
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing => Self::not_found("the object does not exist"),
            StoreError::Conflict => Self::new(
                Kind::Conflict,
                "the object was changed by somebody else; try again",
            ),
            StoreError::Away(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                Self {
                    retry_after: error.retry_after(),
                    ..Self::new(Kind::Unavailable, "the store is away; try again")
                }
            }
        }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::Manager(error) => error.into(),
            error => Self::new(error.kind(), error.to_string()),
        }
    }
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::Manager(error) => error.into(),
            error => Self::new(error.kind(), error.to_string()),
        }
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Full => Self::http(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
            FileError::Failed { .. } => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a volume's files failed"
                );
                Self::new(error.kind(), format!("{error}; the error is in the server's log"))
            }
            error => Self::new(error.kind(), error.to_string()),
        }
    }
}

const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.body();
        self.with_body(body)
    }
}

impl ApiError {
    /// The answer, with a body of its own kind.
    pub(crate) fn with_body(self, body: impl Serialize) -> Response {
        let mut response = (self.status(), Json(body)).into_response();
        // Clients try these again by themselves, unless they are told that it does not help (contract 2.4), or may do twice
        // what was perhaps done: what took too long may have happened.
        if matches!(self.status, 429 | 502 | 503 | 504) {
            let headers = response.headers_mut();
            match self.retry_after {
                Some(after) => {
                    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
                    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
                    headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
                }
                None => {
                    headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
                }
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use model::SandboxId;

    use super::*;

    /// The status, `Should-Retry`, and the code of an error.
    fn check(error: impl Into<ApiError>, status: u16, should_retry: Option<&str>, code: Option<&str>) {
        let error = error.into();
        assert_eq!(error.error_code, code, "{error:?}");
        let text = format!("{error:?}");
        let response = error.into_response();
        assert_eq!(response.status().as_u16(), status, "{text}");
        let told = response.headers().get(SHOULD_RETRY);
        assert_eq!(told.map(|told| told.to_str().unwrap()), should_retry, "{text}");
        let after = response.headers().contains_key(header::RETRY_AFTER);
        assert_eq!(after, should_retry == Some("true"), "{text}");
    }

    fn failed(kind: Kind, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ManagerError {
        ManagerError::Failed {
            step: "storing the sandbox",
            kind,
            source: source.into(),
        }
    }

    fn away() -> StoreError {
        StoreError::Away("locked".into())
    }

    #[test]
    fn clients_are_told_whether_to_send_it_again() {
        check(ManagerError::Timeout("the pause"), 504, Some("false"), None);
        check(failed(Kind::Timeout, "late"), 504, Some("false"), None);
        check(failed(Kind::Unavailable, "broken"), 503, Some("false"), None);
        check(ManagerError::ShuttingDown, 503, Some("false"), None);
        check(
            ManagerError::GuestUnhealthy(SandboxId::random()),
            503,
            Some("false"),
            None,
        );
        let full = ManagerError::NoCapacity("its node is out of slots".to_owned());
        check(full, 503, Some("true"), Some("sandbox_capacity_unavailable"));
        check(failed(Kind::Internal, "broken"), 500, None, None);
        check(
            ApiError::http(StatusCode::BAD_GATEWAY, "?"),
            502,
            Some("false"),
            None,
        );
    }

    #[test]
    fn a_store_that_is_away_looks_the_same_to_readers_and_to_writers() {
        check(away(), 503, Some("true"), None);
        check(failed(Kind::Unavailable, away()), 503, Some("true"), None);
    }

    #[test]
    fn failures_of_templates_volumes_and_files_have_the_statuses_of_the_contract() {
        check(TemplateError::NotFound("a".to_owned()), 404, None, None);
        check(TemplateError::Forbidden("a".to_owned()), 403, None, None);
        check(TemplateError::NotWaiting, 400, None, None);
        check(TemplateError::Exhausted("a".to_owned()), 429, Some("false"), None);
        check(
            TemplateError::Manager(ManagerError::Timeout("it")),
            504,
            Some("false"),
            None,
        );
        check(
            TemplateError::Manager(failed(Kind::Unavailable, away())),
            503,
            Some("true"),
            None,
        );
        check(VolumeError::NotFound, 404, None, None);
        check(VolumeError::Exists("a".to_owned()), 400, None, None);
        check(
            VolumeError::Manager(ManagerError::ShuttingDown),
            503,
            Some("false"),
            None,
        );
        check(FileError::Full, 507, None, None);
        check(FileError::NotFound("/a".to_owned()), 404, None, None);
        check(FileError::Exists("/a".to_owned()), 409, None, None);
        let (volume, node) = (model::VolumeId::random(), model::NodeId::random());
        check(FileError::Away { volume, node }, 503, Some("false"), None);
        check(FileError::Lost { volume, node }, 409, None, None);
        check(FileError::Crowded, 503, Some("false"), None);
        check(ManagerError::VolumeLost("a".to_owned()), 409, None, None);
        let source = std::io::Error::other("broken");
        check(
            FileError::Failed {
                step: "reading",
                source,
            },
            500,
            None,
            None,
        );
        let saved = ManagerError::CannotCheckpoint {
            id: SandboxId::random(),
            why: "a socket is open".to_owned(),
        };
        check(saved, 409, None, Some("sandbox_memory_not_saved"));
        check(ManagerError::ForkPaused(SandboxId::random()), 409, None, None);
    }

    #[test]
    fn idempotency_has_its_published_statuses_and_codes() {
        let mismatch = Some("idempotency_request_mismatch");
        check(ManagerError::IdempotencyMismatch, 422, None, mismatch);
        let in_progress = Some("idempotency_in_progress");
        check(ManagerError::IdempotencyInProgress, 409, None, in_progress);
        let unknown = Some("idempotency_outcome_unknown");
        check(ManagerError::IdempotencyOutcomeUnknown, 409, None, unknown);
    }
}
