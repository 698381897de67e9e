//! Who is in the fleet, where each keeps what, and where it listens.
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use model::{BuildId, NodeId, Secret};
use rpc::ca::{Authority, AuthorityError};
use rpc::identity::Identity;
use serde_json::json;

use super::Options;
use super::process::Spawn;
use crate::data::Credentials;
use crate::settings::cluster::Role;

/// The fleet's name.
pub(super) const NAME: &str = "dev";
/// The third byte of its network, of 10.213.0.0/16, which no more than one of these on a machine uses.
const NET: [u8; 3] = [10, 213, 0];
/// Of nodes: it is the same on each of them.
const RPC_PORT: u16 = 5008;
const ADMIN_PORT: u16 = 3003;
/// The API that knows operators: to keys it does not show the nodes, and the other one does.
const OPERATED: &str = "api-2";
/// A fleet for looking at lives no longer.
const CERTIFIED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// A process of Atoll.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) role: Role,
    /// What its certificate says.
    pub(super) identity: String,
    pub(super) dir: PathBuf,
    pub(super) settings: PathBuf,
    /// The network namespace that it is in.
    pub(super) netns: Option<String>,
    pub(super) rpc: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Where clients reach it, if they do.
    pub(super) listen: Option<SocketAddr>,
}

/// A node's end of the network.
pub(super) struct NodeNet {
    pub(super) netns: String,
    /// Its link's name on the host.
    pub(super) link: String,
    pub(super) address: Ipv4Addr,
}

/// The whole.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) members: Vec<Member>,
    pub(super) nodes: Vec<NodeNet>,
    /// The host's own address on the bridge.
    pub(super) gateway: Ipv4Addr,
    pub(super) postgres: SocketAddr,
    pub(super) redis: SocketAddr,
    pub(super) consul: SocketAddr,
    /// What operators show the API that knows them.
    admin_token: String,
    criu: Option<PathBuf>,
    runtime: String,
}

fn host_address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(NET[0], NET[1], NET[2], last)
}

/// Below the ports that Linux gives to whoever connects (`ip_local_port_range`, ip(7)): a process that is started again must find
/// its own free.
const PORTS: Range<u16> = 20_000..32_000;

/// An address of loopback that was free a moment ago, and that nobody takes by chance.
fn free() -> Result<SocketAddr> {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        let drawn = std::process::id().wrapping_add(DRAWN.fetch_add(1, Ordering::Relaxed));
        let port = u32::from(PORTS.start) + drawn % u32::from(PORTS.end - PORTS.start);
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), u16::try_from(port)?);
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!(
        "no port of loopback from {} to {} is free",
        PORTS.start,
        PORTS.end
    )
}

impl Layout {
    /// Plans it below a directory.
    pub(super) fn make(options: &Options) -> Result<Self> {
        let dir = std::path::absolute(&options.dir)?;
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let gateway = host_address(1);
        let mut layout = Self {
            members: Vec::new(),
            nodes: Vec::new(),
            gateway,
            postgres: free()?,
            redis: free()?,
            // Reached from the nodes, which have no agent of their own here.
            consul: SocketAddr::new(gateway.into(), 8500),
            admin_token: BuildId::random().to_string(),
            criu: options.criu.clone(),
            runtime: options.runtime.clone(),
            dir,
        };
        for (role, first) in [
            (Role::Api, Some(options.api_listen)),
            (Role::Edge, Some(options.edge_listen)),
            (Role::Orchestrator, None),
        ] {
            for number in 1..=2_u8 {
                let listen = match (first, number) {
                    (Some(first), 1) => Some(first),
                    (Some(_), _) => Some(free()?),
                    (None, _) => None,
                };
                layout.add_control(role, number, listen)?;
            }
        }
        for number in 1..=options.nodes {
            layout.add_node(number)?;
        }
        Ok(layout)
    }

