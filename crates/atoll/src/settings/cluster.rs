use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cluster::nomad;
use model::{ClusterName, MiB, NodeId, Secret};
use orchestrator::Capacity;
use orchestrator::placement::{Overcommit, Ratio};
use ports::scheduler::Size;
use serde::Deserialize;
use sql::{Database, PostgresConfig};

const RPC_LISTEN: &str = "127.0.0.1:5008";
const ZONE: &str = "default";
const NODE_LOST_AFTER: u64 = 60;
/// A node that is restarted, or whose line is cut for a moment, is back within that time.
const NODE_LOST_AFTER_MIN: u64 = 15;
/// A part of the names of services.
const ZONE_MAX: usize = 32;
/// Ten thousand machines with some each.
const BLOCKS_MAX: u32 = 50_000;

/// What makes processes one fleet: `[cluster]` of the file, and in it alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterSettings {
    /// Which fleet: two that share a Consul or a Redis do not meet. Lower-case letters, digits and hyphens, 32 at most.
    pub(crate) name: ClusterName,
    /// Where this process is: sandboxes are spread over zones [default: default].
    #[serde(default = "default_zone")]
    pub(crate) zone: String,
    /// Where the other processes reach this one by RPC, with TLS on both sides [default: 127.0.0.1:5008].
    #[serde(default = "default_rpc_listen")]
    pub(crate) rpc_listen: SocketAddr,
    /// The address of that as others see it, where it is another.
    pub(crate) advertise: Option<SocketAddr>,
    /// Certificates of the authorities that this fleet trusts: what `atoll ca init` made.
    pub(crate) ca: PathBuf,
    /// This process's certificate, and its key: what `atoll ca issue` made. Read again when they change.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// How long a node may be gone until what ran on it is given up, seconds [default: 60; 15 at least].
    #[serde(default = "default_node_lost_after")]
    node_lost_after_seconds: u64,
    /// What may be promised on each node, in parts of what it has.
    #[serde(default)]
    overcommit: OvercommitSettings,
    /// The database that all share.
    pub(crate) database: Option<DatabaseSettings>,
    /// The Redis that all share.
    pub(crate) redis: Option<RedisSettings>,
    /// The Consul by which they find each other.
    pub(crate) consul: Option<ConsulSettings>,
    /// The Nomad that gives nodes what they offer. Without it they offer all that they have.
    pub(crate) nomad: Option<NomadSettings>,
    /// Who is there, in the place of a Consul.
    #[serde(default)]
    pub(crate) peers: Vec<Peer>,
}

/// What may be promised on each node.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OvercommitSettings {
    /// vCPUs for each CPU, 0.001 to 1000 [default: 4].
    cpu: Option<f64>,
    /// MiB of limits for each MiB of memory, 0.001 to 1000 [default: 1].
    memory: Option<f64>,
    /// MiB of disks for each MiB of disk, 0.001 to 1000 [default: unbounded, for disks take the room that is written].
    disk: Option<f64>,
}

/// PostgreSQL.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatabaseSettings {
    /// `postgres://user:password@host/database?sslmode=verify-full`.
    pub(crate) url: Secret<String>,
    /// The authority of its certificate, where the machine does not know it.
    pub(crate) ca: Option<PathBuf>,
    /// The most connections of this process [default: 16].
    pub(crate) connections: Option<u32>,
}

/// Redis.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RedisSettings {
    /// `redis://…`, or `rediss://…` with TLS.
    pub(crate) url: Secret<String>,
    /// The authority of its certificate, where the machine does not know it.
    pub(crate) ca: Option<PathBuf>,
}

/// Consul.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsulSettings {
    /// The agent of this machine, such as `http://127.0.0.1:8500`.
    pub(crate) address: String,
    /// An ACL token.
    pub(crate) token: Option<Secret<String>>,
    /// The authority of its certificate, where the machine does not know it.
    pub(crate) ca: Option<PathBuf>,
    /// Its datacentre, where it is not the agent's own.
    pub(crate) datacenter: Option<String>,
}

