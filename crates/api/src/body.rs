//! Requests as typed values, or a 400 that names the field.
use axum::extract::{FromRequest, FromRequestParts, RawQuery, Request};
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use http_body_util::{BodyExt as _, Limited};
use model::SandboxId;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// No body of the API is larger: metadata and environment are bounded far below.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// No query needs more.
const QUERY_BYTES_MAX: usize = 64 * 1024;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// A JSON body that may be left out; then it is the default.
pub(crate) struct MaybeBody<T>(pub(crate) T);

async fn read(request: Request) -> Result<Bytes, ApiError> {
    let limited = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    limited.map(http_body_util::Collected::to_bytes).map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            ApiError::http(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is longer than {BODY_BYTES_MAX} bytes"),
            )
        } else {
            ApiError::invalid("the body broke off")
        }
    })
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let wrong = error.into_inner();
        match path.as_str() {
            "." => ApiError::invalid(format!("the body is not what is expected: {wrong}")),
            path => ApiError::invalid(format!("'{path}' is not what is expected: {wrong}")),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::invalid(format!("something follows the body: {error}")))?;
    Ok(value)
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request).await?;
        if bytes.is_empty() {
            return Err(ApiError::invalid("a JSON body is missing"));
        }
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for MaybeBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request).await?;
        if bytes.is_empty() {
            Ok(Self(T::default()))
        } else {
            parse::<Option<T>>(&bytes).map(|value| Self(value.unwrap_or_default()))
        }
    }
}

/// The query, as decoded pairs.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// The last value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A value that parses, or a 400 that names it.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, ApiError> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::invalid(format!("query parameter '{name}' must be {what}")))
            })
            .transpose()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
        let query = query.unwrap_or_default();
        if query.len() > QUERY_BYTES_MAX {
            return Err(ApiError::invalid(format!(
                "the query is longer than {QUERY_BYTES_MAX} bytes"
            )));
        }
        Ok(Self(
            form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        ))
    }
}

/// The sandbox of a path: `id`, or `id-clientID` as older clients write it (contract 1.3).
pub(crate) struct PathSandbox(pub(crate) SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for PathSandbox {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let axum::extract::Path(text) = path.map_err(|_| ApiError::invalid("Invalid sandbox ID"))?;
        sandbox_id(&text).map(Self)
    }
}

pub(crate) fn sandbox_id(text: &str) -> Result<SandboxId, ApiError> {
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let (id, client) = text.split_once('-').unwrap_or((text, ""));
    if id.is_empty() || !plain(id) || !plain(client) {
        return Err(ApiError::invalid("Invalid sandbox ID"));
    }
    // A text that could be an id of somebody's, and is none of ours.
    id.parse().map_err(|_| {
        ApiError::not_found(format!(
            "Sandbox \"{id}\" doesn't exist or you don't have access to it"
        ))
    })
}
