//! The name of a cluster: a part of the names of services, of keys, of jobs and of certificates, wherever it meets others.
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which cluster: 1 to 32 of `a-z`, `0-9` and `-`, neither first nor last a `-`. It fits wherever it stands: a label of DNS
/// (RFC 1035, 63 bytes) has room for it and a role, and so have the names of services and jobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ClusterName(String);

/// Why a text is no [`ClusterName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no name of a cluster: 1 to 32 of a-z, 0-9 and -, neither first nor last a -")]
pub struct ClusterNameError(String);

impl ClusterName {
    /// In bytes.
    pub const MAX: usize = 32;
    /// How much of what is wrong is told.
    const SHOWN_MAX: usize = 80;

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = ClusterNameError;

    fn from_str(text: &str) -> Result<Self, ClusterNameError> {
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let is_name = (1..=Self::MAX).contains(&text.len())
            && text.bytes().all(is_plain)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if is_name {
            return Ok(Self(text.to_owned()));
        }
        Err(ClusterNameError(text.chars().take(Self::SHOWN_MAX).collect()))
    }
}

impl TryFrom<String> for ClusterName {
    type Error = ClusterNameError;

    fn try_from(text: String) -> Result<Self, ClusterNameError> {
        text.parse()
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_wherever_it_stands() {
        for good in ["a", "blue-2", "0", &"x".repeat(32)] {
            assert_eq!(good.parse::<ClusterName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "Blue",
            "-a",
            "a-",
            "a:b",
            "a}",
            "a b",
            "ä",
            "a\"{",
            &"x".repeat(33),
        ] {
            let error = bad.parse::<ClusterName>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{bad}'")), "{error}");
        }
        assert!(serde_json::from_str::<ClusterName>("\"A\"").is_err());
    }

    #[test]
    fn little_of_what_is_wrong_is_told() {
        let error = "a b".repeat(1000).parse::<ClusterName>().unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}
