//! What registries and archives say of an image: which layers, for which machine, how it is run.
use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// A manifest, an index or a configuration. Docker's registry takes manifests of up to 4 MiB.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Docker makes at most 127; a mount of overlayfs takes a page of their names, or 500.
pub(crate) const LAYERS_MAX: usize = 256;
/// Manifests of an index: each is one platform, or what is attached to one.
const MANIFESTS_MAX: usize = 1024;
/// Variables, arguments and ports of a configuration.
const WORDS_MAX: usize = 4096;
/// All of their bytes together: what Linux lets a process have.
const WORDS_BYTES_MAX: usize = 1 << 20;
/// One word of them: what Linux lets an argument be.
const WORD_BYTES_MAX: usize = 128 << 10;

/// All that is understood, as it is asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Why a document does not describe an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ManifestError(pub(crate) String);

fn wrong<T>(why: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError(why.into()))
}

/// Something that a document names by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    urls: Vec<String>,
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: String,
}

impl Platform {
    /// What this machine runs, as Go names it.
    pub(crate) fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: String::new(),
        }
    }

    /// How well it suits this machine, the lowest best; `None` where it does not run.
    fn rank(&self) -> Option<u8> {
        let own = Self::own();
        if self.os != own.os || self.architecture != own.architecture {
            return None;
        }
        match (self.architecture.as_str(), self.variant.as_str()) {
            (_, "") | ("amd64", "v1") | ("arm64", "v8") => Some(0),
            // Whether this machine has the instructions is not known.
            ("amd64", "v2" | "v3" | "v4") => None,
            _ => Some(1),
        }
    }

    /// Whether it is what this machine runs.
    pub(crate) fn is_own(&self) -> bool {
        self.rank().is_some()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(32).collect() };
        write!(f, "{}/{}", part(&self.os), part(&self.architecture))?;
        if !self.variant.is_empty() {
            write!(f, "/{}", part(&self.variant))?;
        }
        Ok(())
    }
}

/// A document that a registry gives for a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// One image.
    Manifest(Manifest),
    /// The same image for several machines.
    Index(Vec<Descriptor>),
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// The lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads a manifest or an index, of OCI or of Docker.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return wrong(format!("it is longer than {DOCUMENT_BYTES_MAX} bytes"));
        }
        #[derive(Deserialize)]
        struct Version {
            #[serde(rename = "schemaVersion")]
            version: u64,
        }
        let version: Version = json(bytes)?;
        match version.version {
            2 => {}
            1 => {
                return wrong(
                    "it is of Docker's first schema, which registries gave up in 2019; push the image anew",
                );
            }
            _ => return wrong("its schemaVersion is not 2"),
        }
        let raw: RawDocument = json(bytes)?;
        debug_assert_eq!(raw.schema_version, 2, "the version was looked at");
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                of_type(&raw.media_type, &MANIFESTS)?;
                Manifest::new(config, layers).map(Document::Manifest)
            }
            (None, None, Some(manifests)) => {
                of_type(&raw.media_type, &INDEXES)?;
                if manifests.len() > MANIFESTS_MAX {
                    return wrong(format!("it has more than {MANIFESTS_MAX} manifests"));
                }
                Ok(Document::Index(manifests))
            }
            (Some(_), Some(_), Some(_)) => wrong("it is a manifest and an index at once"),
            _ => wrong("it is neither an image's manifest nor an index"),
        }
    }
}

const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const LAYERS: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// OCI lets a document leave its own type out.
fn of_type(found: &str, known: &[&str]) -> Result<(), ManifestError> {
    if found.is_empty() || known.contains(&found) {
        return Ok(());
    }
    wrong(format!("it says that it is {:?}", short(found)))
}

