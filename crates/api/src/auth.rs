//! Who asks (contract 2.1).
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, header};
use model::{KeyId, Kind, Team};
use ports::limits::Rate;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::Api;
use crate::error::ApiError;

/// What keys begin with.
pub(crate) const KEY_PREFIX: &str = "e2b_";
/// What access tokens begin with: the same key, as older tools carry it.
const TOKEN_PREFIX: &str = "sk_e2b_";
/// Longer ones are nobody's.
const KEY_CHARS_MAX: usize = 256;
/// How long a key that was found is not looked up again: a deleted one works no longer than this, and in the process
/// that deleted it no longer at all.
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// Keys that are known at a time.
const KNOWN_MAX: usize = 10_000;
/// A key's last use is noted no more often than this.
const NOTED_EVERY: Duration = Duration::from_secs(60);
/// Requests of one team, whatever they are.
pub(crate) const REQUESTS: Rate = Rate {
    per_second: 5_000,
    burst: 10_000,
};

/// Keys that were looked up a moment ago.
#[derive(Default)]
pub(crate) struct Known(Mutex<Keys>);

#[derive(Default)]
struct Keys {
    found: HashMap<String, Found>,
    /// Moves with every deletion: what was looked up before one is not remembered after it.
    deletions: u64,
}

#[derive(Clone)]
struct Found {
    id: KeyId,
    team: Arc<Team>,
    until: Instant,
    noted: Option<Instant>,
}

impl Known {
    fn find(&self, hash: &str, now: Instant) -> Option<Found> {
        self.0
            .lock()
            .expect(UNPOISONED)
            .found
            .get(hash)
            .filter(|found| found.until > now)
            .cloned()
    }

    fn deletions(&self) -> u64 {
        self.0.lock().expect(UNPOISONED).deletions
    }

    /// Keeps a key that was looked up after so many deletions.
    fn remember(&self, hash: &str, found: Found, deletions: u64) {
        let mut known = self.0.lock().expect(UNPOISONED);
        if known.deletions != deletions {
            return;
        }
        if known.found.len() >= KNOWN_MAX {
            known.found.clear();
        }
        known.found.insert(hash.to_owned(), found);
    }

    /// Whether this use is to be noted.
    fn is_to_be_noted(&self, hash: &str, now: Instant) -> bool {
        let mut known = self.0.lock().expect(UNPOISONED);
        let Some(found) = known.found.get_mut(hash) else {
            return false;
        };
        let due = found
            .noted
            .is_none_or(|noted| now.duration_since(noted) >= NOTED_EVERY);
        if due {
            found.noted = Some(now);
        }
        due
    }

    /// Forgets everything: a key was deleted.
    pub(crate) fn forget(&self) {
        let mut known = self.0.lock().expect(UNPOISONED);
        known.found.clear();
        known.deletions += 1;
    }
}

const UNPOISONED: &str = "nothing panics while it holds the known keys";

/// Who asks, and by which key.
pub(crate) struct Caller {
    pub(crate) team: Arc<Team>,
    /// As it is presented in `X-API-Key`; not there for operators.
    pub(crate) key: Option<String>,
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let caller = match admin_team(api, &parts.headers).await? {
            Some(team) => Caller { team, key: None },
            None => {
                let key = presented(&parts.headers)?;
                Caller {
                    team: team_of(api, &key).await?,
                    key: Some(key),
                }
            }
        };
        if caller.team.blocked {
            return Err(ApiError::new(
                Kind::Forbidden,
                format!("team '{}' is blocked", caller.team.slug),
            ));
        }
        tracing::Span::current().record("team", tracing::field::display(caller.team.id));
        let taken = api.parts.limits.take(caller.team.id, "requests", REQUESTS).await;
        taken.map_err(|wait| ApiError::exhausted("the team's rate of requests is used up", wait))?;
        Ok(caller)
    }
}

/// Whoever may look at what is no team's.
pub(crate) struct Operator;

impl FromRequestParts<Arc<Api>> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        if is_operator(api, &parts.headers)? {
            return Ok(Self);
        }
        // A stranger is told no more than that he is one.
        Caller::from_request_parts(parts, api).await?;
        let words = match api.parts.admin_token {
            Some(_) => "this is for operators: send the header X-Admin-Token",
            None => {
                "this is for operators, of whom this server knows none: set its admin_token, and send the header X-Admin-Token"
            }
        };
        Err(ApiError::new(Kind::Forbidden, words))
    }
}