/// Nomad.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NomadSettings {
    /// An agent, such as `http://127.0.0.1:4646`.
    address: String,
    /// An ACL token with `submit-job`, `dispatch-job`, `list-jobs` and `read-job`.
    token: Option<Secret<String>>,
    /// The authority of its certificate, where the machine does not know it.
    ca: Option<PathBuf>,
    /// Its region, where it is not the agent's own.
    region: Option<String>,
    /// Its namespace [default: Nomad's default].
    namespace: Option<String>,
    /// Datacentres in which blocks may be [default: all].
    datacenters: Option<Vec<String>>,
    /// Nomad's driver, `raw_exec` or `exec` [default: raw_exec].
    driver: Option<String>,
    /// Atoll's program on the machines [default: /usr/local/bin/atoll].
    program: Option<String>,
    /// Where nodes listen to their blocks [default: /run/atoll/blocks.sock].
    socket: Option<String>,
    /// What Nomad counts for one CPU, in MHz, 100 to 20000 [default: 1000].
    cpu_mhz: Option<u32>,
    /// How long a block that is taken back may take to be emptied, seconds [default: 300]. Nomad's clients cut it to their
    /// `max_kill_timeout`.
    drain_within_seconds: Option<u64>,
    /// After which Nomad gives up a machine that it does not hear of, seconds [default: 60].
    lost_after_seconds: Option<u64>,
    /// What is asked for.
    block: BlockSettings,
}

/// Blocks of capacity.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockSettings {
    /// CPUs of one.
    cpu: u32,
    /// Memory of one, MiB.
    memory_mib: u32,
    /// Blocks beyond those that are needed now [default: 1].
    #[serde(default = "default_spare")]
    spare: u32,
    /// Blocks at the most [default: 100].
    #[serde(default = "default_most")]
    most: u32,
}

/// A process of the fleet that is always there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    /// What it is.
    pub(crate) role: Role,
    /// A node's id: `node-id` in its data directory.
    pub(crate) id: Option<NodeId>,
    /// Where it is reached by RPC.
    pub(crate) address: SocketAddr,
    /// Where it is [default: default].
    #[serde(default = "default_zone")]
    pub(crate) zone: String,
}

/// What a process of the fleet is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Answers clients. Any number.
    Api,
    /// Passes traffic into sandboxes. Any number.
    Edge,
    /// Keeps what is stored and what nodes hold the same, and carries builds through. Any number.
    Orchestrator,
    /// Runs sandboxes: one on each machine.
    Node,
}

impl Role {
    /// As it is set, and as others see it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Edge => "edge",
            Self::Orchestrator => "orchestrator",
            Self::Node => "node",
        }
    }
}

fn default_zone() -> String {
    ZONE.to_owned()
}

fn default_rpc_listen() -> SocketAddr {
    RPC_LISTEN.parse().expect("it is an address")
}

const fn default_node_lost_after() -> u64 {
    NODE_LOST_AFTER
}

const fn default_spare() -> u32 {
    1
}

const fn default_most() -> u32 {
    100
}

impl NomadSettings {
    /// How it is reached, and what it is asked for on behalf of a fleet.
    pub(crate) fn config(&self, cluster: &ClusterName) -> Result<nomad::Config> {
        let ca_pem = self.ca.as_deref().map(std::fs::read_to_string).transpose();
        let usual = nomad::Config::new(&self.address, cluster.clone());
        let seconds = |set: Option<u64>, usual| set.map_or(usual, Duration::from_secs);
        Ok(nomad::Config {
            token: self.token.clone(),
            tls: nomad::Tls {
                ca_pem: ca_pem.context("cluster.nomad.ca cannot be read")?,
                identity_pem: None,
            },
            region: self.region.clone(),
            namespace: self.namespace.clone(),
            datacenters: self.datacenters.clone().unwrap_or(usual.datacenters),
            driver: self.driver.clone().unwrap_or(usual.driver),
            program: self.program.clone().unwrap_or(usual.program),
            socket: self.socket().display().to_string(),
            cpu_mhz: self.cpu_mhz.unwrap_or(usual.cpu_mhz),
            drain_within: seconds(self.drain_within_seconds, usual.drain_within),
            lost_after: seconds(self.lost_after_seconds, usual.lost_after),
            ..usual
        })
    }

