//! Who is there, and that we are.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use model::{NodeId, ProcessId};
use ports::discovery::{self, Capacity, Check, Fixed, Health, Instance, Probe};
use ports::{Node as _, ServiceDiscovery};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::fleet::address;
use crate::host::Host;
use crate::settings::Resolved;
use crate::settings::cluster::{ClusterSettings, ConsulSettings, Peer, Role};

/// Who is silent for so long is not well.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// How often those of a list are looked at.
const KNOCK_EVERY: Duration = Duration::from_secs(2);
/// A process that answers at an address takes no longer.
const CONNECTS_WITHIN: Duration = Duration::from_secs(2);

/// Service discovery, and what was registered with it.
pub(crate) struct Members {
    discovery: Arc<dyn ServiceDiscovery>,
    /// Who is there is said by the configuration, and by nobody else.
    is_list: bool,
    /// The id of this process, for roles that have no other.
    process: ProcessId,
    joined: tokio::sync::Mutex<Vec<(discovery::Role, String)>>,
}

/// The role as discovery knows it.
pub(crate) const fn role(role: Role) -> discovery::Role {
    match role {
        Role::Api => discovery::Role::Api,
        Role::Edge => discovery::Role::Edge,
        Role::Orchestrator => discovery::Role::Orchestrator,
        Role::Node => discovery::Role::Node,
    }
}

fn fixed(peer: &Peer) -> Instance {
    let id = match peer.id {
        Some(id) => id.to_string(),
        None => format!("{}-{}", peer.role.name(), peer.address).replace(['[', ']', ':'], "-"),
    };
    Instance {
        id,
        role: role(peer.role),
        address: peer.address.ip().to_string(),
        port: peer.address.port(),
        zone: peer.zone.clone(),
        version: String::new(),
        capacity: None,
        meta: Default::default(),
    }
}

impl Members {
    /// Those of the Consul, or of the list, that the settings name.
    pub(crate) async fn open(cluster: &ClusterSettings) -> Result<Self> {
        let discovery: Arc<dyn ServiceDiscovery> = match &cluster.consul {
            Some(consul) => consul_of(cluster, consul).await?,
            None => {
                let listed = cluster.peers.iter().map(fixed).collect();
                Arc::new(Fixed::probed(listed, Arc::new(Knock), KNOCK_EVERY).await?)
            }
        };
        Ok(Self {
            discovery,
            is_list: cluster.consul.is_none(),
            process: ProcessId::random(),
            joined: tokio::sync::Mutex::default(),
        })
    }

    /// Those of a role.
    pub(crate) fn watch(&self, of: Role) -> watch::Receiver<Arc<discovery::Members>> {
        self.discovery.watch(role(of))
    }

    /// Where the nodes are, now and as they change.
    pub(crate) fn node_addresses(&self) -> watch::Receiver<HashMap<NodeId, String>> {
        map(self.watch(Role::Node), |members| {
            let one = |found: &discovery::Found| {
                let id = found.instance.id.parse().ok()?;
                Some((id, address(found)?.to_string()))
            };
            members.found.iter().filter_map(one).collect()
        })
    }

    /// Where the control plane is: those who resume what sleeps.
    pub(crate) fn control_addresses(&self) -> watch::Receiver<Vec<String>> {
        map(self.watch(Role::Api), |members| {
            let usable = members.usable().into_iter().filter_map(address);
            usable.map(|address| address.to_string()).collect()
        })
    }

