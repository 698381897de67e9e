//! Filters and pages of lists (contract 3.1 and 3.6).
use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::State;
use percent_encoding::percent_decode_str;
use ports::store::Cursor;

use crate::body::Query;
use crate::convert::time;
use crate::error::ApiError;
use crate::form;

const LIMIT_MAX: usize = 100;
/// Pairs of a metadata filter.
const PAIRS_MAX: usize = 64;

pub(crate) fn states(text: Option<&str>) -> Result<Vec<State>, ApiError> {
    let parse = |word: &str| match word {
        "running" => Ok(State::Running),
        "paused" => Ok(State::Paused),
        _ => Err(ApiError::invalid(
            "query parameter 'state' must be 'running', 'paused' or both with a comma",
        )),
    };
    text.filter(|text| !text.is_empty())
        .map_or_else(|| Ok(Vec::new()), |text| text.split(',').map(parse).collect())
}

pub(crate) fn ascending(text: Option<&str>) -> Result<bool, ApiError> {
    match text {
        None | Some("desc") => Ok(false),
        Some("asc") => Ok(true),
        Some(_) => Err(ApiError::invalid(
            "query parameter 'order' must be 'asc' or 'desc'",
        )),
    }
}

pub(crate) fn limit(query: &Query) -> Result<usize, ApiError> {
    let limit = query.parsed("limit", "a number in 1..=100")?.unwrap_or(LIMIT_MAX);
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::invalid(
            "query parameter 'limit' must be a number in 1..=100",
        ))
    }
}

pub(crate) fn started_after(text: Option<&str>) -> Result<Option<SystemTime>, ApiError> {
    text.map(|text| {
        rfc3339(text).ok_or_else(|| {
            ApiError::invalid("query parameter 'startedAfter' must be a time, as RFC 3339 writes it")
        })
    })
    .transpose()
}

/// A time with `Z` or an offset.
fn rfc3339(text: &str) -> Option<SystemTime> {
    if let Ok(at) = humantime::parse_rfc3339(text) {
        return Some(at);
    }
    // `+hh:mm`; in a query a bare plus has become a space.
    let (local, end) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, offset) = end.split_at_checked(1)?;
    let (hours, minutes) = offset.split_once(':')?;
    let seconds = hours
        .parse::<u64>()
        .ok()?
        .checked_mul(3600)?
        .checked_add(minutes.parse::<u64>().ok()?.checked_mul(60)?)?;
    let at = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let offset = std::time::Duration::from_secs(seconds);
    match sign {
        "+" | " " => at.checked_sub(offset),
        "-" => at.checked_add(offset),
        _ => None,
    }
}

/// The query has been decoded once; the pairs are a form of their own, with keys and values encoded once more.
pub(crate) fn metadata(text: Option<&str>) -> Result<BTreeMap<String, String>, ApiError> {
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
    };
    let wrong = || ApiError::invalid("query parameter 'metadata' does not hold encoded pairs");
    let mut pairs = BTreeMap::new();
    for pair in form::pairs(text.unwrap_or_default()) {
        let (key, value) = pair.map_err(|_| wrong())?;
        pairs.insert(
            decode(&key).map_err(|_| wrong())?,
            decode(&value).map_err(|_| wrong())?,
        );
        if pairs.len() > PAIRS_MAX {
            return Err(ApiError::invalid(format!(
                "query parameter 'metadata' holds more than {PAIRS_MAX} pairs"
            )));
        }
    }
    Ok(pairs)
}

/// Where the next page begins, as clients carry it.
pub(crate) fn token(cursor: Cursor, ascending: bool) -> String {
    place_token(cursor.started_at, &cursor.id, ascending)
}

pub(crate) fn cursor(token: &str, ascending: bool) -> Result<Cursor, ApiError> {
    let (started_at, id) = place(token, ascending)?;
    Ok(Cursor { started_at, id })
}

/// A place in a list that is ordered by a time, and then by an id.
pub(crate) fn place_token(at: SystemTime, id: &impl std::fmt::Display, ascending: bool) -> String {
    let order = if ascending { "__asc" } else { "" };
    URL_SAFE_NO_PAD.encode(format!("{}__{id}{order}", time(at)))
}

pub(crate) fn place<T: std::str::FromStr>(token: &str, ascending: bool) -> Result<(SystemTime, T), ApiError> {
    let wrong = || ApiError::invalid("Invalid next token");
    let text = URL_SAFE_NO_PAD
        .decode(token.trim_end_matches('='))
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(wrong)?;
    let mut parts = text.split("__");
    let (at, id, order) = (parts.next(), parts.next(), parts.next());
    if (order == Some("asc")) != ascending || !matches!(order, None | Some("asc")) || parts.next().is_some() {
        return Err(wrong());
    }
    let at = at
        .and_then(|at| humantime::parse_rfc3339(at).ok())
        .ok_or_else(wrong)?;
    let id = id.and_then(|id| id.parse().ok()).ok_or_else(wrong)?;
    Ok((at, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::SandboxId;
    use std::time::Duration;

    #[test]
    fn a_token_leads_back_and_only_in_its_own_order() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        let here = Cursor {
            started_at: at,
            id: SandboxId::random(),
        };
        for ascending in [false, true] {
            let token = token(here, ascending);
            assert_eq!(cursor(&token, ascending).unwrap(), here);
            assert!(cursor(&token, !ascending).is_err());
        }
        assert!(cursor("nonsense", false).is_err());
        assert!(cursor("", false).is_err());
    }

    #[test]
    fn metadata_is_decoded_three_times_in_all() {
        // {"a b": "c&d=e"} as the SDKs send it, after the query's own decoding.
        let found = metadata(Some("a%2520b=c%2526d%253De&x=y")).unwrap();
        assert_eq!(
            found,
            BTreeMap::from([("a b".into(), "c&d=e".into()), ("x".into(), "y".into())])
        );
        assert!(metadata(None).unwrap().is_empty());
        for broken in ["%ff=v", "a=%ff", "a=%25ff", "%25ff=v"] {
            assert!(metadata(Some(broken)).is_err(), "{broken}");
        }
    }

    #[test]
    fn times_have_offsets_or_none() {
        let z = rfc3339("2026-01-01T12:00:00Z").unwrap();
        assert_eq!(rfc3339("2026-01-01T13:00:00+01:00"), Some(z));
        assert_eq!(rfc3339("2026-01-01T13:00:00 01:00"), Some(z));
        assert_eq!(rfc3339("2026-01-01T11:30:00.000-00:30"), Some(z));
        assert_eq!(rfc3339("yesterday"), None);
        assert_eq!(rfc3339("é"), None);
        assert_eq!(rfc3339("2026-01-01T13:00:00é01:0"), None);
    }

    #[test]
    fn states_are_a_comma_list() {
        assert_eq!(
            states(Some("running,paused")).unwrap(),
            [State::Running, State::Paused]
        );
        assert_eq!(states(None).unwrap(), []);
        assert!(states(Some("gone")).is_err());
    }
}