    fn add_control(&mut self, role: Role, number: u8, listen: Option<SocketAddr>) -> Result<()> {
        let name = format!("{}-{number}", role.name());
        let dir = self.dir.join(&name);
        self.members.push(Member {
            identity: name.clone(),
            role,
            settings: dir.join("atoll.toml"),
            dir,
            netns: None,
            rpc: free()?,
            admin: free()?,
            listen,
            name,
        });
        Ok(())
    }

    fn add_node(&mut self, number: u8) -> Result<()> {
        let name = format!("node-{number}");
        let (dir, address) = (self.dir.join(&name), host_address(10 + number));
        let netns = format!("atoll-dev-{number}");
        self.nodes.push(NodeNet {
            netns: netns.clone(),
            link: format!("atolldev{number}"),
            address,
        });
        self.members.push(Member {
            identity: node_id(&dir.join("data"))?.to_string(),
            role: Role::Node,
            settings: dir.join("atoll.toml"),
            dir,
            netns: Some(netns),
            rpc: SocketAddr::new(address.into(), RPC_PORT),
            admin: SocketAddr::new(address.into(), ADMIN_PORT),
            listen: None,
            name,
        });
        Ok(())
    }

    /// The processes that work on the database.
    pub(super) fn control(&self) -> impl Iterator<Item = &Member> {
        let is_control = |member: &&Member| matches!(member.role, Role::Api | Role::Orchestrator);
        self.members.iter().filter(is_control)
    }

    /// Everybody's settings.
    pub(super) fn write_settings(&self) -> Result<()> {
        for member in &self.members {
            std::fs::create_dir_all(&member.dir)?;
            std::fs::write(&member.settings, self.settings_of(member))
                .with_context(|| format!("cannot write {}", member.settings.display()))?;
        }
        Ok(())
    }

    fn settings_of(&self, member: &Member) -> String {
        let mut top = toml::Table::new();
        top.insert("admin_listen".to_owned(), member.admin.to_string().into());
        if let Some(listen) = member.listen {
            let key = if member.role == Role::Api {
                "api_listen"
            } else {
                "edge_listen"
            };
            top.insert(key.to_owned(), listen.to_string().into());
        }
        if member.name == OPERATED {
            top.insert("admin_token".to_owned(), self.admin_token.clone().into());
        }
        if member.role == Role::Node {
            // The admin listener is on the bridge, which is this machine's own.
            top.insert("insecure_listen".to_owned(), true.into());
            top.insert("runtime".to_owned(), self.runtime.clone().into());
            if let Some(criu) = &self.criu {
                top.insert("criu".to_owned(), criu.display().to_string().into());
            }
        }
        let blobs = json!({ "directory": self.dir.join("blobs"), "builds": true });
        let identity = |end: &str| self.identities().join(format!("{}{end}", member.identity));
        let mut cluster = json!({
            "name": NAME,
            "zone": format!("zone-{}", if member.name.ends_with('2') { "b" } else { "a" }),
            "rpc_listen": member.rpc,
            "ca": self.identities().join("ca.pem"),
            "certificate": identity(".pem"),
            "key": identity("-key.pem"),
            "node_lost_after_seconds": 15,
            // All nodes are one machine, which has what each of them says that it has.
            "overcommit": { "cpu": 64.0, "memory": 4.0 },
            "consul": { "address": format!("http://{}", self.consul) },
        });
        if member.role != Role::Node {
            cluster["redis"] = json!({ "url": format!("redis://{}", self.redis) });
        }
        if matches!(member.role, Role::Api | Role::Orchestrator) {
            let url = format!("postgres://atoll@{}/atoll?sslmode=disable", self.postgres);
            cluster["database"] = json!({ "url": url });
        }
        let table = |value| toml::Value::try_from(value).expect("these are strings and numbers");
        top.insert("blobs".to_owned(), table(&blobs));
        top.insert("cluster".to_owned(), table(&cluster));
        top.to_string()
    }

