//! What builds under way start from and make.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use model::BuildId;
use ports::NodeError;

use crate::node::LocalNode;
use crate::sandbox::bring_up::failed;

/// How many builds under way need each.
#[derive(Debug, Default, Clone)]
pub(crate) struct InUse(Arc<Mutex<HashMap<BuildId, usize>>>);

impl InUse {
    fn counts(&self) -> MutexGuard<'_, HashMap<BuildId, usize>> {
        self.0.lock().expect("nothing panics while it holds the counts")
    }

    /// Whether a build under way needs it.
    pub(crate) fn holds(&self, build: BuildId) -> bool {
        self.counts().contains_key(&build)
    }

    /// What one build needs, from now on and until it is over.
    pub(crate) fn claim(&self) -> Claim {
        Claim {
            all: self.clone(),
            its: HashSet::new(),
        }
    }
}

/// What one build needs.
#[derive(Debug)]
pub(crate) struct Claim {
    all: InUse,
    its: HashSet<BuildId>,
}

impl Claim {
    /// Needs one more.
    pub(crate) fn add(&mut self, build: BuildId) {
        if self.its.insert(build) {
            *self.all.counts().entry(build).or_default() += 1;
        }
    }

    /// Needs one more, which nobody else may be at.
    pub(super) fn add_alone(&mut self, build: BuildId) -> bool {
        let mut counts = self.all.counts();
        let is_alone = !counts.contains_key(&build);
        if is_alone {
            counts.insert(build, 1);
            self.its.insert(build);
        }
        is_alone
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        for build in &self.its {
            if let Some(count) = counts.get_mut(build) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(build);
                }
            }
        }
    }
}

impl LocalNode {
    /// Whether a sandbox here started from it.
    pub(super) fn has_sandbox_of(&self, build: BuildId) -> bool {
        self.all().iter().any(|sandbox| sandbox.build() == build)
    }

    /// Removes builds, but those that a sandbox here started from, or that a build under way needs.
    pub(crate) async fn remove_unused(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        let started_from: HashSet<BuildId> = self.all().iter().map(|sandbox| sandbox.build()).collect();
        let is_free = |build: &BuildId| !started_from.contains(build) && !self.in_use.holds(*build);
        let (free, kept): (Vec<BuildId>, Vec<BuildId>) = builds.iter().partition(|build| is_free(build));
        if !kept.is_empty() {
            tracing::debug!(?kept, "builds that are in use are not removed");
        }
        if free.is_empty() {
            return Ok(());
        }
        self.runtime
            .remove_builds(&free)
            .await
            .map_err(failed("removing builds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_in_use_until_the_last_that_needs_it_is_over() {
        let (all, build) = (InUse::default(), BuildId::random());
        let (mut one, mut other) = (all.claim(), all.claim());
        one.add(build);
        one.add(build);
        other.add(build);
        drop(one);
        assert!(all.holds(build));
        assert!(!all.claim().add_alone(build));
        drop(other);
        assert!(!all.holds(build));
        assert!(all.claim().add_alone(build));
    }
}
