//! The one place that turns a [`Kind`] into statuses.
use model::Kind;

/// The HTTP status of a failure (contract 3.1; RFC 9110, section 15).
#[must_use]
pub const fn http(kind: Kind) -> u16 {
    match kind {
        Kind::Invalid => 400,
        Kind::Unauthenticated => 401,
        Kind::Forbidden => 403,
        Kind::NotFound => 404,
        Kind::Conflict => 409,
        Kind::Exhausted => 429,
        Kind::Unsupported => 501,
        Kind::Unavailable => 503,
        Kind::Timeout => 504,
        Kind::Internal => 500,
    }
}

/// What a client makes of an HTTP status: the reverse of [`http`], and for other statuses the nearest kind
/// (contract 1.5 and 5.1).
#[must_use]
pub const fn of_http(status: u16) -> Kind {
    match status {
        401 => Kind::Unauthenticated,
        403 => Kind::Forbidden,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        413 | 429 | 507 => Kind::Exhausted,
        501 | 505 => Kind::Unsupported,
        502 | 503 => Kind::Unavailable,
        408 | 504 => Kind::Timeout,
        400..=499 => Kind::Invalid,
        _ => Kind::Internal,
    }
}

/// What a client makes of an error's code in the Connect protocol (contract 5.2).
#[must_use]
pub fn of_connect(code: &str) -> Kind {
    match code {
        "invalid_argument" | "failed_precondition" | "out_of_range" => Kind::Invalid,
        "unauthenticated" => Kind::Unauthenticated,
        "permission_denied" => Kind::Forbidden,
        "not_found" => Kind::NotFound,
        "already_exists" | "aborted" => Kind::Conflict,
        "resource_exhausted" => Kind::Exhausted,
        "unimplemented" => Kind::Unsupported,
        "unavailable" | "canceled" => Kind::Unavailable,
        "deadline_exceeded" => Kind::Timeout,
        _ => Kind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_read_back_as_its_kind() {
        for kind in Kind::ALL {
            assert_eq!(of_http(http(kind)), kind);
        }
    }

    #[test]
    fn every_kind_has_a_status_of_its_own() {
        let mut seen: Vec<u16> = Kind::ALL.into_iter().map(http).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), Kind::ALL.len());
        assert!(seen.iter().all(|status| (400..600).contains(status)));
    }
}