    /// The authority, and everybody's certificate.
    pub(super) fn issue_certificates(&self) -> Result<()> {
        let (dir, cluster) = (self.identities(), NAME.parse()?);
        let authority = match Authority::create(&dir, &cluster) {
            Err(AuthorityError::Exists(_)) => Authority::open(&dir)?,
            made => made?,
        };
        for member in &self.members {
            let role = member.role.name().parse()?;
            let identity = Identity::new(&cluster, role, &member.identity)?;
            authority.issue_into(&dir, &identity, CERTIFIED_FOR)?;
        }
        Ok(())
    }

    /// Where certificates lie.
    pub(super) fn identities(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// What clients use.
    pub(super) fn credentials(&self, key: String) -> Credentials {
        let first = |role| {
            let is_first = |member: &&Member| member.role == role;
            let listen = self
                .members
                .iter()
                .find(is_first)
                .and_then(|member| member.listen);
            format!("http://{}", listen.expect("clients reach the API and the edge"))
        };
        Credentials {
            api_url: first(Role::Api),
            sandbox_url: first(Role::Edge),
            api_key: Secret::new(key),
        }
    }

    /// Every API, for who asks it for the nodes.
    pub(super) fn apis(&self, credentials: &Credentials) -> Result<Vec<sdk::Client>> {
        let admin_token = Secret::new(self.admin_token.clone());
        let listening = self.members.iter().filter(|member| member.role == Role::Api);
        let client = |member: &Member| {
            let listen = member.listen.context("an API listens")?;
            let url = format!("http://{listen}");
            Ok(match member.name == OPERATED {
                true => sdk::Client::of_operator(&url, &admin_token)?,
                false => sdk::Client::new(&url, &credentials.api_key)?,
            })
        };
        listening.map(client).collect()
    }

    /// What tests are told of it.
    pub(super) fn told(&self, credentials: &Credentials) -> serde_json::Value {
        let members: Vec<_> = self
            .members
            .iter()
            .map(|member| {
                json!({
                    "name": member.name,
                    "role": member.role.name(),
                    "identity": member.identity,
                    "admin": member.admin,
                    "rpc": member.rpc,
                    "listen": member.listen,
                    "netns": member.netns,
                    "settings": member.settings,
                    "log": member.log(),
                    "data": member.dir.join("data"),
                })
            })
            .collect();
        json!({
            "apiUrl": credentials.api_url,
            "sandboxUrl": credentials.sandbox_url,
            "apiKey": credentials.api_key.expose(),
            "adminToken": self.admin_token,
            "postgres": self.postgres,
            "redis": self.redis,
            "consul": self.consul,
            "processes": self.dir.join("processes.json"),
            "members": members,
        })
    }
}

impl Member {
    /// Its data directory.
    pub(super) fn data(&self) -> String {
        self.dir.join("data").display().to_string()
    }

    /// What it says.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// How it is started.
    pub(super) fn spawn(&self, own: &Path) -> Spawn {
        let serve = [
            own.display().to_string(),
            "serve".to_owned(),
            self.role.name().to_owned(),
            "--config".to_owned(),
            self.settings.display().to_string(),
            "--data-dir".to_owned(),
            self.data(),
        ];
        let argv = match &self.netns {
            Some(netns) => {
                let within = ["nsenter".to_owned(), format!("--net=/run/netns/{netns}")];
                within.into_iter().chain(serve).collect()
            }
            None => serve.to_vec(),
        };
        Spawn {
            name: self.name.clone(),
            argv,
            user: None,
            log: self.log(),
        }
    }
}

/// A node's name, which its certificate holds before it was ever started.
fn node_id(data: &Path) -> Result<NodeId> {
    let path = data.join("node-id");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return text
            .trim()
            .parse()
            .with_context(|| format!("{} does not hold a node id", path.display()));
    }
    let id = NodeId::random();
    std::fs::create_dir_all(data)?;
    std::fs::write(&path, format!("{id}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}
