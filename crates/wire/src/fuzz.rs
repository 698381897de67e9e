//! What holds for any bytes; fuzzers and tests ask the same.
use crate::host::{Asked, HostRefused, SANDBOX_ID_HEADER, SANDBOX_PORT_HEADER, Target};

/// Three lines, each of which may be missing: a host, an id, a port. They name a target exactly where the rules of
/// contract 1.3 say so, and a target is found again by its own name.
///
/// # Panics
/// Where that does not hold.
pub fn host(data: &[u8]) {
    let mut lines = data.splitn(3, |&byte| byte == b'\n').map(Some);
    let asked = Asked {
        host: lines.next().flatten(),
        id: lines.next().flatten(),
        port: lines.next().flatten(),
    };
    let found = Target::of(asked);
    assert_eq!(found, expected(asked), "{asked:?}");
    match found {
        Ok(target) => {
            assert!(target.port != 0);
            assert_eq!(Target::of_host(format!("{target}.x").as_bytes()), Ok(target));
        }
        Err(refused) => {
            assert!(refused.to_string().len() < 100);
            assert!(matches!(refused.status(), 400 | 502));
        }
    }
}

/// The rules once more, in the words of the contract instead of those of the parser.
fn expected(asked: Asked<'_>) -> Result<Target, HostRefused> {
    let host = asked.host.unwrap_or_default();
    let host = String::from_utf8_lossy(host.get(..260.min(host.len())).unwrap_or_default());
    let by_host = match host.split_once('.') {
        Some((label, _)) if asked.host.is_none_or(|host| host.len() < 260) => {
            let parts: Vec<&str> = label.split('-').collect();
            if parts.len() < 2 {
                Err(HostRefused::Host)
            } else {
                named(parts[1], parts[0])
            }
        }
        _ => Err(HostRefused::Host),
    };
    match (by_host, asked.id, asked.port) {
        (Ok(target), ..) => Ok(target),
        (refused, None, None) => refused,
        (_, Some(id), Some(port)) => {
            let (id, port) = (String::from_utf8_lossy(id), String::from_utf8_lossy(port));
            named(id.split('-').next().unwrap_or_default(), &port)
        }
        (_, Some(_), None) => Err(HostRefused::MissingHeader(SANDBOX_PORT_HEADER)),
        (_, None, Some(_)) => Err(HostRefused::MissingHeader(SANDBOX_ID_HEADER)),
    }
}

fn named(id: &str, port: &str) -> Result<Target, HostRefused> {
    let is_plain = |letter: char| matches!(letter, 'a'..='z' | '0'..='9');
    if id.is_empty() || id.len() >= 260 || !id.chars().all(is_plain) {
        return Err(HostRefused::Id);
    }
    let is_digits = port.len() <= 5 && port.chars().all(|letter| letter.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| is_digits && *port > 0);
    let port = port.ok_or(HostRefused::Port)?;
    match id.parse() {
        Ok(sandbox) => Ok(Target { sandbox, port }),
        Err(_) => Err(HostRefused::Foreign(id.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rules_hold_for_every_seed() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/host");
        let asked = std::fs::read_dir(seeds).unwrap().map(|seed| {
            host(&std::fs::read(seed.unwrap().path()).unwrap());
        });
        assert!(asked.count() > 5);
    }

    proptest! {
        #[test]
        fn the_rules_hold_for_any_bytes(data in prop::collection::vec(any::<u8>(), 0..700)) {
            host(&data);
        }

        #[test]
        fn the_rules_hold_for_what_is_nearly_right(
            text in "[0-9+]{0,6}-?i?[a-z0-9A-]{0,24}(\\.[a-z.:0-9]{0,9})?(\ni?[a-z0-9-]{0,24}(\n[0-9+ ]{0,6})?)?",
        ) {
            host(text.as_bytes());
        }
    }
}