    /// Where nodes listen to their blocks.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.as_deref().unwrap_or(nomad::SOCKET).into()
    }

    /// What is asked for, of which so much may be promised.
    pub(crate) fn capacity(&self, overcommit: Overcommit) -> Capacity {
        Capacity {
            size: Size {
                cpu: self.block.cpu,
                memory: MiB(self.block.memory_mib),
            },
            spare: self.block.spare,
            most: self.block.most,
            overcommit,
        }
    }

    fn check(&self, cluster: &ClusterName) -> Result<()> {
        let config = self.config(cluster)?;
        config.check().context("[cluster.nomad] cannot be used")?;
        let block = self.block;
        if block.cpu == 0 || block.memory_mib == 0 {
            bail!("[cluster.nomad.block] holds nothing: set `cpu`, and `memory_mib`");
        }
        if block.most == 0 || block.most > BLOCKS_MAX || block.spare > block.most {
            bail!(
                "cluster.nomad.block.spare is {}, and `most` is {}: of 1 to {BLOCKS_MAX} blocks some may be spare",
                block.spare,
                block.most
            );
        }
        Ok(())
    }
}

fn is_label(text: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= ZONE_MAX && text.bytes().all(is_good) && !text.starts_with('-')
}

impl ClusterSettings {
    /// Refuses what cannot work, by the name of the key.
    pub(crate) fn check(&self, roles: &[Role]) -> Result<()> {
        if !is_label(&self.zone) {
            bail!(
                "cluster.zone {:?} is no name: use at most {ZONE_MAX} lower-case letters, digits and hyphens",
                self.zone
            );
        }
        if self.node_lost_after_seconds < NODE_LOST_AFTER_MIN {
            bail!(
                "cluster.node_lost_after_seconds is {}, and {NODE_LOST_AFTER_MIN} at least: nodes that are restarted would be \
                 given up",
                self.node_lost_after_seconds
            );
        }
        if self.consul.is_some() && !self.peers.is_empty() {
            bail!("[cluster] has a Consul and a list of peers: one of them says who is there");
        }
        if self.consul.is_none() && self.peers.is_empty() {
            bail!("[cluster] does not say who is there: set [cluster.consul], or [[cluster.peers]]");
        }
        if let Some(node) = self
            .peers
            .iter()
            .find(|peer| peer.role == Role::Node && peer.id.is_none())
        {
            bail!("the node {} of [[cluster.peers]] has no id", node.address);
        }
        let is_control = |role: &Role| matches!(role, Role::Api | Role::Orchestrator);
        if roles.iter().any(is_control) && self.database.is_none() {
            bail!("[cluster.database] is missing: roles api and orchestrator work on it");
        }
        if roles.iter().any(|role| *role != Role::Node) && self.redis.is_none() {
            bail!("[cluster.redis] is missing: roles api, edge and orchestrator share routes by it");
        }
        self.overcommit()?;
        if let Some(nomad) = &self.nomad {
            nomad.check(&self.name)?;
        }
        let reached = self.advertised();
        if reached.ip().is_unspecified() {
            bail!(
                "others cannot reach {reached}: set cluster.advertise to the address of this machine that they see"
            );
        }
        Ok(())
    }

