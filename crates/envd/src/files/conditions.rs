//! Whether content is sent, and which part of it (RFC 9110, sections 13 and 14).
use std::ops::Range;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header};

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sent {
    Whole,
    Part(Range<u64>),
    NotModified,
    PreconditionFailed,
    Unsatisfiable,
}

/// Whether the request depends on what the content is now.
pub(super) fn any(headers: &HeaderMap) -> bool {
    let names = [
        header::RANGE,
        header::IF_RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
    ];
    names.iter().any(|name| headers.contains_key(name))
}

/// Decides. Content has a time and no tag.
pub(super) fn decide(headers: &HeaderMap, size_bytes: u64, modified: SystemTime) -> Sent {
    let modified = whole_seconds(modified);
    let date = |name: HeaderName| {
        let text = headers.get(name)?.to_str().ok()?;
        httpdate::parse_http_date(text).ok()
    };
    let failed = match headers.get(header::IF_MATCH) {
        Some(tags) => tags != "*",
        None => date(header::IF_UNMODIFIED_SINCE).is_some_and(|since| modified > since),
    };
    if failed {
        return Sent::PreconditionFailed;
    }
    let unchanged = match headers.get(header::IF_NONE_MATCH) {
        Some(tags) => tags == "*",
        None => date(header::IF_MODIFIED_SINCE).is_some_and(|since| modified <= since),
    };
    if unchanged {
        return Sent::NotModified;
    }
    // A tag cannot match, because there is none; a date must be the very one.
    if headers.contains_key(header::IF_RANGE) && date(header::IF_RANGE) != Some(modified) {
        return Sent::Whole;
    }
    headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok())
        .map_or(Sent::Whole, |range| part(range, size_bytes))
}

/// The part that a `Range` means. What is no range of bytes, or several, may be answered with everything.
fn part(range: &str, size_bytes: u64) -> Sent {
    let Some(spec) = range
        .strip_prefix("bytes=")
        .map(str::trim)
        .filter(|spec| !spec.contains(','))
    else {
        return Sent::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Sent::Whole;
    };
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u64>().ok())?
    };
    match (first, last) {
        ("", suffix) => match number(suffix) {
            Some(0) => Sent::Unsatisfiable,
            Some(_) if size_bytes == 0 => Sent::Unsatisfiable,
            Some(length) => Sent::Part(size_bytes.saturating_sub(length)..size_bytes),
            None => Sent::Whole,
        },
        (first, last) => match (number(first), number(last), last.is_empty()) {
            (Some(first), Some(last), _) if last < first => Sent::Whole,
            (Some(first), ..) if first >= size_bytes => Sent::Unsatisfiable,
            (Some(first), _, true) => Sent::Part(first..size_bytes),
            (Some(first), Some(last), _) => Sent::Part(first..size_bytes.min(last.saturating_add(1))),
            _ => Sent::Whole,
        },
    }
}

/// What a date in a header can say.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_BYTES: u64 = 10;

    fn check(headers: &[(HeaderName, &str)], sent: Sent) {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect();
        let modified =
            httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap() + Duration::from_millis(5);
        assert_eq!(decide(&headers, SIZE_BYTES, modified), sent, "{headers:?}");
    }

    #[test]
    fn ranges_are_parts() {
        for (range, sent) in [
            ("bytes=0-3", Sent::Part(0..4)),
            ("bytes=4-", Sent::Part(4..10)),
            ("bytes=-3", Sent::Part(7..10)),
            ("bytes=-30", Sent::Part(0..10)),
            ("bytes=2-99", Sent::Part(2..10)),
            ("bytes=10-", Sent::Unsatisfiable),
            ("bytes=-0", Sent::Unsatisfiable),
            ("bytes=3-2", Sent::Whole),
            ("bytes=1-2,4-5", Sent::Whole),
            ("bytes=x-y", Sent::Whole),
            ("bytes=-", Sent::Whole),
            ("lines=1-2", Sent::Whole),
        ] {
            check(&[(header::RANGE, range)], sent);
        }
    }

    #[test]
    fn what_has_not_changed_is_not_sent_again() {
        check(
            &[(header::IF_MODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:37 GMT")],
            Sent::NotModified,
        );
        check(
            &[(header::IF_MODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:36 GMT")],
            Sent::Whole,
        );
        check(&[(header::IF_NONE_MATCH, "*")], Sent::NotModified);
        check(
            &[
                (header::IF_NONE_MATCH, "\"x\""),
                (header::IF_MODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:37 GMT"),
            ],
            Sent::Whole,
        );
        check(
            &[(header::IF_UNMODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:36 GMT")],
            Sent::PreconditionFailed,
        );
        check(&[(header::IF_MATCH, "\"x\"")], Sent::PreconditionFailed);
    }

    #[test]
    fn a_part_of_changed_content_is_all_of_it() {
        let range = (header::RANGE, "bytes=0-3");
        check(
            &[range.clone(), (header::IF_RANGE, "Sun, 06 Nov 1994 08:49:37 GMT")],
            Sent::Part(0..4),
        );
        check(
            &[range.clone(), (header::IF_RANGE, "Sun, 06 Nov 1994 08:49:36 GMT")],
            Sent::Whole,
        );
        check(&[range, (header::IF_RANGE, "\"tag\"")], Sent::Whole);
    }
}
