use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{BuildId, Resources, TeamId, TemplateId};

/// What runs in a template's sandboxes from the start on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// Run by `/bin/bash -l -c`.
    pub command: String,
    /// As whom.
    pub user: String,
    /// Where.
    pub cwd: Option<String>,
}

/// A machine that sandboxes are copies of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// Its name for ever.
    pub id: TemplateId,
    /// Who owns it; everybody may use a public one.
    pub team: TeamId,
    /// Whether other teams may use it.
    pub public: bool,
    /// Its names, without the namespace.
    pub names: Vec<String>,
    /// The build of each tag; `default` is what is meant when no tag is given.
    pub tags: BTreeMap<String, BuildId>,
    /// The size of its sandboxes.
    pub resources: Resources,
    /// Environment of all processes in its sandboxes.
    pub env: BTreeMap<String, String>,
    /// Default user of commands.
    pub user: String,
    /// Default directory of commands.
    pub workdir: Option<String>,
    /// What runs from the start on.
    pub start: Option<StartCommand>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it last changed.
    pub updated_at: SystemTime,
    /// When a sandbox was last created from it.
    pub last_spawned_at: Option<SystemTime>,
    /// How many sandboxes were created from it.
    pub spawn_count: u64,
    /// How many builds it had.
    pub build_count: u64,
}

/// How a user names a template: `[namespace/]name[:tag]`, or an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TemplateRef {
    /// The owner's slug, where it was given.
    pub namespace: Option<String>,
    /// The name or id, lower-case.
    pub name: String,
    /// The tag, where one was given; an explicit `default` counts as none (contract 3.4).
    pub tag: Option<String>,
}

/// The text does not name a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid template reference: '{0}' is not [namespace/]name[:tag]")]
pub struct TemplateRefError(pub String);

impl TemplateRef {
    /// Longer names exist nowhere; a bound keeps error messages and logs short.
    pub const BYTES_MAX: usize = 256;
}

impl FromStr for TemplateRef {
    type Err = TemplateRefError;
    fn from_str(text: &str) -> Result<Self, TemplateRefError> {
        let wrong = || TemplateRefError(text.chars().take(Self::BYTES_MAX).collect());
        let lower = text.trim().to_ascii_lowercase();
        let (rest, tag) = lower
            .split_once(':')
            .map_or((lower.as_str(), None), |(rest, tag)| (rest, Some(tag)));
        let (namespace, name) = rest
            .split_once('/')
            .map_or((None, rest), |(space, name)| (Some(space), name));
        let word = |w: &str| {
            !w.is_empty()
                && w.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        };
        let tag_ok = |t: &str| !t.is_empty() && t.split('.').all(|part| part.is_empty() || word(part));
        if lower.len() > Self::BYTES_MAX
            || !word(name)
            || !namespace.is_none_or(word)
            || !tag.is_none_or(tag_ok)
        {
            return Err(wrong());
        }
        let tag = tag.filter(|&tag| tag != "default").map(str::to_owned);
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, namespace: Option<&str>, name: &str, tag: Option<&str>) {
        let expected = TemplateRef {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
        };
        assert_eq!(text.parse(), Ok(expected));
    }

    #[test]
    fn references_parse() {
        check("base", None, "base", None);
        check("Base:default", None, "base", None);
        check("acme/my_app:v1.2-rc", Some("acme"), "my_app", Some("v1.2-rc"));
        for bad in [
            "", "a/b/c", "a:b:c", "a b", ":tag", "ns/", "/x", "ä", "x:", "../x",
        ] {
            assert!(bad.parse::<TemplateRef>().is_err(), "{bad}");
        }
    }
}
