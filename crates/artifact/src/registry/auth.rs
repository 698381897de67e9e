//! Telling a registry who asks: by a name and a password, or by a token that these get.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use model::Secret;
use model::recipe::RegistryCredentials;
use serde::Deserialize;

use super::{AskError, Client, Seat, ecr, read};
use crate::images::PullError;

/// A token with what is said of it. Those of big clouds are some KiB.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Challenges of one answer, and what each may say.
const CHALLENGES_MAX: usize = 8;
const CHALLENGE_BYTES_MAX: usize = 4096;

/// A name and a password.
#[derive(Debug, Clone)]
pub(crate) struct Basic {
    username: String,
    password: Secret<String>,
}

impl Basic {
    pub(super) fn new(username: String, password: Secret<String>) -> Self {
        Self { username, password }
    }

    fn header(&self) -> Option<HeaderValue> {
        let pair = format!("{}:{}", self.username, self.password.expose());
        let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// What a server wants to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password.
    Basic,
    /// A token from elsewhere.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// All challenges of an answer that are understood.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .filter(|text| text.len() <= CHALLENGE_BYTES_MAX)
        .take(CHALLENGES_MAX)
        .filter_map(challenge)
        .collect()
}

/// `Bearer realm="…",service="…",scope="…"`, or `Basic realm="…"`.
pub(crate) fn challenge(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        let Some((key, after)) = rest.split_once('=') else {
            break;
        };
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
        scope,
    })
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<OneError>,
}
#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a registry says of an error, short and printable.
pub(super) fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) => errors
            .first()
            .map(|error| format!("{}: {}", error.code, error.message)),
        Err(_) => None,
    };
    let text = text.unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

impl Client {
    /// Does what a server wants before it answers; `false` where nothing more can be done.
    pub(super) async fn answer_challenge(
        &self,
        seat: &Seat<'_>,
        challenges: &[Challenge],
    ) -> Result<bool, AskError> {
        let mut told = None;
        for challenge in challenges {
            told = match challenge {
                Challenge::Basic => seat.basic.as_ref().and_then(Basic::header),
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                } => Some(
                    self.token(seat, realm, service.as_deref(), scope.as_deref())
                        .await?,
                ),
            };
            if told.is_some() {
                break;
            }
        }
        let is_told = told.is_some();
        *seat.authorization.lock().await = told;
        Ok(is_told)
    }

    async fn token(
        &self,
        seat: &Seat<'_>,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<HeaderValue, AskError> {
        let registry = &seat.server.authority;
        let odd = |why: String| {
            AskError::Never(PullError::Odd {
                registry: registry.clone(),
                why,
            })
        };
        // It cannot be sent to another thread, and so it must be gone before anything is waited for.
        let query = {
            let mut query = form_urlencoded::Serializer::new(String::new());
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            // What is asked for is what is needed, whatever the challenge names.
            let own = format!("repository:{}:pull", seat.name());
            query.append_pair(
                "scope",
                scope
                    .filter(|scope| scope.starts_with("repository:"))
                    .unwrap_or(&own),
            );
            query.finish()
        };
        let joint = if realm.contains('?') { '&' } else { '?' };
        let url: Uri = format!("{realm}{joint}{query}")
            .parse()
            .map_err(|_| odd("the address that it gives tokens at is none".to_owned()))?;
        self.may_ask(&url).map_err(odd)?;
        let mut headers = HeaderMap::new();
        if let Some(basic) = seat.basic.as_ref().and_then(Basic::header) {
            headers.insert(header::AUTHORIZATION, basic);
        }
        let answer = self.send(Method::GET, &url, &headers, Bytes::new()).await?;
        let status = answer.status();
        if matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
        ) {
            return Err(AskError::Status(StatusCode::UNAUTHORIZED, String::new()));
        }
        if !status.is_success() {
            return Err(self.bad(seat, answer).await);
        }
        let body = read(answer.into_body(), TOKEN_BYTES_MAX).await;
        let body = body.map_err(|_| super::again(format!("{registry}: its token could not be read")))?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| odd("what it gives for a token is none".to_owned()))?;
        let token = token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| odd("it gives no token".to_owned()))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| odd("what it gives for a token is none".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The name and password that credentials stand for.
    pub(crate) async fn basic(&self, credentials: &RegistryCredentials) -> Result<Basic, PullError> {
        match credentials {
            RegistryCredentials::Basic { username, password } => {
                Ok(Basic::new(username.clone(), password.clone()))
            }
            RegistryCredentials::Gcp { service_account } => {
                // It is looked at here, so that a wrong one is told as such and not as a refusal of the registry's.
                #[derive(Deserialize)]
                struct Key {
                    client_email: Option<String>,
                    private_key: Option<String>,
                }
                let key: Option<Key> = serde_json::from_str(service_account.expose()).ok();
                match key {
                    Some(Key { client_email: Some(_), private_key: Some(_) }) => {
                        Ok(Basic::new("_json_key".to_owned(), service_account.clone()))
                    }
                    _ => Err(PullError::Credentials(
                        "the service account is not the JSON of a key file, with client_email and private_key".to_owned(),
                    )),
                }
            }
            RegistryCredentials::Aws {
                access_key_id,
                secret_access_key,
                region,
            } => ecr::password(self, access_key_id, secret_access_key, region).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_all_their_forms() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let full = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(
            challenge(full),
            bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:a/b:pull,push")
            )
        );
        assert_eq!(
            challenge(r#"bearer realm=x , service="y""#),
            bearer("x ", Some("y"), None)
        );
        assert_eq!(
            challenge(r#"Basic realm="Registry Realm""#),
            Some(Challenge::Basic)
        );
        assert_eq!(challenge("basic"), Some(Challenge::Basic));
        for text in [
            "",
            "Digest realm=x",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"x",
            "Negotiate",
        ] {
            assert_eq!(challenge(text), None, "{text}");
        }
    }

    #[test]
    fn what_a_registry_says_is_short_and_printable() {
        assert_eq!(
            message(br#"{"errors":[{"code":"DENIED","message":"no\u001b[1m"}]}"#),
            "DENIED: no[1m"
        );
        assert_eq!(message(b"<html>"), "");
        assert_eq!(
            message(format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(999)).as_bytes()).len(),
            200
        );
    }

    #[test]
    fn a_password_does_not_print_itself() {
        let basic = Basic::new("user".to_owned(), Secret::new("hunter2".to_owned()));
        assert!(!format!("{basic:?}").contains("hunter2"));
        assert!(basic.header().unwrap().is_sensitive());
    }
}
