//! The nodes on which volumes lie, as one process asks them.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use model::NodeId;
use ports::{Fleet as _, VolumeFiles, VolumeNodes};

use super::{FakeFiles, Fuse, Fused, Nodes};

/// What each node has.
pub(crate) type Disks = Arc<Mutex<BTreeMap<NodeId, Arc<FakeFiles>>>>;

/// The files on the nodes that are in the fleet, as one process asks for them.
pub(crate) struct FakeNodes {
    pub(crate) disks: Disks,
    pub(crate) fleet: Arc<Nodes>,
    pub(crate) fuse: Option<Arc<Fuse>>,
    pub(crate) only: Option<NodeId>,
}

impl VolumeNodes for FakeNodes {
    fn files_on(&self, node: NodeId) -> Option<Arc<dyn VolumeFiles>> {
        let nodes = self.fleet.nodes();
        let is_there = nodes.borrow().iter().any(|there| there.id() == node);
        let files = is_there.then(|| Arc::clone(self.disks.lock().unwrap().entry(node).or_default()))?;
        Some(match &self.fuse {
            Some(fuse) => Arc::new(Fused::new(files as Arc<dyn VolumeFiles>, fuse.clone())),
            None => files,
        })
    }
    fn only(&self) -> Option<NodeId> {
        self.only
    }
}