impl Manifest {
    fn new(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, ManifestError> {
        if !CONFIGS.contains(&config.media_type.as_str()) {
            return wrong(format!(
                "its configuration is {:?}: it is no image of a machine",
                short(&config.media_type)
            ));
        }
        if config.size > DOCUMENT_BYTES_MAX {
            return wrong(format!(
                "its configuration is longer than {DOCUMENT_BYTES_MAX} bytes"
            ));
        }
        if layers.is_empty() {
            return wrong("it has no layers");
        }
        if layers.len() > LAYERS_MAX {
            return wrong(format!("it has more than {LAYERS_MAX} layers"));
        }
        for layer in &layers {
            if !layer.urls.is_empty() {
                return wrong("a layer of it lies outside of registries");
            }
            if !LAYERS.contains(&layer.media_type.as_str()) {
                return wrong(format!(
                    "a layer of it is {:?}, which is not supported",
                    short(&layer.media_type)
                ));
            }
        }
        Ok(Self { config, layers })
    }
}

/// The manifest of an index that is for this machine; what there is instead, where none is.
pub(crate) fn choose(index: &[Descriptor]) -> Result<&Descriptor, Vec<String>> {
    let platform = |entry: &Descriptor| entry.platform.clone().unwrap_or_default();
    let suits = |entry: &&Descriptor| !INDEXES.contains(&entry.media_type.as_str());
    let best = index
        .iter()
        .filter(suits)
        .filter_map(|entry| Some((platform(entry).rank()?, entry)))
        .min_by_key(|(rank, _)| *rank);
    // An index of a single image need not say for which machine it is: its configuration does.
    let only = match index {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    best.map(|(_, entry)| entry).or(only).ok_or_else(|| {
        let mut names: Vec<String> = index
            .iter()
            .map(platform)
            .filter(|platform| platform.os != "unknown" && !platform.os.is_empty())
            .map(|platform| platform.to_string())
            .take(64)
            .collect();
        names.dedup();
        names
    })
}

/// How an image is run, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Variables of its processes, in order.
    pub env: Vec<(String, String)>,
    /// Where they start.
    pub workdir: Option<String>,
    /// As whom: `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// What it runs, before the arguments.
    pub entrypoint: Vec<String>,
    /// Its arguments, or what it runs where there is no entry point.
    pub cmd: Vec<String>,
    /// Ports that it says it listens on, like `80/tcp`. They open nothing.
    pub ports: Vec<String>,
}

/// An image's configuration, as it is kept in registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) platform: Platform,
    pub(crate) run: ImageConfig,
    /// What its layers are known by, uncompressed; the lowest first.
    pub(crate) diffs: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    config: Option<RawRun>,
    rootfs: RawRoot,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return wrong(format!(
                "its configuration is longer than {DOCUMENT_BYTES_MAX} bytes"
            ));
        }
        let raw: RawConfig = json(bytes)?;
        if raw.rootfs.kind != "layers" {
            return wrong("its root is not made of layers");
        }
        if raw.rootfs.diff_ids.len() > LAYERS_MAX {
            return wrong(format!("it has more than {LAYERS_MAX} layers"));
        }
        let run = raw.config.unwrap_or_default();
        let (env, entrypoint, cmd) = (
            run.env.unwrap_or_default(),
            run.entrypoint.unwrap_or_default(),
            run.cmd.unwrap_or_default(),
        );
        let ports: Vec<String> = run.exposed_ports.unwrap_or_default().into_keys().collect();
        let single = [&run.working_dir, &run.user];
        let words = || {
            env.iter()
                .chain(&entrypoint)
                .chain(&cmd)
                .chain(&ports)
                .chain(single.into_iter().flatten())
        };
        if words().count() > WORDS_MAX || words().map(String::len).sum::<usize>() > WORDS_BYTES_MAX {
            return wrong(format!(
                "its configuration has more than {WORDS_MAX} variables and arguments, or {WORDS_BYTES_MAX} bytes of them"
            ));
        }
        if words().any(|word| word.contains('\0') || word.len() > WORD_BYTES_MAX) {
            return wrong("its configuration has a NUL in a variable or argument, or one that is too long");
        }
        let mut pairs = Vec::with_capacity(env.len());
        for pair in &env {
            match pair.split_once('=') {
                Some((name, value)) if !name.is_empty() => pairs.push((name.to_owned(), value.to_owned())),
                _ => return wrong(format!("its configuration has {:?} for a variable", short(pair))),
            }
        }
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            platform: Platform {
                os: raw.os,
                architecture: raw.architecture,
                variant: raw.variant,
            },
            run: ImageConfig {
                env: pairs,
                workdir: some(run.working_dir),
                user: some(run.user),
                entrypoint,
                cmd,
                ports,
            },
            diffs: raw.rootfs.diff_ids,
        })
    }
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|error| ManifestError(short(&error.to_string())))
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
