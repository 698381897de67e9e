//! Which protocol is spoken. Both sides say theirs with every call and every answer.
use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Where it is said.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("atoll-protocol");

/// A version of the protocol. Peers of the same major understand one another: the minor tells what they may also know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol {
    /// What one may not do without.
    pub major: u32,
    /// What has been added since.
    pub minor: u32,
}

/// What is spoken here.
pub const PROTOCOL: Protocol = Protocol { major: 1, minor: 0 };

/// The peer speaks another protocol, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it speaks {}, and this is protocol {PROTOCOL}: upgrade the older one", .0.map_or_else(|| "no protocol of ours".to_owned(), |other| format!("protocol {other}")))]
pub struct Foreign(pub Option<Protocol>);

impl Protocol {
    /// Whether this process can talk with one who speaks `other`.
    #[must_use]
    pub fn is_spoken_with(self, other: Protocol) -> bool {
        self.major == other.major
    }

    pub(crate) fn value(self) -> HeaderValue {
        HeaderValue::from_str(&self.to_string()).expect("numbers and a dot")
    }

    /// Whether who sent these headers can be talked with.
    pub(crate) fn check(headers: &HeaderMap) -> Result<Protocol, Foreign> {
        let said = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let other = said.and_then(|said| said.parse().ok());
        other
            .filter(|other| PROTOCOL.is_spoken_with(*other))
            .ok_or(Foreign(other))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Protocol {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        let number = |text: &str| text.parse().map_err(|_| ());
        Ok(Self {
            major: number(major)?,
            minor: number(minor)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &'static str) -> Result<Protocol, Foreign> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_static(text));
        Protocol::check(&headers)
    }

    #[test]
    fn a_newer_minor_is_talked_with_and_another_major_is_not() {
        assert_eq!(said("1.0"), Ok(PROTOCOL));
        assert_eq!(said("1.17"), Ok(Protocol { major: 1, minor: 17 }));
        let two = Protocol { major: 2, minor: 0 };
        assert_eq!(said("2.0"), Err(Foreign(Some(two))));
        assert_eq!(
            Foreign(Some(two)).to_string(),
            "it speaks protocol 2.0, and this is protocol 1.0: upgrade the older one"
        );
        assert_eq!(said("nonsense"), Err(Foreign(None)));
        assert_eq!(Protocol::check(&HeaderMap::new()), Err(Foreign(None)));
    }
}
