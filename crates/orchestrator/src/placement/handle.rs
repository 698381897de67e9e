//! Placement as use cases hold it: one view, a clock, and claims that give themselves back.
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{BuildId, NodeId, Resources};
use ports::ManagerError;
use tokio::time::Instant;

use super::refusals::Refusals;
use super::view::{Claim, State, View};
use super::{Choice, Facts, Policy, Wish};

/// Where sandboxes are placed, by what this process knows of the fleet.
pub struct Placement {
    view: Mutex<View>,
    began: Instant,
}

impl Placement {
    /// Knows of no node. The seed decides what is left to chance.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            view: Mutex::new(View::new(policy, seed)),
            began: Instant::now(),
        })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("nothing panics while it holds the view")
    }

    /// The view's time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Reads the view. Nothing is placed meanwhile.
    pub fn look<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view())
    }

    /// These are all the nodes: others are forgotten, new ones may be asked at once.
    pub fn fleet(&self, nodes: &[NodeId]) {
        let mut view = self.view();
        let there: HashSet<_> = nodes.iter().copied().collect();
        let mut gone: Vec<_> = view.nodes().filter(|node| !there.contains(node)).collect();
        gone.sort_unstable();
        for node in gone {
            view.forget(node);
        }
        for node in nodes {
            view.join(*node);
        }
    }

    /// A node reports. `asked_at` is [`Placement::now`] from before it was asked.
    pub fn report(&self, node: NodeId, facts: Facts, asked_at: Duration) {
        self.view().report(node, facts, asked_at);
    }

    /// All the builds that a node holds.
    pub fn holds(&self, node: NodeId, builds: impl IntoIterator<Item = BuildId>) {
        self.view().holds(node, builds);
    }

    /// Whether a build is known that the node holds: one that has only just joined, or come back, is known by none.
    #[must_use]
    pub fn knows_builds(&self, node: NodeId) -> bool {
        let view = self.view();
        view.slot(node)
            .is_some_and(|slot| !view.members[slot].builds.is_empty())
    }

    /// A node has one build more.
    pub fn fetched(&self, node: NodeId, build: BuildId) {
        self.view().fetched(node, build);
    }

    /// Something has ended on a node, or was paused there so that its memory is free: what is given is free.
    pub fn freed(&self, node: NodeId, resources: Resources) {
        let now = self.now();
        self.view().freed(node, resources, now);
    }

    /// A node did not do what it was asked, by its own fault.
    pub fn failed(&self, node: NodeId) {
        let now = self.now();
        self.view().failed(node, now);
    }

    /// Forgets a node.
    pub fn forget(&self, node: NodeId) {
        self.view().forget(node);
    }

    /// A node gets nothing new and keeps what it has; `false` where it is not known.
    pub fn cordon(&self, node: NodeId) -> bool {
        self.view().set_state(node, State::Cordoned)
    }

    /// A node gets nothing new, and is to be emptied; `false` where it is not known.
    pub fn drain(&self, node: NodeId) -> bool {
        self.view().set_state(node, State::Draining)
    }

    /// The checks of a node fail; `false` where it is not known.
    pub fn unhealthy(&self, node: NodeId) -> bool {
        let since = self.now();
        let mut view = self.view();
        // The first of them says since when.
        match view.get(node).map(|known| known.state) {
            Some(State::Unhealthy { .. }) => true,
            _ => view.set_state(node, State::Unhealthy { since }),
        }
    }

    /// A node gets new ones again; `false` where it is not known.
    pub fn ready(&self, node: NodeId) -> bool {
        self.view().set_state(node, State::Ready)
    }

    /// Begins to look for a node.
    #[must_use]
    pub fn search<'a>(self: &Arc<Self>, wish: Wish<'a>) -> Search<'a> {
        Search {
            placement: Arc::clone(self),
            wish,
            tried: Vec::new(),
            left: self.view().policy().tries,
            refusals: Refusals::default(),
        }
    }

    /// Counts what must be on a certain node, as a copy where its source is. `None` where the node is not known.
    #[must_use]
    pub fn reserve_on(self: &Arc<Self>, node: NodeId, wish: &Wish<'_>) -> Option<Reserved> {
        let now = self.now();
        let choice = self.view().claim_on(node, wish, now)?;
        Some(self.reserved(choice))
    }

    fn reserved(self: &Arc<Self>, choice: Choice) -> Reserved {
        Reserved {
            placement: Arc::clone(self),
            node: choice.node,
            claim: Some(choice.claim),
        }
    }
}

/// The nodes that may take something, one after another, the best first.
pub struct Search<'a> {
    placement: Arc<Placement>,
    wish: Wish<'a>,
    tried: Vec<NodeId>,
    left: usize,
    refusals: Refusals,
}

impl Search<'_> {
    /// The next node to ask; `None` where no other is to be asked, see [`Search::no_capacity`].
    pub fn next_node(&mut self) -> Option<Reserved> {
        self.left = self.left.checked_sub(1)?;
        let now = self.placement.now();
        let chosen = self.placement.view().choose(&self.wish, &self.tried, now);
        match chosen {
            Ok(choice) => Some(self.placement.reserved(choice)),
            Err(filtered) => {
                self.left = 0;
                self.refusals.filtered(filtered);
                None
            }
        }
    }

    /// A node is out of `what`: another one is looked for, and this one is asked for less until it reports again.
    pub fn refused(&mut self, mut reserved: Reserved, what: &'static str) {
        self.refusals.count(what);
        self.tried.push(reserved.node);
        if let Some(claim) = reserved.claim.take() {
            self.placement.view().full(claim, what);
        }
    }

    /// A node cannot take this, for it has not got `what`; others it can take as before. Another one is looked for.
    pub fn lacking(&mut self, reserved: Reserved, what: &'static str) {
        self.refusals.count(what);
        self.tried.push(reserved.node);
    }

    /// A node failed at it, by its own fault: another one is looked for, and this one is trusted less for a while.
    pub fn failed(&mut self, reserved: Reserved) {
        self.tried.push(reserved.node);
        self.placement.failed(reserved.node);
    }

    /// Why the only node is not asked, as what it does: `takes nothing new now (cordoned)`.
    #[must_use]
    pub fn why_not(&self) -> String {
        match self.refusals.first() {
            Some(reason) => format!("takes nothing new now ({})", reason.as_str()),
            None => "is away".to_owned(),
        }
    }

    /// What the client is told: how many nodes were asked and refused, and how many were not asked, each with the reason.
    #[must_use]
    pub fn no_capacity(&self) -> ManagerError {
        self.refusals.no_capacity()
    }
}

/// A place on a node, which counts there until it is dropped; when it is kept, until a report includes what runs in it.
#[must_use = "what is dropped is given back"]
pub struct Reserved {
    placement: Arc<Placement>,
    node: NodeId,
    claim: Option<Claim>,
}

impl Reserved {
    /// Where.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// It runs there.
    pub fn keep(mut self) {
        if let Some(claim) = self.claim.take() {
            let now = self.placement.now();
            self.placement.view().keep(claim, now);
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            // A lock that is poisoned is of a process that ends.
            if let Ok(mut view) = self.placement.view.lock() {
                view.release(claim);
            }
        }
    }
}

#[cfg(test)]
mod tests;
