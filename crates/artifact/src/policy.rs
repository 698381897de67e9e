//! Which registries are asked, and how.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound::{Excluded, Unbounded};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::reference::{DOCKER, by_one_name, is_authority};

/// The host that answers for `docker.io`.
const DOCKER_HOST: &str = "registry-1.docker.io";

/// Which registries images come from, and how much an image may be.
///
/// ```toml
/// [images]
/// default_registry = "docker.io"
/// others = "deny"                     # registries without a table of their own
///
/// [images.registries."docker.io"]
/// mirrors = ["mirror.lan:5000", "https://cache.example.com/hub"]
///
/// [images.registries."registry.lan:5000"]
/// insecure = true
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What names without a registry mean. Default: `docker.io`.
    pub default_registry: String,
    /// Whether registries that have no table in `registries` may be asked: `allow` or `deny`. Default: `allow`.
    pub others: Access,
    /// Registries by `host[:port]`. One that is named here may have a private or loopback address; any other may not,
    /// because the daemon asks for users who could not reach such an address themselves.
    pub registries: BTreeMap<String, RegistryPolicy>,
    /// Bytes of an image's layers, unpacked, in all. Default: 32 GiB.
    pub image_bytes_max: u64,
    /// Entries of one layer. Default: 2 000 000.
    pub layer_entries_max: u64,
    /// Files with certificates (PEM) of authorities that are trusted beside the machine's own. Default: none.
    pub authorities: Vec<PathBuf>,
    /// Where Amazon's ECR is asked for tokens, in the place of `https://api.ecr.<region>.amazonaws.com`: an endpoint within a
    /// private network. Default: none.
    pub ecr_endpoint: Option<String>,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// It is.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

/// How one registry is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryPolicy {
    /// `allow` or `deny`. Default: `allow`.
    pub access: Access,
    /// Asked before the registry, in this order: `[http://|https://]host[:port][/prefix]`. They get no credentials of users.
    /// Default: none.
    pub mirrors: Vec<String>,
    /// Only the mirrors are asked. Default: false.
    pub mirrors_only: bool,
    /// Plain HTTP. Default: true for loopback addresses, else false.
    pub insecure: Option<bool>,
    /// Other hosts that the registry sends to for tokens and layers, `[http://|https://]host[:port]`, where they have private
    /// addresses or speak plain HTTP. Default: none.
    pub leads_to: Vec<String>,
}

/// The policy contradicts itself, or has a name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: '{value}' {why}")]
pub struct PolicyError {
    /// Where.
    pub field: String,
    /// What is written there.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            default_registry: DOCKER.to_owned(),
            others: Access::Allow,
            registries: BTreeMap::new(),
            image_bytes_max: 32 << 30,
            layer_entries_max: 2_000_000,
            authorities: Vec::new(),
            ecr_endpoint: None,
        }
    }
}

/// A server of images: a registry or its mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// `host[:port]`.
    pub(crate) authority: String,
    /// Before the repository's name, where a mirror serves many registries; else empty.
    pub(crate) prefix: String,
    /// Plain HTTP.
    pub(crate) is_plain: bool,
    /// Users' credentials are for the registry that they named alone.
    pub(crate) is_origin: bool,
}

impl Policy {
    /// Whether it can be followed as it is written.
    pub fn check(&self) -> Result<(), PolicyError> {
        let wrong = |field: &str, value: &str, why| PolicyError {
            field: field.to_owned(),
            value: value.to_owned(),
            why,
        };
        if !is_authority(&self.default_registry) {
            return Err(wrong(
                "default_registry",
                &self.default_registry,
                "is no host[:port]",
            ));
        }
        for (name, registry) in &self.registries {
            let field = |what: &str| format!("registries.{name:?}{what}");
            if !is_authority(name) {
                return Err(wrong("registries", name, "is no host[:port] in lower case"));
            }
            let others = || self.registries.range::<String, _>((Excluded(name), Unbounded));
            let is_plain = registry.insecure.unwrap_or_else(|| is_loopback(name));
            if others().any(|(other, _)| identity(other, is_plain) == identity(name, is_plain)) {
                return Err(wrong(
                    "registries",
                    name,
                    "is there twice, under two of its names",
                ));
            }
            for mirror in &registry.mirrors {
                if written(mirror).is_none() {
                    return Err(wrong(
                        &field(".mirrors"),
                        mirror,
                        "is no [http://|https://]host[:port][/prefix]",
                    ));
                }
            }
            for host in &registry.leads_to {
                if written(host).is_none_or(|(_, _, prefix)| !prefix.is_empty()) {
                    return Err(wrong(
                        &field(".leads_to"),
                        host,
                        "is no [http://|https://]host[:port]",
                    ));
                }
            }
            if registry.mirrors_only && registry.mirrors.is_empty() {
                return Err(wrong(
                    &field(".mirrors_only"),
                    "true",
                    "leaves nobody to ask: it names no mirrors",
                ));
            }
        }
        if let Some(endpoint) = &self.ecr_endpoint
            && written(endpoint).is_none()
        {
            return Err(wrong(
                "ecr_endpoint",
                endpoint,
                "is no [http://|https://]host[:port][/prefix]",
            ));
        }
        Ok(())
    }

