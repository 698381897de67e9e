//! Links that are their own permission (contract 2.2).
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use http::HeaderMap;
use model::Secret;
use sha2::{Digest as _, Sha256};

use super::Query;
use crate::access::{Refusal, TOKEN_HEADER};

/// What a link permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
}

/// Seconds since 1970.
pub(super) fn now_unix_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Whether a request for a file shows the token, or a signature made with it.
pub(super) fn check(
    token: Option<&Secret<String>>,
    headers: &HeaderMap,
    query: &Query,
    operation: Operation,
    now_unix_s: i64,
) -> Result<(), Refusal> {
    let Some(token) = token else { return Ok(()) };
    if let Some(shown) = headers.get(TOKEN_HEADER) {
        return match token.matches(shown.as_bytes()) {
            true => Ok(()),
            false => Err(Refusal::unauthorized(
                "access token present in header but does not match",
            )),
        };
    }
    let signature = query
        .signature
        .as_deref()
        .filter(|signature| !signature.is_empty());
    let signature = signature.ok_or_else(|| Refusal::unauthorized("missing signature query parameter"))?;
    let expiration = match query
        .signature_expiration
        .as_deref()
        .filter(|text| !text.is_empty())
    {
        None => None,
        Some(text) => {
            let parsed = text.parse::<i64>();
            Some(parsed.map_err(|_| Refusal::bad("signature_expiration is not a number of seconds"))?)
        }
    };
    if !sign(token, query, operation, expiration).matches(signature.as_bytes()) {
        return Err(Refusal::unauthorized("invalid signature"));
    }
    if expiration.is_some_and(|expiration| expiration < now_unix_s) {
        return Err(Refusal::unauthorized("signature is already expired"));
    }
    Ok(())
}

/// The signature that the token's holder makes. It is as good as a token, and compared like one.
fn sign(
    token: &Secret<String>,
    query: &Query,
    operation: Operation,
    expiration_unix_s: Option<i64>,
) -> Secret<String> {
    let operation = match operation {
        Operation::Read => "read",
        Operation::Write => "write",
    };
    let mut signed = format!("{}:{operation}:{}:{}", query.path, query.username, token.expose());
    if let Some(expiration) = expiration_unix_s {
        signed = format!("{signed}:{expiration}");
    }
    let digest = Sha256::digest(signed.as_bytes());
    Secret::new(format!(
        "v1_{}",
        base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest)
    ))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn query(signature: Option<&str>, expiration: Option<&str>) -> Query {
        Query {
            path: "/home/user/a".into(),
            username: "user".into(),
            signature: signature.map(str::to_owned),
            signature_expiration: expiration.map(str::to_owned),
        }
    }

    fn outcome(headers: &HeaderMap, query: &Query, operation: Operation) -> Result<(), String> {
        let token = Secret::new("token".to_owned());
        check(Some(&token), headers, query, operation, 1000).map_err(|refusal| refusal.message().to_owned())
    }

    #[test]
    fn a_signature_opens_what_it_was_made_for_and_nothing_else() {
        let token = Secret::new("token".to_owned());
        let made = sign(&token, &query(None, None), Operation::Read, None);
        let signed = query(Some(made.expose()), None);
        let none = HeaderMap::new();
        assert_eq!(outcome(&none, &signed, Operation::Read), Ok(()));
        assert_eq!(
            outcome(&none, &signed, Operation::Write),
            Err("invalid signature".into())
        );
        let other = Query {
            path: "/home/user/b".into(),
            ..signed.clone()
        };
        assert_eq!(
            outcome(&none, &other, Operation::Read),
            Err("invalid signature".into())
        );
        let longer = query(Some(made.expose()), Some("9999999999"));
        assert_eq!(
            outcome(&none, &longer, Operation::Read),
            Err("invalid signature".into())
        );
        assert_eq!(
            outcome(&none, &query(None, None), Operation::Read),
            Err("missing signature query parameter".into())
        );
    }

    #[test]
    fn a_signature_is_what_clients_compute() {
        // printf 'p:read:u:t' | openssl dgst -sha256 -binary | base64 | tr -d =
        let query = Query {
            path: "p".into(),
            username: "u".into(),
            ..Query::default()
        };
        let made = sign(&Secret::new("t".to_owned()), &query, Operation::Read, None);
        assert_eq!(made.expose(), "v1_tp0NnP5UF1oRdtqF6eaBw5VBk9UBxMxNnIK4pSpYW1M");
    }

    #[test]
    fn expiry_is_looked_at_after_the_signature() {
        let token = Secret::new("token".to_owned());
        let made = sign(&token, &query(None, None), Operation::Read, Some(999));
        let none = HeaderMap::new();
        let late = query(Some(made.expose()), Some("999"));
        assert_eq!(
            outcome(&none, &late, Operation::Read),
            Err("signature is already expired".into())
        );
        assert_eq!(
            outcome(&none, &query(Some("v1_x"), Some("999")), Operation::Read),
            Err("invalid signature".into())
        );
        let made = sign(&token, &query(None, None), Operation::Read, Some(1000));
        assert_eq!(
            outcome(&none, &query(Some(made.expose()), Some("1000")), Operation::Read),
            Ok(())
        );
    }

    #[test]
    fn a_wrong_token_is_not_saved_by_a_signature() {
        let made = sign(
            &Secret::new("token".to_owned()),
            &query(None, None),
            Operation::Read,
            None,
        );
        let mut headers = HeaderMap::new();
        headers.insert(TOKEN_HEADER, HeaderValue::from_static("wrong"));
        assert_eq!(
            outcome(&headers, &query(Some(made.expose()), None), Operation::Read),
            Err("access token present in header but does not match".into())
        );
        headers.insert(TOKEN_HEADER, HeaderValue::from_static("token"));
        assert_eq!(outcome(&headers, &query(None, None), Operation::Write), Ok(()));
    }
}
