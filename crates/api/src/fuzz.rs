//! What holds for any bytes; fuzzers and tests ask the same.
use std::collections::BTreeMap;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use crate::listing;

/// The metadata filter of a list, as it is when the query has been decoded once: it is what two more decodings make of
/// it or it is refused, it is bounded, and encoded again it is the same. Cursors, times and states of the same bytes
/// are parsed or refused.
///
/// # Panics
/// Where that does not hold.
pub fn metadata(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let found = listing::metadata(Some(text)).ok();
    assert_eq!(found, expected(text), "{text:?}");
    if let Some(pairs) = &found {
        assert!(pairs.len() <= 64);
        let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(bytes <= text.len());
        assert_eq!(
            listing::metadata(Some(&encoded(pairs))).ok().as_ref(),
            Some(pairs)
        );
    }
    let one = BTreeMap::from([(text.to_owned(), text.to_owned())]);
    assert_eq!(listing::metadata(Some(&encoded(&one))).ok(), Some(one));
    for ascending in [false, true] {
        if let Ok(cursor) = listing::cursor(text, ascending) {
            let token = listing::token(cursor, ascending);
            assert!(listing::cursor(&token, !ascending).is_err());
            assert_eq!(
                listing::token(listing::cursor(&token, ascending).expect("our own"), ascending),
                token
            );
        }
    }
    let _ = listing::started_after(Some(text));
    if let Ok(states) = listing::states(Some(text)) {
        assert!(states.len() <= 1 + text.matches(',').count());
    }
}

/// As the SDKs send it, before the query's own encoding.
fn encoded(pairs: &BTreeMap<String, String>) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let twice: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{}={}", encode(&encode(key)), encode(&encode(value))))
        .collect();
    twice.join("&")
}

fn expected(text: &str) -> Option<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = match pair.find('=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, ""),
        };
        let decode = |text: &str| {
            let once: Vec<u8> = percent_decode(text.replace('+', " ").as_bytes()).collect();
            let once = String::from_utf8(once).ok()?;
            String::from_utf8(percent_decode(once.as_bytes()).collect()).ok()
        };
        pairs.insert(decode(key)?, decode(value)?);
        if pairs.len() > 64 {
            return None;
        }
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rules_hold_for_every_seed() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/metadata");
        let asked = std::fs::read_dir(seeds).unwrap().map(|seed| {
            metadata(&std::fs::read(seed.unwrap().path()).unwrap());
        });
        assert!(asked.count() > 5);
    }

    proptest! {
        #[test]
        fn the_rules_hold_for_any_text(text in any::<String>()) {
            metadata(text.as_bytes());
        }

        #[test]
        fn the_rules_hold_for_what_is_nearly_right(text in "([a-c%25f+é]{0,6}=?[a-c%25f+ü]{0,6}&?){0,9}") {
            metadata(text.as_bytes());
        }

        #[test]
        fn the_rules_hold_for_times(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[Z+ é-]?([0-9é]{0,3}:[0-9é]{0,3})?") {
            metadata(text.as_bytes());
        }
    }
}