    /// Whether a registry may be asked for images.
    pub(crate) fn allows(&self, registry: &str) -> bool {
        let named = self.named(registry).map(|(_, registry)| registry.access);
        named.unwrap_or(self.others) == Access::Allow
    }

    /// What is said of a registry, under whichever of its names, with that name.
    fn named(&self, registry: &str) -> Option<(&str, &RegistryPolicy)> {
        if let Some((name, exactly)) = self.registries.get_key_value(registry) {
            return Some((name, exactly));
        }
        let mut all = self
            .registries
            .iter()
            .map(|(name, policy)| (name.as_str(), policy));
        all.find(|(name, policy)| {
            let is_plain = policy.insecure.unwrap_or_else(|| is_loopback(name));
            identity(name, is_plain) == identity(registry, is_plain)
        })
    }

    /// Who is asked for images of a registry, in this order.
    pub(crate) fn servers(&self, registry: &str) -> Vec<Server> {
        let (name, named) = match self.named(registry) {
            Some((name, named)) => (name, Some(named)),
            None => (registry, None),
        };
        let mirrors = named.map_or(&[][..], |named| &named.mirrors);
        let mut servers: Vec<Server> = mirrors
            .iter()
            .filter_map(|mirror| written(mirror))
            .map(|(authority, is_plain, prefix)| Server {
                authority: authority.to_owned(),
                prefix: prefix.to_owned(),
                is_plain,
                is_origin: false,
            })
            .collect();
        if !named.is_some_and(|named| named.mirrors_only) {
            let is_docker = by_one_name(name) == DOCKER;
            servers.push(Server {
                authority: if is_docker { DOCKER_HOST } else { name }.to_owned(),
                prefix: String::new(),
                is_plain: self.is_plain(name),
                is_origin: true,
            });
        }
        servers
    }

    /// Whether a host is spoken to in the clear.
    pub(crate) fn is_plain(&self, authority: &str) -> bool {
        match self.registries.get(authority) {
            Some(named) => named.insecure.unwrap_or_else(|| is_loopback(authority)),
            None => self
                .named_elsewhere()
                .any(|(named, is_plain)| is_plain && named == authority),
        }
    }

    /// Whether a host may have an address that is not public. One that is named to be denied is not one to be led to.
    pub(crate) fn may_be_private(&self, authority: &str) -> bool {
        let named = self.registries.get(authority);
        named.is_some_and(|named| named.access == Access::Allow)
            || self.named_elsewhere().any(|(named, _)| named == authority)
    }

    /// Hosts that are named, but not as registries, and whether they speak in the clear.
    fn named_elsewhere(&self) -> impl Iterator<Item = (&str, bool)> {
        self.registries
            .values()
            .flat_map(|registry| registry.mirrors.iter().chain(&registry.leads_to))
            .chain(&self.ecr_endpoint)
            .filter_map(|text| written(text))
            .map(|(authority, is_plain, _)| (authority, is_plain))
    }
}

/// One of a registry's names for all of them, without the port that is meant where none is said.
fn identity(authority: &str, is_plain: bool) -> String {
    let name = by_one_name(authority);
    let usual = if is_plain { ":80" } else { ":443" };
    match name.strip_suffix(usual) {
        Some(host) => host.to_owned(),
        None => name,
    }
}

