//! One span, one count and one duration for each request.
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tracing::Instrument as _;

use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The method, for the metrics: clients may make up as many as they like, and each would be a series of its own.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Wraps every request: what panics is answered like any other fault of ours.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let id = format!("{:016x}", rand::random::<u64>());
    let span = tracing::info_span!("request", %method, route, id, team = tracing::field::Empty, status = tracing::field::Empty);
    let parent = request.headers().get(ports::trace::TRACEPARENT);
    ports::trace::adopt(&span, parent.and_then(|parent| parent.to_str().ok()));
    let answered = std::panic::AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .instrument(span.clone())
        .await;
    let mut response = answered.unwrap_or_else(|_| {
        span.in_scope(|| tracing::error!("a handler panicked"));
        ApiError::http(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server made a mistake; it is in its log",
        )
        .into_response()
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let elapsed = begun.elapsed();
    span.record("status", response.status().as_u16());
    span.in_scope(|| tracing::debug!(status = response.status().as_u16(), ?elapsed, "answered"));
    metrics::histogram!("atoll_api_request_seconds", "method" => label(&method), "route" => route, "status" => response.status().as_str().to_owned())
        .record(elapsed);
    response
}
