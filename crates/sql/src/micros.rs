//! Times as the database keeps them: microseconds since 1970, the precision at which the contract compares.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Rounds down to microseconds. Times before 1970 are taken as 1970, and times that no calendar reaches as the last.
pub(crate) fn of(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The time again.
pub(crate) fn to(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}
