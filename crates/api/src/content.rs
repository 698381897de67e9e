//! What is in volumes (contract, section 6): asked for with a token of the volume's own, also by browsers.
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use model::{Kind, TeamId, VolumeId};
use ports::limits::Rate;
use ports::volumes::{FileKind, FileStat, Ownership};
use wire::rest::{ChangeVolumeEntry, VolumeContentError, VolumeEntry, VolumeEntryKind};

use crate::body::{Body, PathText, Query};
use crate::convert::time;
use crate::error::ApiError;
use crate::{Api, incoming};

/// No path of Linux is longer.
const PATH_BYTES_MAX: usize = 4_096;
/// Directories below one another, in one list.
const DEPTH_MAX: u32 = 64;
/// Permission bits of a file, with those for set-uid, set-gid and sticky.
const MODE_MAX: u32 = 0o7777;
/// A token that is longer is nobody's.
const TOKEN_BYTES_MAX: usize = 4_096;
/// Requests for the content of one volume.
const REQUESTS: Rate = Rate {
    per_second: 1_000,
    burst: 2_000,
};
/// How long a browser may remember what it may ask, in seconds.
const PREFLIGHT_KEPT: HeaderValue = HeaderValue::from_static("86400");

/// The routes.
pub(crate) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route(
            "/volumecontent/{volumeID}/path",
            get(stat).patch(change).delete(remove).options(preflight),
        )
        .route(
            "/volumecontent/{volumeID}/dir",
            get(list).post(make_dir).options(preflight),
        )
        .route(
            "/volumecontent/{volumeID}/file",
            get(read).put(write).options(preflight),
        )
        .layer(middleware::from_fn(shared))
}

/// Whether a path is one of these routes: errors have another body there.
pub(crate) fn is_content(path: &str) -> bool {
    path.starts_with("/volumecontent/")
}

/// Lets scripts of any site read the answers: who has no token learns nothing from them, and no cookie stands for one.
async fn shared(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let any = HeaderValue::from_static("*");
    response
        .headers_mut()
        .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
    response
}

/// What scripts of any site may ask.
async fn preflight() -> (StatusCode, [(HeaderName, HeaderValue); 3]) {
    // The star stands for every header but `Authorization`.
    let allowed = [
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE"),
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("Authorization, *"),
        ),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_KEPT),
    ];
    (StatusCode::NO_CONTENT, allowed)
}

/// A failure, with this part's body: its code is a word.
pub(crate) struct ContentError(ApiError);

impl<E: Into<ApiError>> From<E> for ContentError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ContentError {
    fn into_response(self) -> Response {
        let code = match self.0.status() {
            StatusCode::BAD_REQUEST => "invalid",
            StatusCode::UNAUTHORIZED => "unauthenticated",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::REQUEST_TIMEOUT => "timeout",
            StatusCode::CONFLICT => "conflict",
            StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
            StatusCode::TOO_MANY_REQUESTS => "exhausted",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            StatusCode::GATEWAY_TIMEOUT => "timeout",
            StatusCode::INSUFFICIENT_STORAGE => "no_space",
            _ => "internal",
        };
        let body = VolumeContentError {
            code: code.to_owned(),
            message: self.0.message().to_owned(),
        };
        self.0.with_body(body)
    }
}

/// A volume whose token came with the request.
pub(crate) struct Opened(VolumeId);

impl FromRequestParts<Arc<Api>> for Opened {
    type Rejection = ContentError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ContentError> {
        let refused = || {
            ApiError::new(
                Kind::Unauthenticated,
                "Invalid volume token: get the volume anew for another",
            )
        };
        let token = bearer(&parts.headers).ok_or_else(|| {
            ApiError::new(
                Kind::Unauthenticated,
                "The content of a volume needs its token: send it as Authorization: Bearer",
            )
        })?;
        let token = token
            .filter(|token| token.len() <= TOKEN_BYTES_MAX)
            .ok_or_else(refused)?
            .to_owned();
        let PathText(id) = PathText::from_request_parts(parts, api).await?;
        let id: VolumeId = id.parse().map_err(|_| refused())?;
        if !api.parts.volumes.admits(id, &token).await? {
            return Err(refused().into());
        }
        // Whoever asks is known as the volume alone.
        let taken = api
            .parts
            .limits
            .take(TeamId(id.0), "volume content", REQUESTS)
            .await;
        taken.map_err(|wait| ApiError::exhausted("the volume's rate of requests is used up", wait))?;
        Ok(Self(id))
    }
}

/// The bearer's token; `Some(None)`: something else was presented.
fn bearer(headers: &HeaderMap) -> Option<Option<&str>> {
    let value = headers.get(header::AUTHORIZATION)?;
    let token = value
        .to_str()
        .ok()
        .and_then(|value| value.strip_prefix("Bearer "));
    Some(token.map(str::trim))
}

