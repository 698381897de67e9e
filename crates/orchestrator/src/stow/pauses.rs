//! Disks of paused sandboxes, so that a pause outlives its node: in a fleet whose blobs hold builds.
//!
//! ```text
//! Paused ─▶ copied into a build of the pause's name, on its node ─▶ brought to the blobs ─▶ noted
//! ```
//!
//! A pause has nothing to do with it: this comes later, and takes as long as it takes. What is noted of a pause that is over by
//! then is collected like any build that nothing names. Memory stays where it is: it fits one machine, or lies in one's RAM.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use model::{BuildId, NodeId, Phase, Sandbox, SandboxId};
use ports::{ManagerError, Node, NodeError};
use tokio::time::Instant;

use super::{Failing, REST_MAX, stow_from};
use crate::failure;
use crate::nodes::{CHECKPOINT_MAX, within};
use crate::orchestrator::Orchestrator;

/// Nodes that bring at once: each has disks and a line of its own, and brings one after another.
const NODES_AT_ONCE: usize = 16;

/// Pauses that were not brought when it was tried last.
pub(super) type Resting = HashMap<BuildId, Failing>;

/// What a node is to bring.
type Wanted = Vec<(SandboxId, BuildId)>;

/// The pause of a sandbox that may be resumed elsewhere, and who holds it.
fn pause_of(sandbox: &Sandbox) -> Option<(NodeId, BuildId)> {
    match sandbox.phase {
        // Volumes are where they are, and so are those who have them.
        Phase::Paused { snapshot, home, .. } if sandbox.volumes.is_empty() => Some((home, snapshot)),
        _ => None,
    }
}

impl Orchestrator {
    /// Whether pauses are to outlive their nodes.
    pub(crate) fn stows_pauses(&self) -> bool {
        self.parts.config.stow && self.parts.config.shared
    }

    /// Whether the blobs hold the disk of a pause.
    pub(crate) async fn is_stowed(&self, snapshot: BuildId) -> Result<bool, ManagerError> {
        if !self.stows_pauses() {
            return Ok(false);
        }
        let stowed = self.parts.builds.stowed_as(snapshot).await;
        let stowed = stowed.map_err(failure::store("looking for a pause in the blobs"))?;
        Ok(stowed.is_some())
    }

    /// Brings to the blobs the disks of paused sandboxes that are not there; how many.
    ///
    /// # Errors
    /// Where a store cannot be read or written. What a node does not bring is tried again by a later call, as
    /// [`Orchestrator::stow_now`] does.
    pub async fn stow_pauses_now(&self) -> Result<usize, ManagerError> {
        if !self.stows_pauses() {
            return Ok(0);
        }
        let mut resting = self.stowing.pauses.lock().await;
        let live = self.parts.sandboxes.live().await;
        let live = live.map_err(failure::store("reading the sandboxes"))?;
        let stowed = self.parts.builds.stowed().await;
        let stowed = stowed.map_err(failure::store("reading what is stowed"))?;
        let mut wanted: HashMap<NodeId, Wanted> = HashMap::new();
        let mut there = HashSet::new();
        let now = Instant::now();
        for sandbox in &live {
            let Some((home, snapshot)) = pause_of(sandbox) else {
                continue;
            };
            there.insert(snapshot);
            let rests = resting.get(&snapshot).is_some_and(|failing| now < failing.until);
            if !stowed.contains_key(&snapshot) && !rests {
                wanted.entry(home).or_default().push((sandbox.id, snapshot));
            }
        }
        resting.retain(|snapshot, _| there.contains(snapshot));
        let work = wanted.into_iter().filter_map(|(home, wanted)| {
            // One that is away is asked when it is there again.
            let node = self.parts.fleet.node(home)?;
            Some(self.stow_pauses_of(node, wanted, &stowed))
        });
        let mut work = stream::iter(work.collect::<Vec<_>>()).buffer_unordered(NODES_AT_ONCE);
        let mut brought = 0;
        let mut first = Ok(());
        while let Some((tried, outcome)) = work.next().await {
            for (sandbox, snapshot, outcome) in tried {
                match outcome {
                    Ok(()) => {
                        resting.remove(&snapshot);
                        brought += 1;
                    }
                    Err(error) => rest(&mut resting, sandbox, snapshot, &error),
                }
            }
            first = first.and(outcome);
        }
        metrics::counter!("atoll_pauses_stowed_total").increment(brought as u64);
        first.map(|()| brought)
    }

