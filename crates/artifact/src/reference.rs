//! What people write for an image: `[registry/]name[:tag][@digest]`.
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::digest::Digest;

/// The registry that names without one mean, unless the policy says otherwise.
pub(crate) const DOCKER: &str = "docker.io";
/// Hosts that serve the same registry.
const DOCKER_ALIASES: [&str; 3] = [
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];
/// Beyond what any registry takes.
const BYTES_MAX: usize = 1024;
/// As the distribution's specification has it, with the registry's name.
const REPOSITORY_BYTES_MAX: usize = 255;
/// As the distribution's specification has it.
const TAG_BYTES_MAX: usize = 128;

/// An image, named in full.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// `host[:port]` in lower case.
    pub registry: String,
    /// Its name in the registry.
    pub repository: String,
    /// Which of its versions, where no digest is given.
    pub tag: Option<String>,
    /// Which of its versions, exactly.
    pub digest: Option<Digest>,
}

/// The text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no image's name, [registry/]name[:tag][@sha256:digest]: {why}")]
pub struct ReferenceError {
    /// What was written, as far as it is shown.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Reference {
    /// Reads a name; one without a registry means `default`.
    pub fn parse(text: &str, default: &str) -> Result<Self, ReferenceError> {
        let wrong = |why| ReferenceError {
            text: text.chars().take(200).collect(),
            why,
        };
        if text.len() > BYTES_MAX {
            return Err(wrong("it is longer than 1024 bytes"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (
                named,
                Some(
                    digest
                        .parse()
                        .map_err(|_| wrong("its digest must be sha256: and 64 hex digits"))?,
                ),
            ),
            None => (text, None),
        };
        // A colon in the last part begins a tag; one before it, a port.
        let (path, tag) = match named.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (named, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("a tag is letters, digits, '_', '.' and '-', at most 128"));
        }
        let (registry, rest) = match path.split_once('/') {
            Some((first, rest)) if is_host_like(first) => (first.to_ascii_lowercase(), rest.to_owned()),
            _ => (default.to_owned(), path.to_owned()),
        };
        if !is_authority(&registry) {
            return Err(wrong("its registry is no host[:port]"));
        }
        let registry = by_one_name(&registry);
        let repository = if registry == DOCKER && !rest.contains('/') {
            format!("library/{rest}")
        } else {
            rest
        };
        if repository.len() > REPOSITORY_BYTES_MAX || !repository.split('/').all(is_part) {
            return Err(wrong(
                "a name is lower-case letters and digits, joined by '.', '_', '-' and '/'",
            ));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Self {
            registry,
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The same image, by a digest alone.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// What a registry is asked for: the digest where there is one, or else the tag.
    #[must_use]
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A registry by one of its names: whatever is said of it holds for all of them. Its usual port is not among these, as it is
/// for the policy to say which that is.
pub(crate) fn by_one_name(authority: &str) -> String {
    let secure = authority.strip_suffix(":443").unwrap_or(authority);
    if secure == DOCKER || DOCKER_ALIASES.contains(&secure) {
        return DOCKER.to_owned();
    }
    let Some(rest) = authority.strip_prefix('[') else {
        return authority.to_owned();
    };
    let Some((address, port)) = rest.split_once(']') else {
        return authority.to_owned();
    };
    match address.parse::<Ipv6Addr>() {
        Err(_) => authority.to_owned(),
        // The kernel makes it a connection to this.
        Ok(address) => match address.to_ipv4_mapped() {
            Some(address) => format!("{address}{port}"),
            None => format!("[{address}]{port}"),
        },
    }
}

/// A first part is a registry where no name could look like it, also in lower case: that is how it is told from then on.
fn is_host_like(part: &str) -> bool {
    part.eq_ignore_ascii_case("localhost") || part.contains(['.', ':'])
}

/// `host[:port]` in lower case; an address of IPv6 stands in brackets.
pub(crate) fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = |port: &str| {
        port.len() <= 5
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if port.is_some_and(|port| !is_port(port)) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Resolvers take numbers for addresses in more ways than one: there is one here.
    let is_number = |label: &str| {
        let digits = label.strip_prefix("0x").unwrap_or(label);
        let is_hex = digits.len() < label.len();
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || is_hex && byte.is_ascii_hexdigit())
    };
    if host.rsplit('.').next().is_some_and(is_number) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    host.len() <= 253 && host.split('.').all(is_label)
}

/// Letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_part(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    let between = bytes.split(|byte| plain(*byte)).filter(|run| !run.is_empty());
    plain(*first)
        && plain(*last)
        && between
            .into_iter()
            .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, full: &str) {
        assert_eq!(
            Reference::parse(text, DOCKER).map(|found| found.to_string()),
            Ok(full.to_owned()),
            "{text}"
        );
    }

    #[test]
    fn short_names_mean_what_docker_says_that_they_mean() {
        check("ubuntu", "docker.io/library/ubuntu:latest");
        check("ubuntu:22.04", "docker.io/library/ubuntu:22.04");
        check("grafana/grafana", "docker.io/grafana/grafana:latest");
        check("docker.io/ubuntu", "docker.io/library/ubuntu:latest");
        check(
            "index.docker.io/library/ubuntu",
            "docker.io/library/ubuntu:latest",
        );
        for alias in [
            "index.docker.io",
            "registry-1.docker.io",
            "Registry-1.Docker.io:443",
            "docker.io:443",
            "registry.hub.docker.com",
        ] {
            check(&format!("{alias}/ubuntu"), "docker.io/library/ubuntu:latest");
            check(
                &format!("{alias}/grafana/grafana"),
                "docker.io/grafana/grafana:latest",
            );
        }
        check("docker.io:5000/a", "docker.io:5000/a:latest");
        check("[0:0:0::1]:5000/a", "[::1]:5000/a:latest");
        check("[::ffff:8.8.8.8]:5000/a", "8.8.8.8:5000/a:latest");
        check("8.8.8.8/a", "8.8.8.8/a:latest");
        check("localhost/a", "localhost/a:latest");
        check("localhost:5000/a:b", "localhost:5000/a:b");
        check("LocalHost/a", "localhost/a:latest");
        check("a:5000/b", "a:5000/b:latest");
        check("GHCR.io/a/b_c__d-e--f.g", "ghcr.io/a/b_c__d-e--f.g:latest");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        let digest = format!("sha256:{}", "0".repeat(64));
        check(&format!("a@{digest}"), &format!("docker.io/library/a@{digest}"));
        check(&format!("r.io/a:t@{digest}"), &format!("r.io/a:t@{digest}"));
        let own = Reference::parse("a", "registry.lan:5000").unwrap();
        assert_eq!(own.to_string(), "registry.lan:5000/a:latest");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "a/",
            "/a",
            "Ubuntu",
            // In lower case it would be the first part of a name: what was written once would mean another image later.
            "locAalho5000/a/b",
            "Registry/a",
            "a//b",
            "a/.b",
            "a/b-",
            "a_-b",
            "a:t t",
            "a:-t",
            "a@sha256:00",
            "a@md5:00",
            "r.io:x/a",
            "r.io:99999/a",
            "r.io:0/a",
            "-r.io/a",
            "r..io/a",
            "http://r.io/a",
            "r.io/a?b",
            "u:p@r.io/a",
            "a/../b",
            "a\0",
            "[::1/a",
            "[x]:1/a",
            "r.io:+80/a",
            "134744072:5000/a",
            "0x8080808:5000/a",
            "8.8.2056/a",
            "8.8.8.0x8/a",
            "010.8.8.8/a",
        ] {
            assert!(Reference::parse(text, DOCKER).is_err(), "{text}");
        }
        assert!(Reference::parse(&"a".repeat(256), DOCKER).is_err());
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129)), DOCKER).is_err());
    }

    proptest! {
        #[test]
        fn a_name_in_full_means_itself(text in "([a-zA-Z.]{1,9}(:[0-9]{1,5})?/)?[a-z0-9._/-]{1,20}(:[a-zA-Z0-9._-]{1,9})?") {
            if let Ok(found) = Reference::parse(&text, DOCKER) {
                prop_assert_eq!(Reference::parse(&found.to_string(), "other.io"), Ok(found));
            }
        }
    }
}
