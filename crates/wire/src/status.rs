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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_status_of_its_own() {
        let mut seen: Vec<u16> = Kind::ALL.into_iter().map(http).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), Kind::ALL.len());
        assert!(seen.iter().all(|status| (400..600).contains(status)));
    }
}
