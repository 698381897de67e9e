//! Teams and their keys.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::{ApiKey, KeyId};
use rand::Rng as _;
use wire::rest::{CreatedKey, Key, KeyMask, NewKey, Team};

use crate::Api;
use crate::auth::{Caller, KEY_PREFIX, hash_of};
use crate::body::{Body, PathText};
use crate::convert::time;
use crate::error::ApiError;

/// Bytes of a key (contract 2.1).
const KEY_BYTES: usize = 20;
const NAME_CHARS_MAX: usize = 256;
/// Characters that are shown at each end: enough to tell keys apart, of 40.
const SHOWN: usize = 4;

/// Teams of the caller.
#[utoipa::path(get, path = "/teams", tag = "teams", responses((status = 200, description = "The team of the key.", body = Vec<Team>)))]
pub(crate) async fn teams(caller: Caller) -> Json<Vec<Team>> {
    let team = &caller.team;
    Json(vec![Team {
        team_id: team.id.to_string(),
        name: team.name.clone(),
        api_key: caller.key.unwrap_or_default(),
        is_default: true,
    }])
}

/// Keys of the team.
#[utoipa::path(get, path = "/api-keys", tag = "keys", responses((status = 200, description = "All of them, masked.", body = Vec<Key>)))]
pub(crate) async fn list(State(api): State<Arc<Api>>, caller: Caller) -> Result<Json<Vec<Key>>, ApiError> {
    let keys = api.parts.teams.keys(caller.team.id).await?;
    Ok(Json(keys.iter().map(shown).collect()))
}

/// Make a key. It is shown this once.
#[utoipa::path(post, path = "/api-keys", tag = "keys", request_body = NewKey, responses((status = 201, description = "The key.", body = CreatedKey)))]
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<NewKey>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    let name = name(body)?;
    let bytes: [u8; KEY_BYTES] = rand::rng().random();
    let digits = hex::encode(bytes);
    let text = format!("{KEY_PREFIX}{digits}");
    let key = ApiKey {
        id: KeyId::random(),
        team: caller.team.id,
        name,
        hash: hash_of(&text).unwrap_or_default(),
        mask_prefix: digits[..SHOWN].to_owned(),
        mask_suffix: digits[digits.len() - SHOWN..].to_owned(),
        created_at: api.parts.clock.now(),
        last_used: None,
    };
    api.parts.teams.insert_key(&key).await?;
    Ok((
        StatusCode::CREATED,
        Json(CreatedKey {
            key: text,
            about: shown(&key),
        }),
    ))
}

/// Rename a key.
#[utoipa::path(patch, path = "/api-keys/{apiKeyID}", tag = "keys", request_body = NewKey, params(("apiKeyID" = String, Path)),
    responses((status = 204, description = "It has the new name.")))]
pub(crate) async fn rename(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(id): PathText,
    Body(body): Body<NewKey>,
) -> Result<StatusCode, ApiError> {
    let (id, name) = (key_id(&id)?, name(body)?);
    api.parts
        .teams
        .rename_key(caller.team.id, id, &name)
        .await
        .map_err(missing)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Delete a key. It works no longer.
#[utoipa::path(delete, path = "/api-keys/{apiKeyID}", tag = "keys", params(("apiKeyID" = String, Path)),
    responses((status = 204, description = "It is gone.")))]
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<StatusCode, ApiError> {
    api.parts
        .teams
        .remove_key(caller.team.id, key_id(&id)?)
        .await
        .map_err(missing)?;
    api.known.forget();
    Ok(StatusCode::NO_CONTENT)
}

fn key_id(text: &str) -> Result<KeyId, ApiError> {
    text.parse()
        .map_err(|_| ApiError::invalid("Invalid API key ID: it must be a UUID"))
}

fn name(body: NewKey) -> Result<String, ApiError> {
    let name = body.name.trim();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
        return Err(ApiError::invalid(format!(
            "'name' must be 1..={NAME_CHARS_MAX} characters"
        )));
    }
    Ok(name.to_owned())
}

fn missing(error: ports::StoreError) -> ApiError {
    match error {
        ports::StoreError::Missing => ApiError::not_found("the API key does not exist"),
        error => error.into(),
    }
}

fn shown(key: &ApiKey) -> Key {
    Key {
        id: key.id.to_string(),
        name: key.name.clone(),
        mask: KeyMask {
            prefix: KEY_PREFIX.to_owned(),
            value_length: 2 * KEY_BYTES,
            masked_value_prefix: key.mask_prefix.clone(),
            masked_value_suffix: key.mask_suffix.clone(),
        },
        created_at: time(key.created_at),
        last_used: key.last_used.map(time),
    }
}
