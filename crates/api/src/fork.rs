//! Copies of running sandboxes, at once (contract 3.5).
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use wire::rest::{ForkSandbox, Forked};

use crate::Api;
use crate::auth::Caller;
use crate::body::{MaybeBody, PathSandbox};
use crate::create::{Version, timeout};
use crate::error::ApiError;

/// Copies of one request.
const COPIES_MAX: u32 = 100;

/// Start copies of a running sandbox, which goes on.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/fork", tag = "sandboxes", request_body = Option<ForkSandbox>,
    params(("sandboxID" = String, Path)),
    responses((status = 201, description = "What became of each.", body = Vec<Forked>)))]
pub(crate) async fn fork(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    MaybeBody(body): MaybeBody<ForkSandbox>,
) -> Result<(StatusCode, Json<Vec<Forked>>), ApiError> {
    let quota = &caller.team.quota;
    let timeout = timeout(body.timeout.unwrap_or(Version::V1.default_timeout()), quota)?;
    let count = count(body.count.unwrap_or(1), quota.sandboxes)?;
    let forked = api.parts.manager.fork(caller.team.id, id, count, timeout).await?;
    let told = forked.into_iter().map(|copy| match copy {
        Ok(granted) => Forked {
            sandbox: Some(api.granted(&granted)),
            error: None,
        },
        Err(error) => Forked {
            sandbox: None,
            error: Some(ApiError::from(error).body()),
        },
    });
    Ok((StatusCode::CREATED, Json(told.collect())))
}

/// How many copies. One sandbox of the team's is the one that is copied.
fn count(count: i64, sandboxes_max: u32) -> Result<u32, ApiError> {
    let count = u32::try_from(count)
        .ok()
        .filter(|count| (1..=COPIES_MAX).contains(count));
    let count =
        count.ok_or_else(|| ApiError::invalid(format!("'count' must be a number in 1..={COPIES_MAX}")))?;
    if count < sandboxes_max {
        Ok(count)
    } else {
        Err(ApiError::invalid(format!(
            "'count' must be less than the team's sandboxes may be at once, {sandboxes_max}"
        )))
    }
}
