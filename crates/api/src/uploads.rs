//! Files of build steps: where they are put, and how they come (contract 4.1).
//!
//! The address of an upload is its permission: it names team, hash and hour, and is signed. So it needs no key, which
//! clients do not send there, and it opens nothing else.
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use hmac::{Hmac, Mac as _};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, StatusCode, header};
use model::{Kind, Secret, TeamId};
use sha2::Sha256;
use tokio::sync::OnceCell;
use wire::rest::FileUpload;

use crate::auth::{Caller, REQUESTS};
use crate::body::{PathTexts, Query};
use crate::error::ApiError;
use crate::{Api, incoming};

/// How long an address can be used: clients give an upload an hour.
const USABLE_FOR: Duration = Duration::from_secs(3_600);
/// The longest upload. A context that is larger is one that ought to be in an image, or in a volume.
const UPLOAD_BYTES_MAX: u64 = 8 << 30;
/// Digits of a hash.
const HASH_CHARS: usize = 64;
/// What the key of signatures is derived for, from the seed of all tokens.
const PURPOSE: &[u8] = b"addresses of uploads";

/// Signs addresses. It is the same in all processes over one store.
#[derive(Default)]
pub(crate) struct Key(OnceCell<Secret<Vec<u8>>>);

fn signature(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
        mac.update(b"\0");
    }
    mac
}

impl Api {
    async fn upload_key(&self) -> Result<&Secret<Vec<u8>>, ApiError> {
        let derive = async || {
            let seed = self.parts.teams.seed().await?;
            let key = signature(seed.expose(), &[PURPOSE]).finalize().into_bytes();
            Ok::<_, ApiError>(Secret::new(key.to_vec()))
        };
        self.upload_key.0.get_or_try_init(derive).await
    }

    pub(crate) async fn signed(
        &self,
        team: TeamId,
        files: &str,
        expires: u64,
    ) -> Result<Hmac<Sha256>, ApiError> {
        let (key, team, expires) = (self.upload_key().await?, team.to_string(), expires.to_string());
        Ok(signature(
            key.expose(),
            &[team.as_bytes(), files.as_bytes(), expires.as_bytes()],
        ))
    }

    pub(crate) fn now(&self) -> u64 {
        let since = self.parts.clock.now().duration_since(UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    }

    /// Where the sender of a request reaches the API: `scheme://host[:port]`.
    fn own_url(&self, request: &Parts) -> Result<String, ApiError> {
        if let Some(url) = &self.parts.public_url {
            return Ok(url.trim_end_matches('/').to_owned());
        }
        let named = request
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok()?.parse().ok());
        let host: Authority = request
            .uri
            .authority()
            .cloned()
            .or(named)
            .filter(|host| !host.as_str().contains('@'))
            .ok_or_else(|| ApiError::invalid("the request names no host at which an upload could be put"))?;
        let came_over_tls = request.uri.scheme_str() == Some("https")
            || self
                .parts
                .tls_host
                .as_ref()
                .is_some_and(|tls| tls.eq_ignore_ascii_case(host.host()));
        let scheme = if came_over_tls { "https" } else { "http" };
        Ok(format!("{scheme}://{host}"))
    }
}

/// The name of an upload: SHA-256, as the client makes it.
pub(crate) fn is_hash(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == HASH_CHARS && text.bytes().all(digit)
}

/// Where the files of a step are put.
#[utoipa::path(get, path = "/templates/{templateID}/files/{hash}", tag = "templates",
    params(("templateID" = String, Path), ("hash" = String, Path, description = "SHA-256 of the files, as the client makes it")),
    responses((status = 201, description = "The address, whether they are there already or not.", body = FileUpload)))]
pub(crate) async fn link(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathTexts(name, files): PathTexts,
    request: Parts,
) -> Result<(StatusCode, Json<FileUpload>), ApiError> {
    let template = api.own_template(&caller.team, &name).await?;
    if !is_hash(&files) {
        return Err(ApiError::invalid(format!(
            "the hash must be {HASH_CHARS} lower-case hexadecimal digits"
        )));
    }
    let team = caller.team.id;
    let present = api
        .parts
        .templates_manager
        .has_upload(team, template.id, &files)
        .await?;
    let expires = api.now() + USABLE_FOR.as_secs();
    let signature = hex::encode(api.signed(team, &files, expires).await?.finalize().into_bytes());
    let host = api.own_url(&request)?;
    Ok((
        StatusCode::CREATED,
        Json(FileUpload {
            present,
            url: format!("{host}/uploads/{team}/{files}?expires={expires}&signature={signature}"),
            headers: std::collections::BTreeMap::new(),
        }),
    ))
}

/// Put the files of a step, as a tar, gzipped or not, with its Content-Length.
#[utoipa::path(put, path = "/uploads/{teamID}/{hash}", tag = "templates", security(()),
    params(("teamID" = String, Path), ("hash" = String, Path), ("expires" = u64, Query, description = "seconds since the epoch"), ("signature" = String, Query)),
    request_body(content = wire::rest::Binary, content_type = "application/octet-stream"),
    responses((status = 200, description = "They are there."), (status = 411, description = "Content-Length is missing.", body = wire::rest::Error)))]
pub(crate) async fn put(
    State(api): State<Arc<Api>>,
    PathTexts(team, files): PathTexts,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    match admitted(&api, &team, &files, &query, &headers).await {
        Ok((team, length)) => {
            let turn = api.transfers.turn(incoming::Owner::Team(team)).await?;
            let (bytes, account) = incoming::stream(body, Some(length), UPLOAD_BYTES_MAX);
            let taken = api.parts.templates_manager.upload(team, &files, bytes).await;
            let Err(failure) = taken else {
                return Ok(StatusCode::OK);
            };
            let refusal = account.blame(failure);
            account.hear_out(turn);
            Err(refusal)
        }
        Err(refusal) => {
            incoming::hear_out(&headers, body).await;
            Err(refusal)
        }
    }
}

/// Whose upload it is, and how long.
async fn admitted(
    api: &Api,
    team: &str,
    files: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<(TeamId, u64), ApiError> {
    let forged = || {
        ApiError::new(
            Kind::Forbidden,
            "this is not an address that was given for an upload",
        )
    };
    let team: TeamId = team.parse().map_err(|_| forged())?;
    let expires: u64 = query
        .get("expires")
        .and_then(|expires| expires.parse().ok())
        .ok_or_else(forged)?;
    let given = query
        .get("signature")
        .and_then(|signature| hex::decode(signature).ok())
        .ok_or_else(forged)?;
    api.signed(team, files, expires)
        .await?
        .verify_slice(&given)
        .map_err(|_| forged())?;
    if expires < api.now() {
        return Err(ApiError::new(
            Kind::Forbidden,
            "the address of the upload is expired; ask for another",
        ));
    }
    let taken = api.parts.limits.take(team, "requests", REQUESTS).await;
    taken.map_err(|wait| ApiError::exhausted("the team's rate of requests is used up", wait))?;
    let length = incoming::declared(headers)?.ok_or_else(|| {
        ApiError::http(
            StatusCode::LENGTH_REQUIRED,
            "Content-Length must say how long the upload is",
        )
    })?;
    if length > UPLOAD_BYTES_MAX {
        return Err(incoming::too_long(UPLOAD_BYTES_MAX));
    }
    Ok((team, length))
}
