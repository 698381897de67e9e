use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{BuildId, NodeId, Resources, SandboxId, TeamId, TemplateId};

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

/// What sandboxes of a build begin as, beside its disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
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
    /// Whether its sandboxes begin with processes that run, or boot.
    #[serde(default)]
    pub memory: Memory,
    /// Which node has that memory: elsewhere they boot. None where they boot anywhere, or there is one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<NodeId>,
    /// When it was made.
    pub created_at: SystemTime,
}

impl Default for Settings {
    /// Of the default size, with nothing set.
    fn default() -> Self {
        Self {
            resources: Resources::default(),
            env: BTreeMap::new(),
            user: "user".to_owned(),
            workdir: None,
            start: None,
            memory: Memory::None,
            home: None,
            created_at: SystemTime::UNIX_EPOCH,
        }
    }
}

/// How much of the memory of processes a copy holds. What is not held is told, never passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// It is on disk: it outlives the machine that it was taken on.
    Durable,
    /// It stays in the machine's memory: it is lost when the machine goes down.
    Volatile,
    /// None: what starts from it boots, and runs its start command again.
    #[default]
    None,
}

/// Where a template comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateOrigin {
    /// It was built, or is being built for the first time.
    #[default]
    Build,
    /// It is a snapshot of a sandbox: of this one, when it was last taken.
    Snapshot(SandboxId),
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
    /// Where it comes from.
    #[serde(default)]
    pub origin: TemplateOrigin,
    /// Its names, without the namespace.
    pub names: Vec<String>,
    /// The build of each tag; `default` is what is meant when no tag is given. Empty until the first build is ready.
    pub tags: BTreeMap<String, BuildId>,
    /// What is known of each build that a tag names. No other build is in it.
    pub builds: BTreeMap<BuildId, Settings>,
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
    /// Counts the writes; a write names the version that it read.
    #[serde(default)]
    pub version: u64,
}

impl Template {
    /// The tag that is meant when none is given.
    pub const DEFAULT_TAG: &str = "default";

    /// The build that a tag names, with what is known of it.
    #[must_use]
    pub fn tagged(&self, tag: Option<&str>) -> Option<(BuildId, &Settings)> {
        let build = *self.tags.get(tag.unwrap_or(Self::DEFAULT_TAG))?;
        Some((build, self.builds.get(&build)?))
    }

    /// Lets tags name a build. Builds that no tag names any more are forgotten here, and returned.
    pub fn tag(
        &mut self,
        tags: impl IntoIterator<Item = String>,
        build: BuildId,
        settings: Settings,
    ) -> Vec<BuildId> {
        self.builds.insert(build, settings);
        for tag in tags {
            self.tags.insert(tag, build);
        }
        self.prune()
    }

    /// Takes tags away. Builds that no tag names any more are forgotten here, and returned.
    pub fn untag<'a>(&mut self, tags: impl IntoIterator<Item = &'a str>) -> Vec<BuildId> {
        for tag in tags {
            self.tags.remove(tag);
        }
        self.prune()
    }

    fn prune(&mut self) -> Vec<BuildId> {
        let tags = &self.tags;
        let is_named = |build: &BuildId| tags.values().any(|named| named == build);
        let forgotten = self
            .builds
            .keys()
            .copied()
            .filter(|build| !is_named(build))
            .collect();
        self.builds.retain(|build, _| is_named(build));
        forgotten
    }
}

/// How a user names a template: `[namespace/]name[:tag]`, or an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