    /// Where others reach this process.
    pub(crate) fn advertised(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.rpc_listen)
    }

    /// What may be promised on each node.
    pub(crate) fn overcommit(&self) -> Result<Overcommit> {
        let usual = Overcommit::default();
        let ratio = |key: &str, set: Option<f64>, usual: Ratio| match set {
            None => Ok(usual),
            Some(set) => Ratio::new(set)
                .with_context(|| format!("cluster.overcommit.{key} is {set}, and between 0.001 and 1000")),
        };
        Ok(Overcommit {
            cpu: ratio("cpu", self.overcommit.cpu, usual.cpu)?,
            memory: ratio("memory", self.overcommit.memory, usual.memory)?,
            disk: ratio("disk", self.overcommit.disk, usual.disk)?,
        })
    }

    /// The database that is named.
    pub(crate) fn database(&self) -> Result<Database> {
        let settings = self.database.as_ref();
        let settings =
            settings.context("[cluster.database] is missing: it names the database that all share")?;
        let mut config = PostgresConfig::new(settings.url.clone());
        config.ca = settings.ca.clone();
        config.application_name = format!("atoll {}", self.name);
        if let Some(connections) = settings.connections {
            config.connections_max = connections as usize;
        }
        config.check().context("[cluster.database] cannot be used")?;
        Ok(Database::Postgres(config))
    }

    /// How long a node may be gone.
    pub(crate) fn node_lost_after(&self) -> Duration {
        Duration::from_secs(self.node_lost_after_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "
        name = 'main'
        ca = '/c/ca.pem'
        certificate = '/c/me.pem'
        key = '/c/me-key.pem'
        [database]
        url = 'postgres://atoll@127.0.0.1/atoll'
        [redis]
        url = 'redis://127.0.0.1'
        [consul]
        address = 'http://127.0.0.1:8500'
    ";

    fn check(change: (&str, &str), roles: &[Role], wrong: Option<&str>) {
        let text = WHOLE.replace(change.0, change.1);
        let settings: ClusterSettings = toml::from_str(&text).unwrap();
        let told = settings.check(roles).err().map(|error| error.to_string());
        match (told, wrong) {
            (None, None) => {}
            (Some(told), Some(words)) => assert!(told.contains(words), "{told}"),
            (told, _) => panic!("{change:?}: {told:?}"),
        }
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_name() {
        let all = [Role::Api, Role::Edge, Role::Orchestrator, Role::Node];
        check(("", ""), &all, None);
        check(("name =", "zone = 'a b'\nname ="), &all, Some("cluster.zone"));
        check(
            ("name =", "node_lost_after_seconds = 3\nname ="),
            &all,
            Some("node_lost_after_seconds is 3"),
        );
        check(
            ("[database]", "[overcommit]\ncpu = 0.0\n[database]"),
            &all,
            Some("cluster.overcommit.cpu is 0"),
        );
        let nomad = |block: &str| {
            format!("[nomad]\naddress = 'http://127.0.0.1:4646'\n[nomad.block]\n{block}\n[database]")
        };
        for (block, wrong) in [
            ("cpu = 4\nmemory_mib = 8192", None),
            (
                "cpu = 0\nmemory_mib = 8192",
                Some("[cluster.nomad.block] holds nothing"),
            ),
            (
                "cpu = 4\nmemory_mib = 8192\nspare = 9\nmost = 3",
                Some("block.spare is 9"),
            ),
        ] {
            check(("[database]", &nomad(block)), &all, wrong);
        }
        let driver =
            nomad("cpu = 1\nmemory_mib = 1").replace("[nomad.block]", "driver = 'docker'\n[nomad.block]");
        check(
            ("[database]", &driver),
            &all,
            Some("[cluster.nomad] cannot be used"),
        );
        check(
            ("name =", "rpc_listen = '0.0.0.0:1'\nname ="),
            &all,
            Some("cluster.advertise"),
        );
        let database = "[database]\n        url = 'postgres://atoll@127.0.0.1/atoll'";
        check((database, ""), &[Role::Orchestrator], Some("[cluster.database]"));
        check((database, ""), &[Role::Edge, Role::Node], None);
        let redis = "[redis]\n        url = 'redis://127.0.0.1'";
        check((redis, ""), &[Role::Edge], Some("[cluster.redis]"));
        check((redis, ""), &[Role::Node], None);
        let consul = "[consul]\n        address = 'http://127.0.0.1:8500'";
        check((consul, ""), &all, Some("who is there"));
        check(
            (consul, "[[peers]]\nrole = 'node'\naddress = '127.0.0.1:1'"),
            &all,
            Some("has no id"),
        );
        check(
            (consul, "[[peers]]\nrole = 'api'\naddress = '127.0.0.1:1'"),
            &all,
            None,
        );
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let text = WHOLE.replace("'main'", "'Main'");
        let error = toml::from_str::<ClusterSettings>(&text).unwrap_err().to_string();
        assert!(error.contains("'Main' is no name of a cluster"), "{error}");
        assert!(error.contains("name = "), "{error}");
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = WHOLE.replace("name =", "nmae = 'x'\nname =");
        assert!(
            toml::from_str::<ClusterSettings>(&text)
                .unwrap_err()
                .to_string()
                .contains("nmae")
        );
    }
}