/// Whether the request carries the admin token, where there is one.
fn is_operator(api: &Api, headers: &HeaderMap) -> Result<bool, ApiError> {
    match (&api.parts.admin_token, headers.get("x-admin-token")) {
        (Some(expected), Some(given)) if expected.matches(given.as_bytes()) => Ok(true),
        (Some(_), Some(_)) => Err(ApiError::new(Kind::Unauthenticated, "Invalid admin token")),
        _ => Ok(false),
    }
}

/// The team for which an operator acts.
async fn admin_team(api: &Api, headers: &HeaderMap) -> Result<Option<Arc<Team>>, ApiError> {
    if !is_operator(api, headers)? {
        return Ok(None);
    }
    let id = headers
        .get("x-team-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let id = id.ok_or_else(|| ApiError::invalid("X-Team-ID must name a team where X-Admin-Token is used"))?;
    let team = api
        .parts
        .teams
        .team(id)
        .await?
        .ok_or_else(|| ApiError::not_found("no such team"))?;
    Ok(Some(Arc::new(team)))
}

/// The key of a request, as `e2b_<hex>`.
fn presented(headers: &HeaderMap) -> Result<String, ApiError> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().map(str::to_owned).map_err(|_| invalid_key());
    }
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    match bearer.map(str::trim) {
        Some(token) => token
            .strip_prefix(TOKEN_PREFIX)
            .map(|hex| format!("{KEY_PREFIX}{hex}"))
            .ok_or_else(invalid_key),
        None => Err(ApiError::new(
            Kind::Unauthenticated,
            "Invalid API key, please visit https://e2b.dev/docs/api-key to learn what keys are. None came with the request: send the \
             header X-API-Key; `atoll env` prints a key of this server.",
        )),
    }
}

async fn team_of(api: &Arc<Api>, key: &str) -> Result<Arc<Team>, ApiError> {
    let hash = hash_of(key).ok_or_else(invalid_key)?;
    let now = Instant::now();
    let found = match api.known.find(&hash, now) {
        Some(found) => found,
        None => {
            let deletions = api.known.deletions();
            let (key, team) = api
                .parts
                .teams
                .key_by_hash(&hash)
                .await?
                .ok_or_else(invalid_key)?;
            let noted = key
                .last_used
                .and_then(|used| SystemTime::now().duration_since(used).ok())
                .filter(|past| *past < NOTED_EVERY);
            let found = Found {
                id: key.id,
                team: Arc::new(team),
                until: now + KNOWN_FOR,
                noted: noted.and_then(|past| now.checked_sub(past)),
            };
            api.known.remember(&hash, found.clone(), deletions);
            found
        }
    };
    if api.known.is_to_be_noted(&hash, now) {
        let (teams, id, at) = (Arc::clone(&api.parts.teams), found.id, api.parts.clock.now());
        tokio::spawn(async move {
            if let Err(error) = teams.key_used(id, at).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the use of a key was not noted"
                );
            }
        });
    }
    Ok(found.team)
}

fn invalid_key() -> ApiError {
    ApiError::new(
        Kind::Unauthenticated,
        "Invalid API key, please visit https://e2b.dev/docs/api-key to learn what keys are; `atoll env` prints a key of this server.",
    )
}

/// The hash by which a key is stored: SHA-256 of its decoded bytes, in hex.
pub(crate) fn hash_of(key: &str) -> Option<String> {
    let bytes = key
        .strip_prefix(KEY_PREFIX)
        .filter(|digits| !digits.is_empty() && digits.len() <= KEY_CHARS_MAX)?;
    Some(hex::encode(Sha256::digest(hex::decode(bytes).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_that_was_looked_up_before_a_deletion_is_not_remembered_after_it() {
        let known = Known::default();
        let found = Found {
            id: KeyId::random(),
            team: Arc::new(ports::store::contract::team("t")),
            until: Instant::now() + KNOWN_FOR,
            noted: None,
        };
        let before = known.deletions();
        known.remember("kept", found.clone(), before);
        assert!(known.find("kept", Instant::now()).is_some());
        known.forget();
        known.remember("late", found.clone(), before);
        assert!(known.find("kept", Instant::now()).is_none() && known.find("late", Instant::now()).is_none());
        known.remember("new", found, known.deletions());
        assert!(known.find("new", Instant::now()).is_some());
    }
}
