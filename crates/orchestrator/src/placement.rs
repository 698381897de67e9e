//! Which nodes are asked to take a sandbox, and in which order.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ports::{ManagerError, Node};

/// A create asks this many nodes before it gives up: more would keep the client waiting for a fleet that is full.
const NODES_MAX: usize = 4;

/// Spreads starts over the fleet: every start begins with another node.
#[derive(Default)]
pub(crate) struct Turn(AtomicUsize);

impl Turn {
    /// The nodes to ask, first choice first.
    pub(crate) fn candidates(&self, fleet: &[Arc<dyn Node>]) -> Vec<Arc<dyn Node>> {
        let first = self.0.fetch_add(1, Ordering::Relaxed);
        order(fleet.len(), first)
            .map(|index| Arc::clone(&fleet[index]))
            .collect()
    }
}

fn order(nodes: usize, first: usize) -> impl Iterator<Item = usize> {
    (0..nodes.min(NODES_MAX)).map(move |step| first.wrapping_add(step) % nodes)
}

/// The nodes that refused, by reason.
#[derive(Default)]
pub(crate) struct Refusals(BTreeMap<&'static str, usize>);

impl Refusals {
    /// A node is out of `what`.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// What the client is told.
    pub(crate) fn no_capacity(&self) -> ManagerError {
        let asked: usize = self.0.values().sum();
        let reason = |(what, count): (&&str, &usize)| format!("{count} of {asked} asked are out of {what}");
        let reasons: Vec<_> = self.0.iter().map(reason).collect();
        ManagerError::NoCapacity(if reasons.is_empty() {
            "there are no nodes".to_owned()
        } else {
            reasons.join(", ")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nodes: usize, first: usize, expected: &[usize]) {
        assert_eq!(order(nodes, first).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_start_begins_with_another_node_and_asks_a_few() {
        check(0, 3, &[]);
        check(1, 7, &[0]);
        check(3, 0, &[0, 1, 2]);
        check(3, 5, &[2, 0, 1]);
        check(9, 8, &[8, 0, 1, 2]);
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let mut refusals = Refusals::default();
        assert!(refusals.no_capacity().to_string().ends_with("there are no nodes"));
        refusals.count("memory");
        refusals.count("slots");
        refusals.count("memory");
        let text = refusals.no_capacity().to_string();
        assert!(
            text.ends_with("2 of 3 asked are out of memory, 1 of 3 asked are out of slots"),
            "{text}"
        );
    }
}
