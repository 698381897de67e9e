//! The nodes that are there.
use std::sync::Arc;

use model::NodeId;
use tokio::sync::watch;

use crate::node::Node;

/// The nodes that are there, as a watched value: a static list, or what service discovery says.
pub trait Fleet: Send + Sync {
    /// All nodes, now and as they change.
    fn nodes(&self) -> watch::Receiver<Vec<Arc<dyn Node>>>;
    /// What a node fails together with: a room, a rack. Empty where that is not known.
    fn zone(&self, id: NodeId) -> String {
        let _ = id;
        String::new()
    }
    /// One node.
    fn node(&self, id: NodeId) -> Option<Arc<dyn Node>> {
        self.nodes().borrow().iter().find(|node| node.id() == id).cloned()
    }
}

/// A fleet that never changes: the embedded mode's one node.
pub struct Static(watch::Sender<Vec<Arc<dyn Node>>>);

impl Static {
    /// A fleet of these nodes.
    #[must_use]
    pub fn new(nodes: Vec<Arc<dyn Node>>) -> Self {
        Self(watch::channel(nodes).0)
    }
}

impl Fleet for Static {
    fn nodes(&self) -> watch::Receiver<Vec<Arc<dyn Node>>> {
        self.0.subscribe()
    }
}
