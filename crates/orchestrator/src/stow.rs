//! What the blobs hold of builds, so that these outlive their node: where an operator wants that ([`Config::stow`]).
//!
//! What templates and snapshots name is brought there beside everything else, and noted when all of it is there. A build that
//! is not where it is needed is brought back from there; that it is none the other's is told by the digest that was noted.
//!
//! [`Config::stow`]: crate::Config::stow
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::BuildId;
use ports::{ManagerError, Node, NodeError};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::failure;
use crate::nodes::{PAUSE_MAX, within};
use crate::orchestrator::Orchestrator;

/// How often it is looked at what is to be brought.
pub(crate) const PERIOD: Duration = failpoint::margin(Duration::from_secs(10));
/// Disks of hundreds of GiB, over a slow line.
const STOW_MAX: Duration = Duration::from_secs(6 * 3600);
/// How often the blobs are swept: all of their names are read.
const SWEEP_PERIOD: Duration = Duration::from_secs(3600);

/// Held while builds are brought to the blobs, or these are swept: when they last were.
#[derive(Default)]
pub(crate) struct Stowing(AsyncMutex<Option<Instant>>);

impl Orchestrator {
    /// Brings to the blobs what templates and snapshots name and nodes hold, and what is not there; how many builds.
    ///
    /// # Errors
    /// Where a store cannot be read or written. What a node does not bring is tried again by the next call.
    pub async fn stow_now(&self) -> Result<usize, ManagerError> {
        if !self.parts.config.stow {
            return Ok(0);
        }
        let mut swept = self.stowing.0.lock().await;
        let named = self.parts.templates.builds().await;
        let named: BTreeSet<BuildId> = named
            .map_err(failure::store("reading what is to be stowed"))?
            .into_iter()
            .collect();
        let stowed = self.parts.builds.stowed().await;
        let mut stowed: BTreeSet<BuildId> = stowed
            .map_err(failure::store("reading what is stowed"))?
            .into_keys()
            .collect();
        let (held, _) = self.builds_on_nodes().await;
        let mut brought = 0;
        for (node, builds) in held {
            for build in builds {
                if !named.contains(&build) || stowed.contains(&build) {
                    continue;
                }
                match within(STOW_MAX, "bringing a build to the blobs", node.stow_build(build)).await {
                    Ok(digest) => {
                        failpoint::reach("orchestrator/build-stowed");
                        let noted = self.parts.builds.note_stowed(build, &digest).await;
                        noted.map_err(failure::store("noting a stowed build"))?;
                        stowed.insert(build);
                        brought += 1;
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(node = %node.id(), %build, error, "a build was not brought to the blobs; it is tried again");
                    }
                }
            }
        }
        metrics::counter!("atoll_builds_stowed_total").increment(brought as u64);
        if swept.is_none_or(|last| last.elapsed() >= SWEEP_PERIOD) {
            *swept = Some(Instant::now());
            self.sweep_stowed().await?;
        }
        Ok(brought)
    }

    /// Brings beside everything else, unless that is under way.
    pub(crate) async fn stow_in_background(self: Arc<Self>) {
        if self.stowing.0.try_lock().is_err() {
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
