//! Nodes that are gone from the fleet, and for how long. What ran on one that does not come back is given up; one that comes
//! back ends what was given up, for its executions are not the present ones any more.
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use model::NodeId;
use tokio::time::Instant;

/// Since when nodes are away.
#[derive(Default)]
pub(crate) struct Away(Mutex<HashMap<NodeId, Instant>>);

impl Away {
    /// Notes which of the nodes that sandboxes name are not in the fleet; returns those that are away for `lost_after`.
    pub(super) fn note(
        &self,
        named: &HashSet<NodeId>,
        fleet: &HashSet<NodeId>,
        lost_after: Duration,
    ) -> HashSet<NodeId> {
        let now = Instant::now();
        let mut away = self.0.lock().expect("nothing panics while it holds the nodes");
        away.retain(|node, _| named.contains(node) && !fleet.contains(node));
        for node in named.difference(fleet) {
            away.entry(*node).or_insert_with(|| {
                tracing::warn!(%node, "a node that has sandboxes is not in the fleet");
                now
            });
        }
        let is_lost = |since: &Instant| now.duration_since(*since) >= lost_after;
        away.iter()
            .filter(|(_, since)| is_lost(since))
            .map(|(node, _)| *node)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_is_lost_after_a_time_and_not_when_it_came_back_meanwhile() {
        let away = Away::default();
        let after = Duration::from_secs(60);
        let (one, two) = (NodeId::random(), NodeId::random());
        let (named, nobody) = (HashSet::from([one, two]), HashSet::new());
        assert!(away.note(&named, &nobody, after).is_empty());
        tokio::time::advance(after / 2).await;
        assert!(away.note(&named, &HashSet::from([two]), after).is_empty());
        tokio::time::advance(after / 2).await;
        assert_eq!(away.note(&named, &nobody, after), HashSet::from([one]));
        assert!(
            away.note(&nobody, &nobody, after).is_empty(),
            "nothing is there any more"
        );
        assert!(away.note(&named, &nobody, after).is_empty(), "it was forgotten");
    }
}
