//! What a sandbox may reach, and who may reach it (contract 3.4, `network`).
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A network; a bare address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(pub IpNet);

/// The text is neither an address nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither an IP address nor a CIDR")]
pub struct CidrError(pub String);

impl Cidr {
    /// All of IPv4: the SDKs' `ALL_TRAFFIC`.
    #[must_use]
    pub fn all_v4() -> Self {
        Self("0.0.0.0/0".parse().expect("a literal network"))
    }
    /// Whether this is the whole of its family.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.prefix_len() == 0
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let bare = || text.parse::<IpAddr>().map(IpNet::from).ok();
        text.parse::<IpNet>()
            .ok()
            .or_else(bare)
            .map(|net| Self(net.trunc()))
            .ok_or_else(|| CidrError(text.to_owned()))
    }
}
impl TryFrom<String> for Cidr {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}
impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}
impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

/// The host name that a service inside sees instead of the public one; `${PORT}` stands for the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaskHost(String);

/// The mask is not an ASCII `host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("maskRequestHost must be an ASCII host name with an optional port")]
pub struct MaskHostError;

impl MaskHost {
    /// The `Host` header for one port.
    #[must_use]
    pub fn for_port(&self, port: u16) -> String {
        self.0.replace("${PORT}", &port.to_string())
    }
    /// As the user wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MaskHost {
    type Err = MaskHostError;
    fn from_str(text: &str) -> Result<Self, MaskHostError> {
        let plain = text.replace("${PORT}", "0");
        let (host, port) = plain
            .rsplit_once(':')
            .map_or((plain.as_str(), None), |(host, port)| (host, Some(port)));
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && l.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let ok =
            text.len() <= 255 && host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok());
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(MaskHostError)
        }
    }
}

/// The network rules of one sandbox. Allow beats deny; what neither names is allowed, except for what the node
/// denies to everybody (private, link-local and metadata ranges, itself, other sandboxes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct NetworkPolicy {
    /// Networks that may be reached although `deny` names them. Never opens what the node denies to everybody.
    pub allow: Vec<Cidr>,
    /// Networks that may not be reached.
    pub deny: Vec<Cidr>,
    /// `allow_internet_access` as the user gave it; `Some(false)` denies everything but `allow`.
    pub internet: Option<bool>,
    /// `false`: ports other than envd's answer only to the sandbox's traffic token.
    pub public_traffic: Option<bool>,
    /// What services see as `Host`.
    pub mask_host: Option<MaskHost>,
}

impl NetworkPolicy {
    /// Whether everything is denied that is not allowed by name.
    #[must_use]
    pub fn denies_all(&self) -> bool {
        self.internet == Some(false) || self.deny.iter().any(Cidr::is_all)
    }
    /// Whether traffic to the sandbox's ports needs its traffic token.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.public_traffic == Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str, shown: &str) {
        assert_eq!(text.parse::<Cidr>().map(|c| c.to_string()), Ok(shown.to_owned()));
    }

    #[test]
    fn addresses_and_networks_parse() {
        cidr("8.8.8.8", "8.8.8.8");
        cidr("8.8.8.8/32", "8.8.8.8");
        cidr("10.1.2.3/8", "10.0.0.0/8");
        cidr("0.0.0.0/0", "0.0.0.0/0");
        cidr("2001:db8::1/32", "2001:db8::/32");
        for bad in ["", "example.com", "1.2.3", "1.2.3.4/33", "1.2.3.4/ 8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mask_is_a_host_with_an_optional_port() {
        for good in [
            "localhost",
            "localhost:${PORT}",
            "${PORT}.example.com",
            "a-b.c:8080",
        ] {
            assert!(good.parse::<MaskHost>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "a b",
            "exämple.com",
            "a/b",
            "a:b",
            "a:70000",
            "a..b",
            "a\r\nb",
        ] {
            assert!(bad.parse::<MaskHost>().is_err(), "{bad}");
        }
        assert_eq!(
            "localhost:${PORT}".parse::<MaskHost>().unwrap().for_port(80),
            "localhost:80"
        );
    }
}
