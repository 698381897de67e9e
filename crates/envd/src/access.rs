//! Who may do what: the access token, users by name, browsers of any origin (contract 2.2).
use std::time::Duration;

use base64::Engine as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::http::{Answer, full, json};
use crate::settings::Settings;
use crate::users::User;

/// Where the token travels.
pub(crate) const TOKEN_HEADER: &str = "x-access-token";

/// Streams that nobody spoke on for two minutes are cut by some proxies.
const KEEPALIVE: Duration = Duration::from_secs(90);
/// Nobody waits longer for a sign of life; and a time that no clock can hold is none.
const KEEPALIVE_MAX: Duration = Duration::from_secs(86_400);

/// Paths that need no token: they check for themselves, or tell nothing.
const OPEN: [&str; 2] = ["/health", "/files"];

/// A request that is not carried out, and what the client is told.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

#[derive(serde::Serialize)]
struct RefusalBody<'a> {
    code: u16,
    message: &'a str,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }
    /// What the client is told.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
    pub(crate) fn into_answer(self) -> Answer {
        json(
            self.status,
            &RefusalBody {
                code: self.status.as_u16(),
                message: &self.message,
            },
        )
    }
}

/// Whether the request may go on.
pub(crate) fn check(settings: &Settings, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = &settings.token else {
        return Ok(());
    };
    let right = headers
        .get(TOKEN_HEADER)
        .is_some_and(|given| token.matches(given.as_bytes()));
    if right || OPEN.contains(&path) {
        return Ok(());
    }
    Err(Refusal::unauthorized(
        "unauthorized access, please provide a valid access token or method signing if supported",
    ))
}

/// The user that a call names by Basic authentication with an empty password, or the default one. It is identity,
/// not authentication.
pub(crate) fn user_of(settings: &Settings, headers: &HeaderMap) -> Result<User, String> {
    let named = headers.get(header::AUTHORIZATION).and_then(basic_user);
    let name = named
        .or_else(|| settings.default_user.clone())
        .ok_or("no user specified")?;
    User::find(&name).ok_or_else(|| format!("invalid username: '{name}'"))
}

fn basic_user(value: &HeaderValue) -> Option<String> {
    let encoded = value.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(encoded.trim())
        .ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':')
        .map(|(user, _)| user.to_owned())
        .filter(|user| !user.is_empty())
}

/// How long a quiet stream may stay quiet, as the client says or as clients expect (contract 2.5).
pub(crate) fn keepalive(headers: &HeaderMap) -> Duration {
    let asked = headers
        .get("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    asked.filter(|seconds| *seconds > 0).map_or(KEEPALIVE, |seconds| {
        Duration::from_secs(seconds).min(KEEPALIVE_MAX)
    })
}

/// The answer to a browser that asks whether it may ask.
pub(crate) fn preflight() -> Answer {
    let mut answer = http::Response::new(full(bytes::Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    allow_any_origin(headers);
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("HEAD, GET, POST, PUT, PATCH, DELETE"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("*, Authorization, X-Access-Token, Content-Type"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    answer
}

/// Lets a page of any origin read the answer: what protects a sandbox is its token.
pub(crate) fn allow_any_origin(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("*"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::init::Init;

    fn with_token() -> Settings {
        let mut settings = Settings::new();
        let taken = settings.take(&Init {
            access_token: Some("secret".into()),
            ..Init::default()
        });
        assert_eq!(taken, Ok(true));
        settings
    }

    #[test]
    fn a_token_opens_what_is_closed() {
        let settings = with_token();
        let mut headers = HeaderMap::new();
        assert!(check(&settings, "/envs", &headers).is_err());
        assert!(check(&settings, "/health", &headers).is_ok());
        headers.insert(TOKEN_HEADER, HeaderValue::from_static("wrong!"));
        assert!(check(&settings, "/process.Process/List", &headers).is_err());
        headers.insert(TOKEN_HEADER, HeaderValue::from_static("secret"));
        assert!(check(&settings, "/process.Process/List", &headers).is_ok());
        assert!(check(&Settings::new(), "/envs", &HeaderMap::new()).is_ok());
    }

    #[test]
    fn a_stream_is_quiet_for_as_long_as_its_client_says_within_reason() {
        let check = |said: &'static str, expected: Duration| {
            let headers = HeaderMap::from_iter([(
                "keepalive-ping-interval".parse().unwrap(),
                HeaderValue::from_static(said),
            )]);
            assert_eq!(keepalive(&headers), expected, "{said}");
        };
        check("50", Duration::from_secs(50));
        check("0", KEEPALIVE);
        check("soon", KEEPALIVE);
        check("18446744073709551615", KEEPALIVE_MAX);
        check("18446744073709551616", KEEPALIVE);
        assert_eq!(keepalive(&HeaderMap::new()), KEEPALIVE);
    }

    #[test]
    fn users_are_named_by_basic_authentication() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic cm9vdDo="));
        assert_eq!(user_of(&Settings::new(), &headers).unwrap().name, "root");
        headers.insert(
            header::AUTHORIZATION,
            HeaderValue::from_static("Basic bm9ib2R5LWhhczo="),
        );
        assert_eq!(
            user_of(&Settings::new(), &headers).unwrap_err(),
            "invalid username: 'nobody-has'"
        );
    }
}
