//! What the tests of this crate stand on: a cluster's authority, peers of it, and a node that remembers what it was asked.

pub(crate) mod fake;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::NodeId;
use rpc::{Authority, Files, Identity, Role, Services, Tls, serve};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster with its authority.
pub(crate) struct Cluster {
    dir: TempDir,
    pub(crate) authority: Authority,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), &name.parse().unwrap()).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn files(&self, role: Role, name: &str) -> Files {
        let identity = Identity::new(self.authority.cluster(), role, name).unwrap();
        let dir = self.dir.path().join(format!("{role}-{name}"));
        self.authority.issue_into(&dir, &identity, rpc::ca::TTL).unwrap()
    }

    pub(crate) fn tls(&self, role: Role, name: &str) -> Tls {
        Tls::open(self.files(role, name)).unwrap()
    }

    pub(crate) fn node_tls(&self, node: NodeId) -> Tls {
        self.tls(Role::Node, &node.to_string())
    }
}

/// A process that serves.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<std::io::Result<()>>,
}

impl Served {
    pub(crate) async fn start(tls: Tls, services: Services) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, tls, services)
    }

    pub(crate) fn on(listener: TcpListener, tls: Tls, services: Services) -> Self {
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, tls, services, stop.clone()));
        Self { address, stop, task }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Ends at once, as if the process was killed.
    pub(crate) async fn kill(mut self) -> SocketAddr {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.address
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

/// What stands between two processes, and forwards until it is told to stop.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) stalled: CancellationToken,
    pub(crate) cut: CancellationToken,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stalled, cut) = (CancellationToken::new(), CancellationToken::new());
        let (stall, end) = (stalled.clone(), cut.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut near, _)) = listener.accept().await else {
                    return;
                };
                let (stall, end) = (stall.clone(), end.clone());
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = end.cancelled() => {}
                        () = stall.cancelled() => {
                            // Open, and silent for ever.
                            end.cancelled().await;
                        }
                    }
                });
            }
        });
        Self {
            address,
            stalled,
            cut,
            task,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut.cancel();
        self.task.abort();
    }
}

/// A node that is served, and a client of it.
pub(crate) struct Pair {
    pub(crate) cluster: Cluster,
    pub(crate) fake: Arc<fake::FakeNode>,
    pub(crate) served: Served,
    pub(crate) remote: Arc<dyn ports::Node>,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        Self::with(rpc::Bounds::default()).await
    }

    pub(crate) async fn with(bounds: rpc::Bounds) -> Self {
        let cluster = Cluster::new("blue");
        let fake = fake::FakeNode::new();
        let id = ports::Node::id(&*fake);
        let services = Services::new()
            .node(Arc::clone(&fake) as Arc<dyn ports::Node>)
            .bounds(bounds);
        let served = Served::start(cluster.node_tls(id), services).await;
        let tls = cluster.tls(Role::Orchestrator, "orchestrator-1");
        let remote = rpc::RemoteNode::connect(id, &served.address(), &tls);
        Self {
            cluster,
            fake,
            served,
            remote,
        }
    }
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("it did not come to be that {what}"));
}