    /// Says that this process is there. A node of the same id that answers elsewhere is another machine with a copy of this
    /// one's data: both would be asked for the same sandboxes.
    pub(crate) async fn join(
        &self,
        settings: &Resolved,
        cluster: &ClusterSettings,
        roles: &[Role],
        host: Option<&Host>,
    ) -> Result<()> {
        let at = cluster.advertised();
        for own in roles {
            let id = match (own, host) {
                (Role::Node, Some(host)) => host.node.id().to_string(),
                _ => format!("{}-{}", own.name(), self.process),
            };
            if *own == Role::Node {
                self.refuse_twin(&id, at).await?;
            }
            let mut meta = std::collections::BTreeMap::new();
            meta.insert("runtime".to_owned(), settings.runtime.name().to_owned());
            let instance = Instance {
                id: id.clone(),
                role: role(*own),
                address: at.ip().to_string(),
                port: at.port(),
                zone: cluster.zone.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                capacity: match (own, host) {
                    (Role::Node, Some(host)) => capacity(host).await,
                    _ => None,
                },
                meta,
            };
            if self.is_list {
                continue;
            }
            let registered = self.discovery.register(instance, Check::Ttl(SILENT_MAX)).await;
            if let Err(error) = registered {
                // It is told again until it is heard.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "service discovery is not told yet that this process is there"
                );
            }
            self.joined.lock().await.push((role(*own), id));
        }
        Ok(())
    }

    async fn refuse_twin(&self, id: &str, own: SocketAddr) -> Result<()> {
        let Ok(members) = self.discovery.discover(discovery::Role::Node).await else {
            return Ok(());
        };
        let Some(twin) = members.get(id).filter(|found| found.health != Health::Critical) else {
            return Ok(());
        };
        let Some(elsewhere) = address(twin).filter(|at| *at != own) else {
            return Ok(());
        };
        let answers = tokio::time::timeout(CONNECTS_WITHIN, TcpStream::connect(elsewhere)).await;
        anyhow::ensure!(
            !matches!(answers, Ok(Ok(_))),
            "the node {id} is in the fleet already, at {elsewhere}: this data directory is a copy of that one's. Remove `node-id` \
             from it to make this another node"
        );
        Ok(())
    }

    /// Says that this process is gone.
    pub(crate) async fn leave(&self) {
        for (role, id) in self.joined.lock().await.drain(..) {
            if let Err(error) = self.discovery.deregister(role, &id).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "service discovery was not told that this process goes"
                );
            }
        }
    }
}

/// How much of a machine there is.
async fn capacity(host: &Host) -> Option<Capacity> {
    let report = host.node.report().await.ok()?;
    Some(Capacity {
        cpu: report.cpu_total,
        memory: report.memory_total,
        disk: report.disk_total,
    })
}

/// A watched value of another.
fn map<T: Send + Sync + 'static + PartialEq>(
    mut from: watch::Receiver<Arc<discovery::Members>>,
    make: impl Fn(&discovery::Members) -> T + Send + 'static,
) -> watch::Receiver<T> {
    let (sender, receiver) = watch::channel(make(&from.borrow_and_update()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                changed = from.changed() => if changed.is_err() { return },
            }
            let made = make(&from.borrow_and_update());
            sender.send_if_modified(|now| {
                let is_new = *now != made;
                if is_new {
                    *now = made;
                }
                is_new
            });
        }
    });
    receiver
}

async fn consul_of(cluster: &ClusterSettings, consul: &ConsulSettings) -> Result<Arc<dyn ServiceDiscovery>> {
    let ca_pem = consul.ca.as_deref().map(std::fs::read_to_string).transpose();
    let config = cluster::consul::Config {
        token: consul.token.clone(),
        tls: cluster::peer::Tls {
            ca_pem: ca_pem.context("cluster.consul.ca cannot be read")?,
            identity_pem: None,
        },
        datacenter: consul.datacenter.clone(),
        ..cluster::consul::Config::new(&consul.address, cluster.name.clone())
    };
    Ok(cluster::consul::Consul::connect(config).await?)
}

/// Whether an instance of a list is well: whether it takes connections.
struct Knock;

#[async_trait]
impl Probe for Knock {
    async fn probe(&self, instance: &Instance) -> (Health, String) {
        let at = (instance.address.as_str(), instance.port);
        match tokio::time::timeout(CONNECTS_WITHIN, TcpStream::connect(at)).await {
            Ok(Ok(_)) => (Health::Passing, String::new()),
            Ok(Err(error)) => (Health::Critical, error.to_string()),
            Err(_) => (
                Health::Critical,
                format!("it takes no connection within {CONNECTS_WITHIN:?}"),
            ),
        }
    }
}
