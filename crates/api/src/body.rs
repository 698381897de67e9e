//! Requests as typed values, or a 400 that names the field.
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, RawQuery, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use model::SandboxId;
use serde::de::DeserializeOwned;
use wire::rest::Object;

use crate::error::ApiError;
use crate::form;

/// No body of the API is larger: metadata and environment are bounded far below.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// A body comes within this time. At 1 MiB that is no more than 35 KiB/s.
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// No query needs more.
const QUERY_BYTES_MAX: usize = 32 * 1024;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// A JSON body that may be left out; then it is the default.
pub(crate) struct MaybeBody<T>(pub(crate) T);

/// Characters of a value that are shown to whoever sent it.
const SHOWN_CHARS_MAX: usize = 64;

/// Characters of what a parser says, and of the path at which it says it: both repeat what was sent.
const COMPLAINT_CHARS_MAX: usize = 256;

fn complaint(text: &impl ToString) -> String {
    text.to_string().chars().take(COMPLAINT_CHARS_MAX).collect()
}

/// As much of a value as is shown to whoever sent it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

async fn read(request: Request) -> Result<Bytes, ApiError> {
    let told = content_type(request.headers());
    let limited = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let limited = tokio::time::timeout(BODY_WITHIN, limited).await.map_err(|_| {
        ApiError::http(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not come within {BODY_WITHIN:?}"),
        )
    })?;
    let bytes = limited
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                ApiError::http(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is longer than {BODY_BYTES_MAX} bytes"),
                )
            } else {
                ApiError::invalid("the body broke off")
            }
        })?;
    if bytes.is_empty() {
        Ok(bytes)
    } else {
        told.map(|()| bytes)
    }
}

/// That the body is told to be JSON, or nothing is told of it.
fn content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(told) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let told = String::from_utf8_lossy(told.as_bytes());
    let media_type = told
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if media_type == "application/json"
        || media_type.starts_with("application/") && media_type.ends_with("+json")
    {
        return Ok(());
    }
    let told = shown(&told);
    Err(ApiError::http(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        format!("Content-Type must be application/json, and is '{told}'"),
    ))
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = complaint(error.path());
        let wrong = complaint(error.inner());
        match path.as_str() {
            "." => ApiError::invalid(format!("the body is not what is expected: {wrong}")),
            path => ApiError::invalid(format!("'{path}' is not what is expected: {wrong}")),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::invalid(format!("something follows the body: {}", complaint(&error))))?;
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
        if matches!(bytes.trim_ascii(), b"" | b"null") {
            Ok(Self(T::default()))
        } else {
            parse(&bytes).map(Self)
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
        let pairs: Result<Vec<_>, _> = form::pairs(&query).collect();
        pairs.map(Self).map_err(|form::NotUtf8(name)| {
            let name = shown(&name);
            ApiError::invalid(format!(
                "query parameter '{name}' is not UTF-8 when it is decoded"
            ))
        })
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

/// The one other part of a path that varies, decoded.
pub(crate) struct PathText(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(text)| Self(text))
            .map_err(|_| ApiError::invalid("the path is not UTF-8 when it is decoded"))
    }
}

/// The two parts of a path that vary, decoded.
pub(crate) struct PathTexts(pub(crate) String, pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathTexts {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<(String, String)>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path((first, second))| Self(first, second))
            .map_err(|_| ApiError::invalid("the path is not UTF-8 when it is decoded"))
    }
}

pub(crate) fn sandbox_id(text: &str) -> Result<SandboxId, ApiError> {
    known_sandbox_id(text)?.ok_or_else(|| {
        let id = text.split('-').next().unwrap_or_default();
        ApiError::not_found(format!(
            "Sandbox \"{}\" doesn't exist or you don't have access to it",
            shown(id)
        ))
    })
}

/// The id that a text stands for; `None`: it could be an id of somebody's, and is none of ours.
pub(crate) fn known_sandbox_id(text: &str) -> Result<Option<SandboxId>, ApiError> {
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let (id, client) = text.split_once('-').unwrap_or((text, ""));
    if id.is_empty() || !plain(id) || !plain(client) {
        return Err(ApiError::invalid("Invalid sandbox ID"));
    }
    Ok(id.parse().ok())
}

#[cfg(test)]
mod tests;
