//! The root of a running sandbox, looked at from outside: Atoll's own, beside the protocol.
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, header};
use ports::root::{Change, ChangeKind, ExportedRoot};
use ports::volumes::FileKind;
use wire::rest::{
    ExportedConfig, IMAGE_CONFIG, SandboxChange, SandboxChangeKind, SandboxChanges, VolumeEntryKind,
};

use crate::Api;
use crate::auth::Caller;
use crate::body::PathSandbox;
use crate::error::ApiError;
use crate::incoming::Owner;

/// What clients take of headers.
const CONFIG_BYTES_MAX: usize = 192 << 10;

/// What a running sandbox changed against its template.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/changes", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses((status = 200, description = "By path, at most 100000.", body = SandboxChanges)))]
pub(crate) async fn changes(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Json<SandboxChanges>, ApiError> {
    let _turn = api.transfers.turn(Owner::Team(caller.team.id)).await?;
    let found = api.parts.manager.changes(caller.team.id, id).await?;
    Ok(Json(SandboxChanges {
        changes: found.entries.into_iter().map(shown).collect(),
        truncated: found.is_cut,
    }))
}

/// The whole root of a running sandbox.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/export", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses((status = 200, description = "A tar. X-Atoll-Image-Config tells what its processes run with: JSON, in base64.",
        body = wire::rest::Binary, content_type = "application/x-tar")))]
pub(crate) async fn export(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Response, ApiError> {
    let turn = api.transfers.turn(Owner::Team(caller.team.id)).await?;
    let ExportedRoot {
        env,
        user,
        workdir,
        tar,
    } = api.parts.manager.export(caller.team.id, id).await?;
    let config = ExportedConfig {
        env_vars: env,
        user,
        workdir,
    };
    let config = serde_json::to_vec(&config).unwrap_or_default();
    let config = HeaderValue::try_from(BASE64_STANDARD.encode(config))
        .ok()
        .filter(|config| config.len() <= CONFIG_BYTES_MAX)
        .ok_or_else(|| ApiError::invalid("the environment of the sandbox is too large to be exported"))?;
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-tar"),
        ),
        (HeaderName::from_static(IMAGE_CONFIG), config),
    ];
    // The turn is over when the tar is.
    let tar = tar.map(move |piece| {
        let _turn = &turn;
        piece
    });
    Ok((headers, Body::from_stream(tar)).into_response())
}

fn shown(change: Change) -> SandboxChange {
    SandboxChange {
        path: change.path,
        kind: match change.kind {
            ChangeKind::Added => SandboxChangeKind::Added,
            ChangeKind::Modified => SandboxChangeKind::Modified,
            ChangeKind::Deleted => SandboxChangeKind::Deleted,
        },
        file: match change.file {
            FileKind::File => VolumeEntryKind::File,
            FileKind::Directory => VolumeEntryKind::Directory,
            FileKind::Symlink => VolumeEntryKind::Symlink,
            FileKind::Other => VolumeEntryKind::Unknown,
        },
    }
}
