//! The nodes that service discovery tells of, each reached by RPC.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use model::NodeId;
use ports::discovery::{Found, Health, Known, Members};
use ports::{Fleet, Node, VolumeFiles, VolumeNodes};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a node that discovery does not vouch for may take to answer for itself.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How often those are asked that discovery does not vouch for.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A node, by the ways in which it is asked.
#[derive(Clone)]
pub(crate) struct Reached {
    pub(crate) node: Arc<dyn Node>,
    /// The files in its volumes, by lines of their own: they are long, and words are short.
    pub(crate) volumes: Arc<dyn VolumeFiles>,
}

/// How a node is reached.
pub(crate) type Connect = Box<dyn Fn(NodeId, SocketAddr) -> Reached + Send + Sync>;

/// The fleet. A node is in it while discovery says that it is well, or while it answers.
pub(crate) struct Discovered {
    nodes: watch::Sender<Vec<Arc<dyn Node>>>,
    zones: Mutex<HashMap<NodeId, String>>,
    /// The same nodes, to be found by their ids.
    by_id: RwLock<HashMap<NodeId, Reached>>,
}

impl Fleet for Discovered {
    fn nodes(&self) -> watch::Receiver<Vec<Arc<dyn Node>>> {
        self.nodes.subscribe()
    }
    fn node(&self, id: NodeId) -> Option<Arc<dyn Node>> {
        let by_id = self.by_id.read().expect(UNPOISONED);
        by_id.get(&id).map(|reached| Arc::clone(&reached.node))
    }
    fn zone(&self, id: NodeId) -> String {
        let zones = self.zones.lock().expect(UNPOISONED);
        zones.get(&id).cloned().unwrap_or_default()
    }
}

impl VolumeNodes for Discovered {
    fn files_on(&self, node: NodeId) -> Option<Arc<dyn VolumeFiles>> {
        let by_id = self.by_id.read().expect(UNPOISONED);
        by_id.get(&node).map(|reached| Arc::clone(&reached.volumes))
    }
}

const UNPOISONED: &str = "nothing panics while it holds what is known of nodes";

/// Where nodes are.
pub(crate) type Addresses = HashMap<NodeId, SocketAddr>;

/// What an instance says of where it is, if that makes sense.
pub(crate) fn address(found: &Found) -> Option<SocketAddr> {
    let ip = found.instance.address.parse().ok()?;
    Some(SocketAddr::new(ip, found.instance.port))
}

/// The nodes among those that are told, with where they are; those that are not well apart.
fn sort(members: &Members) -> (Addresses, Addresses) {
    let (mut well, mut unwell) = (Addresses::new(), Addresses::new());
    for found in &members.found {
        let (Ok(id), Some(address)) = (found.instance.id.parse(), address(found)) else {
            tracing::warn!(
                id = found.instance.id,
                "an instance that is told to be a node is none"
            );
            continue;
        };
        let into = if found.health == Health::Critical {
            &mut unwell
        } else {
            &mut well
        };
        into.insert(id, address);
    }
    (well, unwell)
}

