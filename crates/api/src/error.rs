//! Every way to fail, as its body (contract 3.1).
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use model::Kind;
use ports::{ManagerError, StoreError};

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
}

impl From<ManagerError> for ApiError {
    fn from(error: ManagerError) -> Self {
        let kind = error.kind();
        if matches!(kind, Kind::Internal | Kind::Unavailable) {
            tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
        }
        Self {
            error_code: error.code(),
            retry_after: error.retry_after(),
            ..Self::new(kind, error.to_string())
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
                    retry_after: Some(Duration::from_secs(1)),
                    ..Self::new(Kind::Unavailable, "the store is away; try again")
                }
            }
        }
    }
}

const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = wire::rest::Error {
            code: status.as_u16(),
            message: self.message,
            error_code: self.error_code.map(str::to_owned),
        };
        let mut response = (status, Json(body)).into_response();
        // Clients try 429 and 503 again by themselves, unless they are told that it does not help (contract 2.4).
        if matches!(self.status, 429 | 503) {
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
