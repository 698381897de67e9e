//! What becomes of a sandbox: connect, resume, pause, restart, kill, and the end of its time (contract 3.5).
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::PauseMode;
use ports::manager::Connected;
use wire::rest::{ConnectSandbox, PauseSandbox, RefreshSandbox, ResumeSandbox, Sandbox, SetTimeout};

use crate::Api;
use crate::auth::Caller;
use crate::body::{Body, MaybeBody, PathSandbox};
use crate::create::{Version, timeout};
use crate::error::ApiError;

type Answer = Result<(StatusCode, Json<Sandbox>), ApiError>;

/// Use a sandbox, waking it if it is paused (older clients).
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/connect", tag = "sandboxes", request_body = ConnectSandbox,
    params(("sandboxID" = String, Path)),
    responses((status = 200, description = "It was running.", body = Sandbox), (status = 201, description = "It was resumed.", body = Sandbox)))]
pub(crate) async fn connect_v1(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    Body(body): Body<ConnectSandbox>,
) -> Answer {
    if body.timeout.is_none() {
        return Err(ApiError::invalid("'timeout' is missing"));
    }
    connect(&api, &caller, id, Version::V1, body).await
}

/// Use a sandbox, waking it if it is paused.
#[utoipa::path(post, path = "/v2/sandboxes/{sandboxID}/connect", tag = "sandboxes", request_body = Option<ConnectSandbox>,
    params(("sandboxID" = String, Path)),
    responses((status = 200, description = "It was running.", body = Sandbox), (status = 201, description = "It was resumed.", body = Sandbox)))]
pub(crate) async fn connect_v2(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    MaybeBody(body): MaybeBody<ConnectSandbox>,
) -> Answer {
    connect(&api, &caller, id, Version::V2, body).await
}

async fn connect(
    api: &Api,
    caller: &Caller,
    id: model::SandboxId,
    version: Version,
    body: ConnectSandbox,
) -> Answer {
    let timeout = timeout(
        body.timeout.unwrap_or(version.default_timeout()),
        &caller.team.quota,
    )?;
    Ok(
        match api
            .parts
            .manager
            .connect(caller.team.id, id, timeout, mode(body.memory))
            .await?
        {
            Connected::Running(granted) => (StatusCode::OK, Json(api.granted(&granted))),
            Connected::Resumed(granted) => (StatusCode::CREATED, Json(api.granted(&granted))),
        },
    )
}

/// What `memory` means: `false` does without it.
fn mode(memory: Option<bool>) -> PauseMode {
    match memory {
        Some(false) => PauseMode::Filesystem,
        None | Some(true) => PauseMode::Full,
    }
}

/// Wake a paused sandbox.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/resume", tag = "sandboxes", request_body = Option<ResumeSandbox>,
    params(("sandboxID" = String, Path)), responses((status = 201, description = "It runs.", body = Sandbox)))]
pub(crate) async fn resume(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    MaybeBody(body): MaybeBody<ResumeSandbox>,
) -> Answer {
    let timeout = timeout(
        body.timeout.unwrap_or(Version::V1.default_timeout()),
        &caller.team.quota,
    )?;
    let granted = api
        .parts
        .manager
        .resume(caller.team.id, id, timeout, mode(body.memory), body.auto_pause)
        .await?;
    Ok((StatusCode::CREATED, Json(api.granted(&granted))))
}

/// Pause a sandbox.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/pause", tag = "sandboxes", request_body = Option<PauseSandbox>,
    params(("sandboxID" = String, Path)), responses((status = 204, description = "It is paused, and can be resumed.")))]
pub(crate) async fn pause(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    MaybeBody(body): MaybeBody<PauseSandbox>,
) -> Result<StatusCode, ApiError> {
    api.parts
        .manager
        .pause(
            caller.team.id,
            id,
            mode(body.memory),
            body.require_healthy_guest.unwrap_or(false),
        )
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reboot a running sandbox from its disk: same id, same tokens. Atoll's own.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/restart", tag = "sandboxes",
    params(("sandboxID" = String, Path)), responses((status = 200, description = "It runs again.", body = Sandbox)))]
pub(crate) async fn restart(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Answer {
    let granted = api.parts.manager.restart(caller.team.id, id).await?;
    Ok((StatusCode::OK, Json(api.granted(&granted))))
}

/// End a sandbox, running or paused.
#[utoipa::path(delete, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)), responses((status = 204, description = "Nothing of it can be reached any more.")))]
pub(crate) async fn kill(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<StatusCode, ApiError> {
    api.parts.manager.kill(caller.team.id, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Set the end of a running sandbox's time.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/timeout", tag = "sandboxes", request_body = SetTimeout,
    params(("sandboxID" = String, Path)), responses((status = 204, description = "It is set.")))]
pub(crate) async fn set_timeout(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    Body(body): Body<SetTimeout>,
) -> Result<StatusCode, ApiError> {
    // Absolute from now, and in the past means now (contract 3.5).
    let timeout = Duration::from_secs(u64::try_from(body.timeout).unwrap_or(0));
    api.parts.manager.set_timeout(caller.team.id, id, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Move the end of a running sandbox's time on.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/refreshes", tag = "sandboxes", request_body = Option<RefreshSandbox>,
    params(("sandboxID" = String, Path)), responses((status = 204, description = "It lives at least that long.")))]
pub(crate) async fn refresh(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    MaybeBody(body): MaybeBody<RefreshSandbox>,
) -> Result<StatusCode, ApiError> {
    /// Bounds of the contract, in seconds.
    const RANGE: std::ops::RangeInclusive<i64> = 0..=3600;
    const MIN: i64 = 15;
    let duration = body.duration.unwrap_or(MIN);
    if !RANGE.contains(&duration) {
        return Err(ApiError::invalid("'duration' must be 0..=3600 seconds"));
    }
    let seconds = u64::try_from(duration.max(MIN)).unwrap_or(0);
    api.parts
        .manager
        .refresh(caller.team.id, id, Duration::from_secs(seconds))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