impl Discovered {
    /// A fleet of nobody yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            nodes: watch::channel(Vec::new()).0,
            zones: Mutex::default(),
            by_id: RwLock::default(),
        })
    }

    /// Follows what discovery tells until `shutdown`.
    pub(crate) async fn follow(
        self: Arc<Self>,
        mut members: watch::Receiver<Arc<Members>>,
        connect: Connect,
        shutdown: CancellationToken,
    ) {
        let mut reached: HashMap<NodeId, (SocketAddr, Reached)> = HashMap::new();
        loop {
            let told = Arc::clone(&members.borrow_and_update());
            // What was heard last holds until something newer is heard.
            if told.known == Known::Current {
                self.settle(&told, &mut reached, &connect).await;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = members.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
    }

    async fn settle(
        &self,
        told: &Members,
        reached: &mut HashMap<NodeId, (SocketAddr, Reached)>,
        connect: &Connect,
    ) {
        let (well, unwell) = sort(told);
        let zone = |found: &Found| Some((found.instance.id.parse().ok()?, found.instance.zone.clone()));
        *self.zones.lock().expect(UNPOISONED) = told.found.iter().filter_map(zone).collect();
        for (id, address) in &well {
            if reached.get(id).is_none_or(|(at, _)| at != address) {
                tracing::info!(node = %id, %address, "a node is in the fleet");
                reached.insert(*id, (*address, connect(*id, *address)));
            }
        }
        let doubted = reached.iter().filter(|(id, _)| !well.contains_key(id));
        let asked = doubted.map(async |(id, (_, reached))| (*id, answers(reached.node.as_ref()).await));
        for (id, answers) in futures_util::future::join_all(asked).await {
            if answers {
                tracing::debug!(node = %id, told = unwell.contains_key(&id), "a node answers that discovery does not vouch for");
            } else {
                tracing::warn!(node = %id, "a node is not in the fleet any more");
                reached.remove(&id);
            }
        }
        let by_id = reached.iter().map(|(id, (_, reached))| (*id, reached.clone()));
        *self.by_id.write().expect(UNPOISONED) = by_id.collect();
        self.nodes.send_if_modified(|nodes| {
            let same = |node: &Arc<dyn Node>| {
                reached
                    .get(&node.id())
                    .is_some_and(|(_, now)| Arc::ptr_eq(&now.node, node))
            };
            if nodes.len() == reached.len() && nodes.iter().all(same) {
                return false;
            }
            let all = reached.values().map(|(_, reached)| Arc::clone(&reached.node));
            *nodes = all.collect();
            nodes.sort_by_key(|node| node.id());
            true
        });
    }
}

/// Whether a node answers.
async fn answers(node: &dyn Node) -> bool {
    matches!(
        tokio::time::timeout(ANSWERS_WITHIN, node.report()).await,
        Ok(Ok(_))
    )
}

#[cfg(test)]
mod tests {
    use ports::discovery::{Instance, Role};

    use super::*;
    use crate::no_volumes::NoVolumes;

    fn found(id: &str, port: u16, health: Health) -> Found {
        Found {
            instance: Instance {
                id: id.to_owned(),
                role: Role::Node,
                address: "127.0.0.1".to_owned(),
                port,
                zone: String::new(),
                version: String::new(),
                capacity: None,
                meta: Default::default(),
            },
            health,
            notes: String::new(),
        }
    }

    #[test]
    fn what_is_no_node_is_left_out_and_the_unwell_are_apart() {
        let (one, two) = (NodeId::random(), NodeId::random());
        let members = Members {
            found: vec![
                found(&one.to_string(), 1, Health::Passing),
                found(&two.to_string(), 2, Health::Critical),
                found("nonsense", 3, Health::Passing),
            ],
            known: Known::Current,
            refused: 0,
        };
        let (well, unwell) = sort(&members);
        assert_eq!(well.keys().collect::<Vec<_>>(), [&one]);
        assert_eq!(unwell[&two].port(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_view_takes_no_node_away() {
        let id = NodeId::random();
        let current = Members {
            found: vec![found(&id.to_string(), 1, Health::Passing)],
            known: Known::Current,
            refused: 0,
        };
        let (told, members) = watch::channel(Arc::new(current));
        let fleet = Discovered::new();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let connect: Connect = Box::new(move |id, address| {
            seen.lock().unwrap().push(address.port());
            Reached {
                node: Arc::new(mute::Mute(id)),
                volumes: Arc::new(NoVolumes("a node that answers nothing".to_owned())),
            }
        });
        let stop = CancellationToken::new();
        let following = tokio::spawn(Arc::clone(&fleet).follow(members, connect, stop.clone()));
        let mut nodes = fleet.nodes();
        nodes.wait_for(|nodes| nodes.len() == 1).await.unwrap();
        assert!(fleet.files_on(id).is_some() && fleet.files_on(NodeId::random()).is_none());
        told.send_replace(Arc::new(Members {
            found: Vec::new(),
            known: Known::Stale("gone".to_owned()),
            refused: 0,
        }));
        tokio::time::sleep(ASK_AGAIN * 3).await;
        assert_eq!(nodes.borrow_and_update().len(), 1);
        told.send_replace(Arc::new(Members {
            found: Vec::new(),
            known: Known::Current,
            refused: 0,
        }));
        nodes.wait_for(Vec::is_empty).await.unwrap();
        assert!(fleet.files_on(id).is_none());
        assert_eq!(*asked.lock().unwrap(), [1]);
        stop.cancel();
        following.await.unwrap();
    }

    /// A node that answers nothing.
    mod mute {
        use async_trait::async_trait;
        use model::{BuildId, ExecutionId, KillReason, Memory, NetworkPolicy, NodeId, PauseMode, SandboxId};
        use ports::builds::{BuildError, BuildOrder, BuildTalk, Built};
        use ports::logs::{LogLine, LogQuery, MetricSample};
        use ports::node::{NodeError, NodeEvent, Order, PauseOutcome, Report};
        use std::time::SystemTime;
        use tokio::sync::broadcast;

        pub(super) struct Mute(pub(super) NodeId);

        const AWAY: NodeError = NodeError::Timeout("an answer");

        #[async_trait]
        impl ports::Node for Mute {
            fn id(&self) -> NodeId {
                self.0
            }
            async fn start(&self, _: Order) -> Result<(), NodeError> {
                Err(AWAY)
            }
            async fn pause(
                &self,
                _: SandboxId,
                _: ExecutionId,
                _: BuildId,
                _: PauseMode,
            ) -> Result<PauseOutcome, NodeError> {
                Err(AWAY)
            }
            async fn checkpoint(
                &self,
                _: SandboxId,
                _: ExecutionId,
                _: BuildId,
                _: bool,
            ) -> Result<Memory, NodeError> {
                Err(AWAY)
            }
            async fn build(&self, _: BuildOrder, _: BuildTalk) -> Result<Built, BuildError> {
                Err(BuildError::Cancelled)
            }
            async fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
                Err(AWAY)
            }
            async fn remove_builds(&self, _: &[BuildId]) -> Result<(), NodeError> {
                Err(AWAY)
            }
            async fn kill(&self, _: SandboxId, _: KillReason) -> Result<(), NodeError> {
                Err(AWAY)
            }
            async fn set_deadline(
                &self,
                _: SandboxId,
                _: ExecutionId,
                _: SystemTime,
            ) -> Result<(), NodeError> {
                Err(AWAY)
            }
            async fn set_network(
                &self,
                _: SandboxId,
                _: ExecutionId,
                _: NetworkPolicy,
            ) -> Result<(), NodeError> {
                Err(AWAY)
            }
            async fn metrics(
                &self,
                _: SandboxId,
                _: Option<SystemTime>,
                _: Option<SystemTime>,
            ) -> Result<Vec<MetricSample>, NodeError> {
                Err(AWAY)
            }
            async fn logs(&self, _: SandboxId, _: LogQuery) -> Result<Vec<LogLine>, NodeError> {
                Err(AWAY)
            }
            async fn report(&self) -> Result<Report, NodeError> {
                Err(AWAY)
            }
            fn events(&self) -> broadcast::Receiver<NodeEvent> {
                broadcast::channel(1).1
            }
        }
    }
}
