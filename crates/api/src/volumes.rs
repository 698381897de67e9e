//! Volumes of a team (contract, section 6). What is in them: `content.rs`.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::VolumeId;
use wire::rest::{NewVolume, Volume, VolumeAndToken};

use crate::Api;
use crate::auth::Caller;
use crate::body::{Body, PathText};
use crate::error::ApiError;

const NAME_CHARS_MAX: usize = 128;

/// Make a volume.
#[utoipa::path(post, path = "/volumes", tag = "volumes", request_body = NewVolume,
    responses((status = 201, description = "It is there, and empty.", body = VolumeAndToken)))]
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<NewVolume>,
) -> Result<(StatusCode, Json<VolumeAndToken>), ApiError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let name = body.name.as_str();
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.bytes().all(plain) {
        return Err(ApiError::invalid(format!(
            "Invalid volume name: it must be 1..={NAME_CHARS_MAX} of a-z, A-Z, 0-9, '_' and '-'"
        )));
    }
    let volume = api.parts.volumes.create(caller.team.id, name).await?;
    Ok((StatusCode::CREATED, Json(api.with_token(volume).await?)))
}

/// Volumes of the team.
#[utoipa::path(get, path = "/volumes", tag = "volumes", responses((status = 200, description = "All of them.", body = Vec<Volume>)))]
pub(crate) async fn list(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<Vec<Volume>>, ApiError> {
    let volumes = api.parts.volumes.list(caller.team.id).await?;
    let shown = volumes.into_iter().map(|volume| Volume {
        volume_id: volume.id.to_string(),
        name: volume.name,
    });
    Ok(Json(shown.collect()))
}

/// One volume, with a token for its content.
#[utoipa::path(get, path = "/volumes/{volumeID}", tag = "volumes", params(("volumeID" = String, Path)),
    responses((status = 200, description = "The volume.", body = VolumeAndToken)))]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<Json<VolumeAndToken>, ApiError> {
    let volume = api.parts.volumes.get(caller.team.id, volume_id(&id)?).await?;
    Ok(Json(api.with_token(volume).await?))
}

/// Remove a volume that no sandbox has, with everything in it.
#[utoipa::path(delete, path = "/volumes/{volumeID}", tag = "volumes", params(("volumeID" = String, Path)),
    responses((status = 204, description = "It is gone.")))]
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<StatusCode, ApiError> {
    api.parts.volumes.delete(caller.team.id, volume_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn volume_id(text: &str) -> Result<VolumeId, ApiError> {
    text.parse().map_err(|_| ApiError::invalid("Invalid volume ID"))
}

impl Api {
    async fn with_token(&self, volume: model::Volume) -> Result<VolumeAndToken, ApiError> {
        let token = self.parts.volumes.token(&volume).await?;
        Ok(VolumeAndToken {
            volume_id: volume.id.to_string(),
            name: volume.name,
            token: token.expose().clone(),
            domain: self.parts.domain.clone(),
        })
    }
}