/// `[http://|https://]host[:port][/prefix]`.
pub(crate) fn written(text: &str) -> Option<(&str, bool, &str)> {
    let (rest, scheme) = if let Some(rest) = text.strip_prefix("https://") {
        (rest, Some(false))
    } else if let Some(rest) = text.strip_prefix("http://") {
        (rest, Some(true))
    } else {
        (text, None)
    };
    let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    let is_plain_text = prefix
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte));
    let is_right = is_authority(authority) && is_plain_text && !prefix.split('/').any(|part| part == "..");
    is_right.then(|| {
        (
            authority,
            scheme.unwrap_or_else(|| is_loopback(authority)),
            prefix,
        )
    })
}

/// Without the port, and without brackets.
pub(crate) fn host_of(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether an address is everybody's: neither this host, nor its neighbours, nor what clouds answer on (IANA's special-purpose
/// registries, and the metadata services outside of them).
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    const NOT: [(Ipv4Addr, u32); 14] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(168, 63, 129, 16), 32),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        (Ipv4Addr::new(224, 0, 0, 0), 3),
    ];
    let bits = u32::from(address);
    !NOT.iter()
        .any(|(network, prefix)| (bits ^ u32::from(*network)) >> (32 - prefix) == 0)
}

/// Of IPv6 only what is assigned to the world, and of that nothing that stands for an address of IPv4 which is not public.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, third, ..] = address.segments();
    let octets = address.octets();
    let embedded = |at: usize| {
        is_public_v4(Ipv4Addr::new(
            octets[at],
            octets[at + 1],
            octets[at + 2],
            octets[at + 3],
        ))
    };
    match (first, second) {
        // Translation to IPv4.
        (0x64, 0xff9b) => third == 0 && octets[6..12] == [0; 6] && embedded(12),
        // Teredo, benchmarks, identifiers, documentation.
        (0x2001, 0..=0x1ff | 0xdb8) => false,
        (0x2002, _) => embedded(2),
        (0x3fff, 0..=0xfff) => false,
        (0x2000..=0x3fff, _) => true,
        _ => address.to_ipv4_mapped().is_some_and(is_public_v4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        let policy: Policy = serde_json::from_str(text).unwrap();
        policy.check().unwrap();
        policy
    }

    #[test]
    fn only_public_addresses_are_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.192",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1.1.1.1",
            "2002:a00:1::1",
            "2001::1",
            "2001:db8::1",
            "fec0::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_registry_that_is_denied_is_not_led_to_in_a_private_network_either() {
        let policy = policy(
            r#"{"registries": {
                "secret.lan": {"access": "deny"}, "own.lan": {}, "mirror.lan": {"access": "deny"},
                "docker.io": {"mirrors": ["mirror.lan"]}
            }}"#,
        );
        for (host, expected) in [
            ("secret.lan", false),
            ("own.lan", true),
            ("mirror.lan", true),
            ("other.lan", false),
        ] {
            assert_eq!(policy.may_be_private(host), expected, "{host}");
        }
    }

    #[test]
    fn mirrors_come_before_the_registry_and_know_no_credentials() {
        let policy = policy(
            r#"{"registries": {"docker.io": {"mirrors": ["mirror.lan:5000/hub/", "http://m2.lan"]}}}"#,
        );
        let servers = policy.servers("docker.io");
        let seen: Vec<_> = servers
            .iter()
            .map(|s| (s.authority.as_str(), s.prefix.as_str(), s.is_plain, s.is_origin))
            .collect();
        assert_eq!(
            seen,
            [
                ("mirror.lan:5000", "hub", false, false),
                ("m2.lan", "", true, false),
                ("registry-1.docker.io", "", false, true)
            ]
        );
        assert!(policy.may_be_private("mirror.lan:5000") && policy.may_be_private("m2.lan"));
        assert!(!policy.may_be_private("mirror.lan") && !policy.may_be_private("registry-1.docker.io"));
    }

    #[test]
    fn only_registries_that_are_named_are_spoken_to_in_the_clear() {
        let policy = policy(
            r#"{"registries": {"localhost:5000": {}, "127.0.0.1:1": {"insecure": false}, "r.lan": {"insecure": true, "leads_to": ["http://s3.lan:9000"]}}}"#,
        );
        assert!(
            policy.is_plain("localhost:5000") && policy.is_plain("r.lan") && policy.is_plain("s3.lan:9000")
        );
        assert!(
            !policy.is_plain("127.0.0.1:1")
                && !policy.is_plain("localhost:5001")
                && !policy.is_plain("s3.lan")
        );
    }

    #[test]
    fn registries_are_allowed_and_denied_by_name() {
        let all = policy(r#"{"registries": {"bad.io": {"access": "deny"}}}"#);
        assert!(all.allows("good.io") && !all.allows("bad.io"));
        let few = policy(r#"{"others": "deny", "registries": {"good.io": {}}}"#);
        assert!(few.allows("good.io") && !few.allows("docker.io"));
    }

    #[test]
    fn what_is_said_of_a_registry_holds_under_all_of_its_names() {
        let denied = |policy: &Policy, image: &str| {
            let image = crate::Reference::parse(image, DOCKER).unwrap();
            !policy.allows(&image.registry)
        };
        for hub in ["docker.io", "registry-1.docker.io", "index.docker.io"] {
            let policy = policy(&format!(r#"{{"registries": {{"{hub}": {{"access": "deny"}}}}}}"#));
            for image in [
                "ubuntu",
                "docker.io/a",
                "docker.io:443/a",
                "index.docker.io/a",
                "registry-1.docker.io/a/b",
                "REGISTRY-1.docker.io:443/a/b",
                "registry.hub.docker.com/a",
            ] {
                assert!(denied(&policy, image), "{hub}: {image}");
            }
            assert!(!denied(&policy, "docker.io:5000/a"));
        }
        let policy = policy(
            r#"{"registries": {"bad.io": {"access": "deny"}, "worse.io:443": {"access": "deny"},
                "clear.lan": {"access": "deny", "insecure": true}, "[2606:4700::1]": {"access": "deny"}, "8.8.8.8": {"access": "deny"}}}"#,
        );
        for image in [
            "bad.io:443/a",
            "Bad.io:443/a",
            "worse.io/a",
            "clear.lan:80/a",
            "[2606:4700:0::1]:443/a",
            "[::ffff:8.8.8.8]/a",
            "[::ffff:808:808]:443/a",
        ] {
            assert!(denied(&policy, image), "{image}");
        }
        for image in ["bad.io:80/a", "bad.io:8443/a", "clear.lan:443/a", "good.io:443/a"] {
            assert!(!denied(&policy, image), "{image}");
        }
    }

    #[test]
    fn a_registry_is_asked_by_the_name_under_which_it_is_set() {
        let policy = policy(
            r#"{"registries": {"r.lan:443": {"insecure": true}, "own.lan": {"mirrors": ["m.lan"]}, "index.docker.io": {}}}"#,
        );
        let asked = |registry: &str| -> Vec<_> {
            let servers = policy.servers(registry);
            servers
                .into_iter()
                .map(|server| (server.authority, server.is_plain))
                .collect()
        };
        assert_eq!(asked("r.lan:443"), [("r.lan:443".to_owned(), true)]);
        assert_eq!(asked("r.lan"), [("r.lan".to_owned(), false)]);
        assert_eq!(
            asked("own.lan:443"),
            [("m.lan".to_owned(), false), ("own.lan".to_owned(), false)]
        );
        assert_eq!(asked("docker.io"), [(DOCKER_HOST.to_owned(), false)]);
    }

    #[test]
    fn a_policy_that_cannot_be_followed_is_refused_with_its_place() {
        for (text, place) in [
            (r#"{"default_registry": "https://x"}"#, "default_registry"),
            (r#"{"registries": {"X.io": {}}}"#, "registries"),
            (r#"{"registries": {"x.io": {}, "x.io:443": {}}}"#, "registries"),
            (
                r#"{"registries": {"docker.io": {}, "index.docker.io": {}}}"#,
                "registries",
            ),
            (
                r#"{"registries": {"a": {"mirrors": ["ftp://x"]}}}"#,
                "registries.\"a\".mirrors",
            ),
            (
                r#"{"registries": {"a": {"leads_to": ["x/y"]}}}"#,
                "registries.\"a\".leads_to",
            ),
            (
                r#"{"registries": {"a": {"mirrors_only": true}}}"#,
                "registries.\"a\".mirrors_only",
            ),
            (r#"{"ecr_endpoint": "x y"}"#, "ecr_endpoint"),
        ] {
            let policy: Policy = serde_json::from_str(text).unwrap();
            assert_eq!(policy.check().unwrap_err().field, place, "{text}");
        }
        assert!(serde_json::from_str::<Policy>(r#"{"registrys": {}}"#).is_err());
        assert!(serde_json::from_str::<Policy>(r#"{"registries": {"a": {"mirror": []}}}"#).is_err());
    }
}