    /// Has one node bring its own, one after another: what came of each, and why it was left off where a store is away.
    async fn stow_pauses_of(
        &self,
        node: Arc<dyn Node>,
        wanted: Wanted,
        stowed: &BTreeMap<BuildId, String>,
    ) -> (
        Vec<(SandboxId, BuildId, Result<(), NodeError>)>,
        Result<(), ManagerError>,
    ) {
        let mut tried = Vec::with_capacity(wanted.len());
        for (id, snapshot) in wanted {
            match self.stow_pause(&*node, (id, snapshot), stowed).await {
                Ok(Some(outcome)) => tried.push((id, snapshot, outcome)),
                Ok(None) => {}
                Err(error) => return (tried, Err(error)),
            }
        }
        (tried, Ok(()))
    }

    /// Has a node bring the disk of a pause now, unless it is there; nothing where it is not paused there any more.
    pub(crate) async fn bring_pause(
        &self,
        node: &dyn Node,
        id: SandboxId,
    ) -> Result<Result<(), NodeError>, ManagerError> {
        let Some((_, snapshot)) = self.stored(id).await?.and_then(|sandbox| pause_of(&sandbox)) else {
            return Ok(Ok(()));
        };
        let stowed = self.parts.builds.stowed().await;
        let stowed = stowed.map_err(failure::store("reading what is stowed"))?;
        let brought = self.stow_pause(node, (id, snapshot), &stowed).await?;
        Ok(brought.unwrap_or(Ok(())))
    }

    /// Has a node bring one; `None` where there is nothing to bring any more.
    async fn stow_pause(
        &self,
        node: &dyn Node,
        (id, snapshot): (SandboxId, BuildId),
        stowed: &BTreeMap<BuildId, String>,
    ) -> Result<Option<Result<(), NodeError>>, ManagerError> {
        // Many were before it, and others bring as well.
        let is_paused = |sandbox: Sandbox| pause_of(&sandbox) == Some((node.id(), snapshot));
        if !self.stored(id).await?.is_some_and(is_paused) || self.is_stowed(snapshot).await? {
            return Ok(None);
        }
        let step = "copying the disk of a paused sandbox";
        let brought = match within(CHECKPOINT_MAX, step, node.copy_paused(id, snapshot)).await {
            Ok(()) => stow_from(node, snapshot, stowed).await,
            Err(error) => Err(error),
        };
        match brought {
            Ok(digest) => {
                failpoint::reach("orchestrator/build-stowed");
                let noted = self.parts.builds.note_stowed(snapshot, &digest).await;
                noted.map_err(failure::store("noting the disk of a paused sandbox"))?;
                Ok(Some(Ok(())))
            }
            // It was resumed or ended meanwhile.
            Err(NodeError::Unknown | NodeError::Busy(_)) => Ok(None),
            Err(error) => Ok(Some(Err(error))),
        }
    }

    /// Brings beside everything else, unless that is under way.
    pub(super) async fn stow_pauses_in_background(&self) {
        if self.stowing.pauses.try_lock().is_err() {
            return;
        }
        if let Err(error) = self.stow_pauses_now().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "disks of paused sandboxes were not brought to the blobs; it is tried again"
            );
        }
    }
}

/// Lets a pause rest that was not brought.
fn rest(resting: &mut Resting, sandbox: SandboxId, snapshot: BuildId, error: &NodeError) {
    let before = resting.remove(&snapshot);
    // What a node does not offer it does not offer in ten seconds either, and its operator knows.
    let is_refused = matches!(error, NodeError::Refused(_));
    let now = Instant::now();
    let failing = if is_refused {
        Failing {
            until: now + REST_MAX,
            rest: REST_MAX,
        }
    } else {
        Failing::again(before, now)
    };
    resting.insert(snapshot, failing);
    let error = error as &dyn std::error::Error;
    if before.is_none() && !is_refused {
        tracing::warn!(%sandbox, %snapshot, error, "the disk of a paused sandbox was not brought to the blobs; it is tried again");
    } else {
        tracing::debug!(%sandbox, %snapshot, error, rest = ?failing.rest, "the disk of a paused sandbox was not brought to the blobs again");
    }
}
