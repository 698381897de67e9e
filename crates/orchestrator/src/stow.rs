//! What the blobs hold of builds, so that these outlive their node: where an operator wants that ([`Config::stow`]).
//!
//! What templates and snapshots name is brought there beside everything else, and noted when all of it is there. A build that
//! is not where it is needed is brought back from there; that it is none the other's is told by the digest that was noted. In a
//! fleet so are the disks of paused sandboxes, see [`pauses`].
//!
//! [`Config::stow`]: crate::Config::stow
mod pauses;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use model::BuildId;
use ports::{ManagerError, Node, NodeError};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::failure;
use crate::nodes::{PAUSE_MAX, WORD_MAX, within};
use crate::orchestrator::Orchestrator;

/// How often it is looked at what is to be brought.
pub(crate) const PERIOD: Duration = failpoint::margin(Duration::from_secs(10));
/// Disks of hundreds of GiB, over a slow line.
const STOW_MAX: Duration = Duration::from_secs(6 * 3600);
/// How often the blobs are swept: all of their names are read.
const SWEEP_PERIOD: Duration = Duration::from_secs(3600);

/// How long a build that was not brought rests, the first time; each further time twice as long.
const REST: Duration = Duration::from_secs(10);
/// And at most.
const REST_MAX: Duration = Duration::from_secs(600);
/// Builds that are akin to another of which a node is told.
const KIN_MAX: usize = 32;

/// Held while builds are brought to the blobs, or these are swept.
#[derive(Default)]
pub(crate) struct Stowing {
    builds: AsyncMutex<State>,
    /// Held while disks of paused sandboxes are brought, which do not wait for builds: these may take hours.
    pauses: AsyncMutex<pauses::Resting>,
}

#[derive(Default)]
struct State {
    /// When they were swept last.
    swept: Option<Instant>,
    /// What was not brought when it was tried last.
    failing: HashMap<BuildId, Failing>,
}

/// A build that was not brought, once or several times in a row.
#[derive(Debug, Clone, Copy)]
struct Failing {
    until: Instant,
    rest: Duration,
}

impl Failing {
    /// After another failure.
    fn again(before: Option<Self>, now: Instant) -> Self {
        let rest = before.map_or(REST, |failing| REST_MAX.min(failing.rest * 2));
        Self {
            until: now + rest,
            rest,
        }
    }
}

impl Orchestrator {
    /// Brings to the blobs what templates and snapshots name and nodes hold, and what is not there; how many builds.
    ///
    /// # Errors
    /// Where a store cannot be read or written. What a node does not bring is tried again by a later call: it rests for ten
    /// seconds, and twice as long after each further failure, up to ten minutes.
    pub async fn stow_now(&self) -> Result<usize, ManagerError> {
        if !self.parts.config.stow {
            return Ok(0);
        }
        let mut state = self.stowing.builds.lock().await;
        let named = self.parts.templates.builds().await;
        let named: BTreeSet<BuildId> = named
            .map_err(failure::store("reading what is to be stowed"))?
            .into_iter()
            .collect();
        let stowed = self.parts.builds.stowed().await;
        let mut stowed = stowed.map_err(failure::store("reading what is stowed"))?;
        state.failing.retain(|build, _| named.contains(build));
        let (held, _) = self.builds_on_nodes().await;
        let mut brought = 0;
        for (node, builds) in held {
            for build in builds {
                let rests = |failing: &Failing| Instant::now() < failing.until;
                if !named.contains(&build)
                    || stowed.contains_key(&build)
                    || state.failing.get(&build).is_some_and(rests)
                {
                    continue;
                }
                match stow_from(&*node, build, &stowed).await {
                    Ok(digest) => {
                        state.failing.remove(&build);
                        failpoint::reach("orchestrator/build-stowed");
                        let noted = self.parts.builds.note_stowed(build, &digest).await;
                        noted.map_err(failure::store("noting a stowed build"))?;
                        stowed.insert(build, digest);
                        brought += 1;
                    }
                    Err(error) => {
                        let before = state.failing.remove(&build);
                        let failing = Failing::again(before, Instant::now());
                        state.failing.insert(build, failing);
                        let error = &error as &dyn std::error::Error;
                        if before.is_none() {
                            // Once, however often it fails.
                            tracing::warn!(node = %node.id(), %build, error, "a build was not brought to the blobs; it is tried again");
                        } else {
                            tracing::debug!(node = %node.id(), %build, error, rest = ?failing.rest, "a build was not brought to the blobs again");
                        }
                    }
                }
            }
        }
        metrics::counter!("atoll_builds_stowed_total").increment(brought as u64);
        if state.swept.is_none_or(|last| last.elapsed() >= SWEEP_PERIOD) {
            state.swept = Some(Instant::now());
            self.sweep_stowed().await?;
        }
        Ok(brought)
    }

    /// Brings beside everything else, unless that is under way.
    pub(crate) async fn stow_in_background(self: Arc<Self>) {
        tokio::join!(self.stow_builds_in_background(), self.stow_pauses_in_background());
    }

    async fn stow_builds_in_background(&self) {
        if self.stowing.builds.try_lock().is_err() {
            return;
        }
        if let Err(error) = self.stow_now().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "builds were not brought to the blobs; it is tried again");
        }
    }

    /// Has a build on a node that is not there, if the blobs hold it. Whoever calls has it in hand, so that it stays.
    pub(crate) async fn fetch_for(&self, node: &dyn Node, build: BuildId) -> Result<(), NodeError> {
        let digest = self.parts.builds.stowed_as(build).await;
        let digest = digest.map_err(|source| NodeError::Failed {
            step: "looking for a build in the blobs",
            kind: source.kind(),
            source: source.into(),
        })?;
        let digest = digest.ok_or(NodeError::NoBuild(build))?;
        within(
            PAUSE_MAX,
            "bringing the build to the node",
            node.fetch_build(build, &digest),
        )
        .await
    }

    /// Has the blobs swept.
    async fn sweep_stowed(&self) -> Result<(), ManagerError> {
        let living = self.parts.builds.stowed().await;
        let living: Vec<String> = living
            .map_err(failure::store("reading what is stowed"))?
            .into_values()
            .collect();
        let Some(node) = self.parts.fleet.nodes().borrow().first().cloned() else {
            return Ok(());
        };
        match within(STOW_MAX, "sweeping the blobs", node.sweep_stowed(&living)).await {
            Ok(0) => {}
            Ok(blobs) => tracing::info!(blobs, "blobs that no build needs are removed"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the blobs were not swept; it is tried again");
            }
        }
        Ok(())
    }
}

/// Has a node bring a build to the blobs, beside what these hold of builds that are akin to it.
async fn stow_from(
    node: &dyn Node,
    build: BuildId,
    stowed: &BTreeMap<BuildId, String>,
) -> Result<String, NodeError> {
    let kin = within(WORD_MAX, "what a build is akin to", node.kin_of(build)).await?;
    let kin = kin.iter().filter_map(|build| stowed.get(build).cloned());
    let kin: Vec<String> = kin.take(KIN_MAX).collect();
    let stowing = node.stow_build(build, &kin);
    within(STOW_MAX, "bringing a build to the blobs", stowing).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_makes_for_a_longer_rest_up_to_ten_minutes() {
        let now = Instant::now();
        let mut failing = Failing::again(None, now);
        let mut rests = vec![failing.rest.as_secs()];
        for _ in 0..8 {
            failing = Failing::again(Some(failing), now);
            rests.push(failing.rest.as_secs());
        }
        assert_eq!(rests, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        assert_eq!(failing.until, now + REST_MAX);
    }
}
