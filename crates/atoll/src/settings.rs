//! What can be set: by a flag, by `ATOLL_*`, by the configuration file, in this order.
mod blobs;
pub(crate) mod cluster;
mod volumes;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use model::{Quota, Secret};
use serde::Deserialize;

use self::blobs::BlobsSettings;
use self::cluster::ClusterSettings;
use self::volumes::VolumesSettings;

const API_LISTEN: &str = "127.0.0.1:3000";
const EDGE_LISTEN: &str = "127.0.0.1:3002";
const ADMIN_LISTEN: &str = "127.0.0.1:3003";
const DOMAIN: &str = "atoll.localhost";
/// Slots that wait for a sandbox: a burst of so many is answered in a few milliseconds each, at some 2 MiB of memory for
/// each slot.
const POOL: usize = 16;
const QEMU: &str = "qemu-system-x86_64";
const FIRECRACKER: &str = "firecracker";
const LOG: &str = "info";
/// Layers of images that no template stands on are kept within this: a few dozen images, to be built from again.
const IMAGE_CACHE_MIB: u64 = 20 << 10;
/// As many as there can be.
const IMAGE_CACHE_MIB_MAX: u64 = u64::MAX >> 20;
/// What the field's own tools read, where nothing of ours is said.
const OTLP_ENDPOINT_OF_ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Settings of the server.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Configuration file (TOML); by default `atoll.toml` in the data directory, where there is one.
    #[arg(long, env = "ATOLL_CONFIG")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/atoll, or ~/.local/share/atoll for others than root].
    #[arg(long, env = "ATOLL_DATA_DIR")]
    #[serde(skip)]
    data_dir: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:3000].
    #[arg(long, env = "ATOLL_API_LISTEN")]
    api_listen: Option<SocketAddr>,
    /// Address of the edge, where sandboxes are reached [default: 127.0.0.1:3002].
    #[arg(long, env = "ATOLL_EDGE_LISTEN")]
    edge_listen: Option<SocketAddr>,
    /// Address for health and metrics [default: 127.0.0.1:3003].
    #[arg(long, env = "ATOLL_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Address of TLS, for `api.<domain>` and `<port>-<sandbox>.<domain>`; none by default.
    #[arg(long, env = "ATOLL_TLS_LISTEN")]
    tls_listen: Option<SocketAddr>,
    /// Allows clear text beyond loopback. Keys and tokens can then be read on the way.
    #[arg(long, env = "ATOLL_INSECURE_LISTEN")]
    insecure_listen: Option<bool>,
    /// Domain below which sandboxes have names [default: atoll.localhost].
    #[arg(long, env = "ATOLL_DOMAIN")]
    domain: Option<String>,
    /// What sandboxes are: containers, or virtual machines under QEMU or Firecracker, which have a kernel of their own [default:
    /// container].
    #[arg(long, env = "ATOLL_RUNTIME", value_enum)]
    runtime: Option<RuntimeKind>,
    /// The program `qemu-system-x86_64` [default: the one on the PATH].
    #[arg(long, env = "ATOLL_QEMU")]
    qemu: Option<PathBuf>,
    /// The program `firecracker`, beside which lies its `jailer` [default: the one on the PATH].
    #[arg(long, env = "ATOLL_FIRECRACKER")]
    firecracker: Option<PathBuf>,
    /// A known fault of this Firecracker that is accepted, by its name, as the start that refuses it tells; may be said again.
    #[arg(
        long,
        env = "ATOLL_FIRECRACKER_ACCEPTS",
        value_delimiter = ',',
        value_name = "FAULT"
    )]
    firecracker_accepts: Vec<String>,
    /// A directory into which a kernel package was extracted, with boot/ and lib/modules/, of which microVMs get their kernel
    /// [default: the distribution's generic kernel, downloaded once by apt].
    #[arg(long, env = "ATOLL_GUEST_KERNEL")]
    guest_kernel: Option<PathBuf>,
    /// Sandboxes that are prepared ahead [default: 16].
    #[arg(long, env = "ATOLL_POOL")]
    pool: Option<usize>,
    /// The program CRIU, version 4.2 or newer, by which memory outlives processes and the host [default: `criu/criu` beside
    /// this program, or `criu` on the PATH, where there is one]. An empty path: none.
    #[arg(long, env = "ATOLL_CRIU", value_parser = path_or_none())]
    criu: Option<PathBuf>,
    /// What layers of images may take, MiB. Beyond it those go that were not used for the longest time, and that no template
    /// stands on [default: 20480].
    #[arg(long, env = "ATOLL_IMAGE_CACHE_MIB", value_parser = clap::value_parser!(u64).range(..=IMAGE_CACHE_MIB_MAX))]
    image_cache_mib: Option<u64>,
    /// What is logged, as tracing's filters are written [default: info].
    #[arg(long, env = "ATOLL_LOG")]
    log: Option<String>,
    /// Log lines as JSON.
    #[arg(long, env = "ATOLL_LOG_JSON")]
    log_json: Option<bool>,
    /// Where traces are sent (OTLP over HTTP), such as `http://127.0.0.1:4318` [default: what
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` names, or nowhere].
    #[arg(long, env = "ATOLL_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// What `X-Admin-Token` must be, to act for any team; no such thing by default.
    #[arg(long, env = "ATOLL_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
    /// What a team may hold and do: `[quota]` of the file, and in it alone.
    #[arg(skip)]
    quota: Option<Quota>,
    /// Where uploads are kept: `[blobs]` of the file, and in it alone.
    #[arg(skip)]
    blobs: Option<BlobsSettings>,
    /// Which registries images come from: `[images]` of the file, and in it alone.
    #[arg(skip)]
    images: Option<artifact::Policy>,
    /// What volumes may hold: `[volumes]` of the file, and in it alone.
    #[arg(skip)]
    volumes: Option<VolumesSettings>,
    /// What makes this process one of a fleet: `[cluster]` of the file, and in it alone.
    #[arg(skip)]
    cluster: Option<ClusterSettings>,
}

/// What sandboxes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RuntimeKind {
    /// Namespaces of this machine's kernel.
    #[default]
    Container,
    /// Virtual machines under QEMU, with KVM or without.
    Qemu,
    /// Virtual machines under Firecracker, each in a jail; with KVM and root.
    Firecracker,
}

impl RuntimeKind {
    /// As it is set, and as nodes tell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
        }
    }
}

/// Settings with every default in its place.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) data_dir: PathBuf,
    pub(crate) api_listen: SocketAddr,
    pub(crate) edge_listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) tls_listen: Option<SocketAddr>,
    pub(crate) insecure_listen: bool,
    pub(crate) domain: String,
    pub(crate) runtime: RuntimeKind,
    pub(crate) qemu: PathBuf,
    pub(crate) firecracker: PathBuf,
    pub(crate) firecracker_accepts: Vec<String>,
    pub(crate) guest_kernel: Option<PathBuf>,
    pub(crate) pool: usize,
    pub(crate) criu: Option<PathBuf>,
    /// Whether that is what a setting says, and not what was found.
    pub(crate) criu_is_set: bool,
    pub(crate) image_cache_mib: u64,
    pub(crate) log: String,
    pub(crate) log_json: bool,
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) admin_token: Option<Secret<String>>,
    pub(crate) quota: Quota,
    pub(crate) blobs: BlobsSettings,
    pub(crate) images: artifact::Policy,
    pub(crate) volumes: VolumesSettings,
    pub(crate) cluster: Option<ClusterSettings>,
}

impl Settings {
    /// Fills in what was not given.
    pub(crate) fn resolve(self) -> Result<Resolved> {
        let data_dir = self.data_dir.unwrap_or_else(default_data_dir);
        let data_dir =
            std::path::absolute(&data_dir).with_context(|| format!("{} is no path", data_dir.display()))?;
        let file = match &self.config {
            Some(path) => read(path)?,
            None => {
                let path = data_dir.join("atoll.toml");
                if path.exists() {
                    read(&path)?
                } else {
                    Settings::default()
                }
            }
        };
        let address = |given: Option<SocketAddr>, file: Option<SocketAddr>, default: &str| {
            given
                .or(file)
                .map_or_else(|| default.parse().context("a default address"), Ok)
        };
        let criu = self.criu.or(file.criu);
        Ok(Resolved {
            data_dir,
            api_listen: address(self.api_listen, file.api_listen, API_LISTEN)?,
            edge_listen: address(self.edge_listen, file.edge_listen, EDGE_LISTEN)?,
            admin_listen: address(self.admin_listen, file.admin_listen, ADMIN_LISTEN)?,
            tls_listen: self.tls_listen.or(file.tls_listen),
            insecure_listen: self.insecure_listen.or(file.insecure_listen).unwrap_or(false),
            domain: self.domain.or(file.domain).unwrap_or_else(|| DOMAIN.to_owned()),
            runtime: self.runtime.or(file.runtime).unwrap_or_default(),
            qemu: self
                .qemu
                .or(file.qemu)
                .or_else(|| on_path(QEMU))
                .unwrap_or_else(|| QEMU.into()),
            firecracker: self
                .firecracker
                .or(file.firecracker)
                .or_else(|| on_path(FIRECRACKER))
                .unwrap_or_else(|| FIRECRACKER.into()),
            firecracker_accepts: match self.firecracker_accepts {
                none if none.is_empty() => file.firecracker_accepts,
                accepts => accepts,
            },
            guest_kernel: self.guest_kernel.or(file.guest_kernel),
            pool: self.pool.or(file.pool).unwrap_or(POOL),
            criu_is_set: criu.is_some(),
            criu: match criu {
                Some(path) => Some(path).filter(|path| !path.as_os_str().is_empty()),
                None => find_criu(),
            },
            image_cache_mib: self
                .image_cache_mib
                .or(file.image_cache_mib)
                .unwrap_or(IMAGE_CACHE_MIB)
                .min(IMAGE_CACHE_MIB_MAX),
            log: self.log.or(file.log).unwrap_or_else(|| LOG.to_owned()),
            log_json: self.log_json.or(file.log_json).unwrap_or(false),
            otlp_endpoint: self
                .otlp_endpoint
                .or(file.otlp_endpoint)
                .or_else(|| std::env::var(OTLP_ENDPOINT_OF_ALL).ok())
                .filter(|endpoint| !endpoint.is_empty()),
            blobs: self.blobs.or(file.blobs).unwrap_or_default(),
            images: self.images.or(file.images).unwrap_or_default(),
            volumes: self.volumes.or(file.volumes).unwrap_or_default(),
            cluster: self.cluster.or(file.cluster),
            quota: self.quota.or(file.quota).unwrap_or_default(),
            admin_token: self.admin_token.or(file.admin_token).map(Secret::new),
        })
    }
}

impl Resolved {
    /// Where CRIU was looked for, and what was found, for people.
    pub(crate) fn criu_told(&self) -> String {
        match (&self.criu, self.criu_is_set) {
            (Some(path), true) => format!("{}, as it is set", path.display()),
            (Some(path), false) => format!("found as {}", path.display()),
            (None, true) => "turned off by an empty path".to_owned(),
            (None, false) => match criu_beside() {
                Some(beside) => format!("looked for {}, and for criu on the PATH", beside.display()),
                None => "looked for criu on the PATH".to_owned(),
            },
        }
    }

    /// Refuses to speak clear text to strangers without being told to.
    pub(crate) fn check_listeners(&self) -> Result<()> {
        for (name, address) in [
            ("api-listen", self.api_listen),
            ("edge-listen", self.edge_listen),
            ("admin-listen", self.admin_listen),
        ] {
            if !address.ip().is_loopback() && !self.insecure_listen {
                bail!(
                    "--{name} {address} is beyond loopback and in clear text: keys could be read on the way. Use --tls-listen, or say --insecure-listen true"
                );
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a configuration of Atoll", path.display()))
}

/// A path that may be empty, which clap's own parser of paths refuses.
fn path_or_none() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    use clap::builder::TypedValueParser as _;
    clap::builder::OsStringValueParser::new().map(PathBuf::from)
}

/// CRIU beside this program.
fn criu_beside() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    Some(own.with_file_name("criu").join("criu"))
}

/// CRIU beside this program, or else on the `PATH`.
fn find_criu() -> Option<PathBuf> {
    criu_beside()
        .filter(|path| path.is_file())
        .or_else(|| on_path("criu"))
}

/// A program on the `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/atoll".into();
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    home.join(".local/share/atoll")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_of_the_file_are_refused_by_name() {
        let error = toml::from_str::<Settings>("pol = 3").unwrap_err().to_string();
        assert!(error.contains("pol"), "{error}");
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let dir = std::env::temp_dir().join(format!("atoll-settings-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("atoll.toml"), "pool = 3\ndomain = \"file.test\"\n").unwrap();
        let settings = Settings {
            data_dir: Some(dir.clone()),
            pool: Some(5),
            ..Settings::default()
        }
        .resolve()
        .unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            (settings.pool, settings.domain.as_str(), settings.log.as_str()),
            (5, "file.test", "info")
        );
    }

    #[test]
    fn a_criu_that_is_set_is_told_from_one_that_was_looked_for() {
        let told = |criu: Option<&str>| {
            let settings = Settings {
                data_dir: Some("/nonexistent".into()),
                criu: criu.map(PathBuf::from),
                ..Settings::default()
            };
            settings.resolve().unwrap().criu_told()
        };
        assert_eq!(told(Some("/opt/criu")), "/opt/criu, as it is set");
        assert_eq!(told(Some("")), "turned off by an empty path");
        let looked = told(None);
        assert!(
            looked.starts_with("found as /") || looked.contains("criu/criu, and for criu on the PATH"),
            "{looked}"
        );
    }

    #[test]
    fn clear_text_beyond_loopback_needs_a_word() {
        let open = Settings {
            api_listen: Some("0.0.0.0:3000".parse().unwrap()),
            ..Settings::default()
        };
        assert!(open.clone().resolve().unwrap().check_listeners().is_err());
        assert!(
            Settings {
                insecure_listen: Some(true),
                ..open
            }
            .resolve()
            .unwrap()
            .check_listeners()
            .is_ok()
        );
    }
}