fn path(query: &Query) -> Result<&str, ApiError> {
    let path = query
        .get("path")
        .ok_or_else(|| ApiError::invalid("query parameter 'path' is missing"))?;
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(ApiError::invalid(format!(
            "query parameter 'path' must be 1..={PATH_BYTES_MAX} bytes without NUL"
        )));
    }
    Ok(path)
}

fn ownership(query: &Query) -> Result<Ownership, ApiError> {
    let mode = query.parsed("mode", "permission bits as a number in 0..=4095")?;
    bounded(Ownership {
        uid: query.parsed("uid", "a number in 0..=4294967295")?,
        gid: query.parsed("gid", "a number in 0..=4294967295")?,
        mode,
    })
}

fn bounded(ownership: Ownership) -> Result<Ownership, ApiError> {
    if ownership.mode.is_some_and(|mode| mode > MODE_MAX) {
        return Err(ApiError::invalid(
            "'mode' must be permission bits as a number in 0..=4095",
        ));
    }
    // The kernel means "as it is" by it.
    if ownership.uid == Some(u32::MAX) || ownership.gid == Some(u32::MAX) {
        return Err(ApiError::invalid("'uid' and 'gid' must be less than 4294967295"));
    }
    Ok(ownership)
}

fn force(query: &Query) -> Result<bool, ApiError> {
    Ok(query.parsed("force", "'true' or 'false'")?.unwrap_or(false))
}

/// What lies at a path.
#[utoipa::path(get, path = "/volumecontent/{volumeID}/path", tag = "volume content", security(("VolumeToken" = [])),
    params(("volumeID" = String, Path), ("path" = String, Query, min_length = 1, max_length = 4096)),
    responses((status = 200, description = "It.", body = VolumeEntry)))]
pub(crate) async fn stat(
    State(api): State<Arc<Api>>,
    Opened(id): Opened,
    query: Result<Query, ApiError>,
) -> Result<Json<VolumeEntry>, ContentError> {
    let query = query?;
    let found = api.parts.volume_files.stat(id, path(&query)?).await?;
    Ok(Json(shown(found)))
}

/// Change owner and permissions.
#[utoipa::path(patch, path = "/volumecontent/{volumeID}/path", tag = "volume content", security(("VolumeToken" = [])),
    params(("volumeID" = String, Path), ("path" = String, Query, min_length = 1, max_length = 4096)), request_body = ChangeVolumeEntry,
    responses((status = 200, description = "As it is now.", body = VolumeEntry)))]
pub(crate) async fn change(
    State(api): State<Arc<Api>>,
    Opened(id): Opened,
    query: Result<Query, ApiError>,
    body: Result<Body<ChangeVolumeEntry>, ApiError>,
) -> Result<Json<VolumeEntry>, ContentError> {
    let (query, Body(body)) = (query?, body?);
    let ownership = bounded(Ownership {
        uid: body.uid,
        gid: body.gid,
        mode: body.mode,
    })?;
    let changed = api
        .parts
        .volume_files
        .change(id, path(&query)?, ownership)
        .await?;
    Ok(Json(shown(changed)))
}

/// Remove a file, or a directory with everything in it.
#[utoipa::path(delete, path = "/volumecontent/{volumeID}/path", tag = "volume content", security(("VolumeToken" = [])),
    params(("volumeID" = String, Path), ("path" = String, Query, min_length = 1, max_length = 4096)),
    responses((status = 204, description = "It is gone.")))]
pub(crate) async fn remove(
    State(api): State<Arc<Api>>,
    Opened(id): Opened,
    query: Result<Query, ApiError>,
) -> Result<StatusCode, ContentError> {
    let query = query?;
    api.parts.volume_files.remove(id, path(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What lies in a directory.
#[utoipa::path(get, path = "/volumecontent/{volumeID}/dir", tag = "volume content", security(("VolumeToken" = [])),
    params(("volumeID" = String, Path), ("path" = String, Query, min_length = 1, max_length = 4096),
        ("depth" = Option<u32>, Query, minimum = 1, maximum = 64, description = "1 by default: what lies in it, and nothing below that")),
    responses((status = 200, description = "By name.", body = Vec<VolumeEntry>)))]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Opened(id): Opened,
    query: Result<Query, ApiError>,
) -> Result<Json<Vec<VolumeEntry>>, ContentError> {
    let query = query?;
    let depth = query.parsed("depth", "a number in 1..=64")?.unwrap_or(1);
    if !(1..=DEPTH_MAX).contains(&depth) {
        return Err(ApiError::invalid(format!(
            "query parameter 'depth' must be a number in 1..={DEPTH_MAX}"
        ))
        .into());
    }
    let found = api.parts.volume_files.list(id, path(&query)?, depth).await?;
    Ok(Json(found.into_iter().map(shown).collect()))
}

/// Make a directory.
#[utoipa::path(post, path = "/volumecontent/{volumeID}/dir", tag = "volume content", security(("VolumeToken" = [])),
    params(("volumeID" = String, Path), ("path" = String, Query, min_length = 1, max_length = 4096),
        ("uid" = Option<u32>, Query), ("gid" = Option<u32>, Query), ("mode" = Option<u32>, Query, maximum = 4095), ("force" = Option<bool>, Query, description = "it may be there already, and directories above it need not")),
    responses((status = 201, description = "It is there.", body = VolumeEntry), (status = 507, description = "The volume is full.", body = VolumeContentError)))]
pub(crate) async fn make_dir(
    State(api): State<Arc<Api>>,
    Opened(id): Opened,
    query: Result<Query, ApiError>,
) -> Result<(StatusCode, Json<VolumeEntry>), ContentError> {
    let query = query?;
    let (path, ownership, force) = (path(&query)?, ownership(&query)?, force(&query)?);
    let made = api
        .parts
        .volume_files
        .make_dir(id, path, ownership, force)
        .await?;
    Ok((StatusCode::CREATED, Json(shown(made))))
}

/// The bytes of a file.
#[utoipa::path(get, path = "/volumecontent/{volumeID}/file", tag = "volume content", security(("VolumeToken" = [])),
    params(("volumeID" = String, Path), ("path" = String, Query, min_length = 1, max_length = 4096)),
    responses((status = 200, description = "They.", body = wire::rest::Binary, content_type = "application/octet-stream")))]
pub(crate) async fn read(
    State(api): State<Arc<Api>>,
    Opened(id): Opened,
    query: Result<Query, ApiError>,
) -> Result<Response, ContentError> {
    let query = query?;
    let (length, bytes) = api.parts.volume_files.read(id, path(&query)?).await?;
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        ),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    Ok((headers, axum::body::Body::from_stream(bytes)).into_response())
}

/// Write a file, whole or not at all.
#[utoipa::path(put, path = "/volumecontent/{volumeID}/file", tag = "volume content", security(("VolumeToken" = [])),
    params(("volumeID" = String, Path), ("path" = String, Query, min_length = 1, max_length = 4096),
        ("uid" = Option<u32>, Query), ("gid" = Option<u32>, Query), ("mode" = Option<u32>, Query, maximum = 4095),
        ("force" = Option<bool>, Query, description = "it may be there already, and directories above it need not")),
    request_body(content = Option<wire::rest::Binary>, content_type = "application/octet-stream"),
    responses((status = 201, description = "It is written.", body = VolumeEntry), (status = 507, description = "The volume is full.", body = VolumeContentError)))]
pub(crate) async fn write(
    State(api): State<Arc<Api>>,
    opened: Result<Opened, ContentError>,
    query: Result<Query, ApiError>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<VolumeEntry>), ContentError> {
    let asked = || {
        let (Opened(id), query) = (opened?, query?);
        let (path, ownership, force) = (path(&query)?.to_owned(), ownership(&query)?, force(&query)?);
        Ok::<_, ContentError>((id, path, ownership, force, incoming::declared(&headers)?))
    };
    let (id, path, ownership, force, declared) = match asked() {
        Ok(asked) => asked,
        Err(refusal) => {
            incoming::hear_out(&headers, body).await;
            return Err(refusal);
        }
    };
    let turn = api.transfers.turn(incoming::Owner::Volume(id)).await?;
    // Its room is the volume's, which refuses what is too much.
    let (bytes, account) = incoming::stream(body, declared, u64::MAX);
    let written = api
        .parts
        .volume_files
        .write(id, &path, bytes, ownership, force)
        .await;
    match written {
        Ok(written) => Ok((StatusCode::CREATED, Json(shown(written)))),
        Err(failure) => {
            let refusal = account.blame(failure);
            account.hear_out(turn);
            Err(refusal.into())
        }
    }
}

fn shown(stat: FileStat) -> VolumeEntry {
    VolumeEntry {
        name: stat.name,
        kind: match stat.kind {
            FileKind::File => VolumeEntryKind::File,
            FileKind::Directory => VolumeEntryKind::Directory,
            FileKind::Symlink => VolumeEntryKind::Symlink,
            FileKind::Other => VolumeEntryKind::Unknown,
        },
        path: stat.path,
        size: stat.size,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        atime: time(stat.atime),
        mtime: time(stat.mtime),
        ctime: time(stat.ctime),
        target: stat.target,
    }
}
