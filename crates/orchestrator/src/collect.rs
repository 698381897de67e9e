//! Removes what nothing names any more: builds on nodes, results of steps that were long not used, uploads; and records of
//! builds that are long over.
//!
//! What names a build is a template, a sandbox that is not gone, a build that is not over, or the kept result of a step.
//! What names none is removed when it was seen so before, some time ago, when whatever was under way then has ended, and
//! when nobody can take it any more: see [`crate::uses`]. Nothing is removed where one of the stores cannot be read.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::recipe::Recipe;
use model::{BuildId, Origin, Phase, Sandbox};
use ports::{ManagerError, Node};
use tokio::sync::Mutex as AsyncMutex;

use crate::failure;
use crate::nodes::{PAUSE_MAX, WORD_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::template::upload;
use crate::uses::Moment;

/// How often the orchestrator collects by itself.
pub(crate) const PERIOD: Duration = failpoint::margin(Duration::from_secs(120));
/// What is younger than this, as far as was seen, is not collected.
const GRACE: Duration = failpoint::margin(Duration::from_secs(60));
/// Where other processes share the store, nobody here knows what they have in hand: what they hold back for longer is collected.
/// Between reading a name and storing its use, and between making a build and storing its name, lie milliseconds.
const GRACE_SHARED: Duration = Duration::from_secs(600);
/// Builds that are over of which the record and the log are kept, of each template: the newest. Beside them those that tags
/// name.
const RECORDS_MAX: u32 = 50;

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Builds that nodes, or the blobs, hold.
    pub builds: usize,
    /// Those that something names.
    pub named: usize,
    /// Those that nothing names, and that are not old enough, or may be in somebody's hand: a later collection removes
    /// them.
    pub waiting: usize,
    /// Those that were removed.
    pub removed: usize,
    /// Results of steps that were forgotten; their builds are removed by a later collection.
    pub steps: usize,
    /// Uploads that were removed.
    pub uploads: usize,
    /// Records of builds that were removed, with their logs.
    pub records: usize,
    /// Nodes that did not do their part.
    pub silent_nodes: usize,
}

/// What nothing named, and since when. Held while a collection is under way: there is one at a time.
#[derive(Default)]
pub(crate) struct Unnamed(AsyncMutex<HashMap<BuildId, Seen>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: SystemTime,
    /// Of what began before, something may have made it and not told yet.
    moment: Moment,
}

/// The builds that a sandbox names.
fn named_by(sandbox: &Sandbox) -> impl Iterator<Item = BuildId> {
    let copy = match sandbox.phase {
        Phase::Snapshotting { into, .. } => Some(into),
        // The copy of its disk that it is resumed from where its node is not. When it runs again it names what it runs from.
        Phase::Paused { snapshot, .. } => Some(snapshot),
        Phase::Starting {
            from: Origin::Snapshot { build, .. },
            ..
        } => Some(build),
        _ => None,
    };
    [sandbox.build].into_iter().chain(copy)
}

/// The results of steps that are to be forgotten: those that were not used for long, and the longest unused of those that
/// are too many. `kept` is in that order.
fn unused(kept: &[(BuildId, SystemTime)], most: usize, for_long: Duration, now: SystemTime) -> Vec<BuildId> {
    let beyond = kept.len().saturating_sub(most);
    let is_unused = |(place, (_, used)): &(usize, &(BuildId, SystemTime))| {
        *place < beyond || now.duration_since(*used).is_ok_and(|unused| unused > for_long)
    };
    kept.iter()
        .enumerate()
        .filter(is_unused)
        .map(|(_, (build, _))| *build)
        .collect()
}

impl Orchestrator {
    /// Collects. What is seen for the first time now is removed by a later collection.
    ///
    /// # Errors
    /// Where a store cannot be read: then no build was removed.
    pub async fn collect_now(&self) -> Result<Collected, ManagerError> {
        let mut unnamed = self.unnamed.0.lock().await;
        let began = tokio::time::Instant::now();
        let mut collected = Collected {
            steps: self.forget_steps().await?,
            ..Collected::default()
        };
        let (held, silent_nodes) = self.builds_on_nodes().await;
        let stowed = self.parts.builds.stowed().await;
        let stowed = stowed.map_err(failure::store("reading what is stowed"))?;
        let all = held.iter().flat_map(|(_, builds)| builds).chain(stowed.keys());
        let all: BTreeSet<BuildId> = all.copied().collect();
        let named = self.named_builds().await?;
        // After the store was read: what begins from here on reads no name that is not there any more.
        let (now, moment) = (self.now(), self.uses.moment());
        unnamed.retain(|build, _| all.contains(build) && !named.contains(build));
        for build in all.difference(&named) {
            unnamed.entry(*build).or_insert(Seen { at: now, moment });
        }
        let grace = if self.parts.config.shared {
            GRACE_SHARED
        } else {
            GRACE
        };
        let is_ripe = |seen: &Seen| {
            now.duration_since(seen.at).is_ok_and(|age| age >= grace) && self.uses.ended_before(seen.moment)
        };
        let ripe = unnamed.iter().filter(|(_, seen)| is_ripe(seen));
        let ripe: Vec<_> = ripe.map(|(build, _)| *build).collect();
        let condemned = self.uses.condemn(ripe);
        if !condemned.is_empty() {
            failpoint::reach("orchestrator/builds-condemned");
        }
        let doomed = self.still_unnamed(condemned).await?;
        let (removed, failed) = self.remove_from(&held, &doomed).await;
        for build in &removed {
            unnamed.remove(build);
            if stowed.contains_key(build) {
                let forgotten = self.parts.builds.forget_stowed(*build).await;
                forgotten.map_err(failure::store("forgetting a stowed build"))?;
            }
        }
        collected.builds = all.len();
        collected.removed = removed.len();
        collected.waiting = unnamed.len();
        collected.named = all.len() - removed.len() - unnamed.len();
        collected.silent_nodes = silent_nodes + failed;
        collected.uploads = self.remove_uploads().await?;
        collected.records = self.forget_builds().await?;
        metrics::counter!("atoll_builds_collected_total").increment(removed.len() as u64);
        metrics::histogram!("atoll_collect_seconds").record(began.elapsed());
        if collected.removed + collected.steps + collected.uploads + collected.records > 0 {
            tracing::info!(?collected, "what nothing names is removed");
        }
        Ok(collected)
    }

    /// Collects beside everything else, unless a collection is under way.
    pub(crate) async fn collect_in_background(self: Arc<Self>) {
        if self.unnamed.0.try_lock().is_err() {
            return;
        }
        if let Err(error) = self.collect_now().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a collection failed; the next one tries again");
        }
    }

    /// What each node holds, and how many did not say.
    pub(crate) async fn builds_on_nodes(&self) -> (Vec<(Arc<dyn Node>, Vec<BuildId>)>, usize) {
        let fleet = self.parts.fleet.nodes().borrow().clone();
        let mut held = Vec::with_capacity(fleet.len());
        let mut silent = 0;
        for node in fleet {
            match within(WORD_MAX, "the list of builds", node.builds()).await {
                Ok(builds) => held.push((node, builds)),
                Err(error) => {
                    tracing::warn!(node = %node.id(), %error, "a node does not say which builds it holds");
                    silent += 1;
                }
            }
        }
        (held, silent)
    }

    /// Every build that something names.
    async fn named_builds(&self) -> Result<BTreeSet<BuildId>, ManagerError> {
        let away = || failure::store("reading what names builds");
        // In the order in which names are handed on: a build that is over is named by its template, and a sandbox by
        // itself before its template may name another.
        let unfinished = self.parts.builds.unfinished_builds().await.map_err(away())?;
        let cached = self.parts.builds.cached_builds().await.map_err(away())?;
        let templates = self.parts.templates.builds().await.map_err(away())?;
        let live = self.parts.sandboxes.live().await.map_err(away())?;
        let mut named: BTreeSet<BuildId> = unfinished.into_iter().map(|build| build.id).collect();
        named.extend(cached.into_iter().map(|(build, _)| build));
        named.extend(templates);
        named.extend(live.iter().flat_map(named_by));
        Ok(named)
    }

    /// What was condemned and is named by nothing, now that nobody can take it any more. The rest is pardoned.
    async fn still_unnamed(&self, condemned: Vec<BuildId>) -> Result<Vec<BuildId>, ManagerError> {
        if condemned.is_empty() {
            return Ok(condemned);
        }
        let named = self
            .named_builds()
            .await
            .inspect_err(|_| self.uses.pardon(&condemned))?;
        let (pardoned, doomed): (Vec<_>, Vec<_>) =
            condemned.into_iter().partition(|build| named.contains(build));
        self.uses.pardon(&pardoned);
        Ok(doomed)
    }

    /// Removes what is doomed from the nodes that hold it; what is removed everywhere, and how many nodes did not do it.
    /// What may be left somewhere stays condemned, and the next collection tries again.
    async fn remove_from(
        &self,
        held: &[(Arc<dyn Node>, Vec<BuildId>)],
        doomed: &[BuildId],
    ) -> (Vec<BuildId>, usize) {
        let mut left: HashSet<BuildId> = HashSet::new();
        let mut failed = 0;
        for (node, builds) in held {
            let here: Vec<_> = doomed
                .iter()
                .filter(|build| builds.contains(build))
                .copied()
                .collect();
            if here.is_empty() {
                continue;
            }
            if let Err(error) = within(PAUSE_MAX, "removing builds", node.remove_builds(&here)).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(node = %node.id(), error, "a node did not remove builds; the next collection tries again");
                left.extend(here);
                failed += 1;
            }
        }
        if !doomed.is_empty() {
            failpoint::reach("orchestrator/builds-collected");
        }
        let removed: Vec<_> = doomed
            .iter()
            .filter(|build| !left.contains(build))
            .copied()
            .collect();
        self.uses.bury(&removed);
        (removed, failed)
    }

    /// Forgets results of steps that are long unused, or too many; of how many builds.
    async fn forget_steps(&self) -> Result<usize, ManagerError> {
        let step = "reading the results of steps";
        let kept = self
            .parts
            .builds
            .cached_builds()
            .await
            .map_err(failure::store(step))?;
        let config = &self.parts.config;
        let unused = unused(&kept, config.steps_kept_max, config.steps_kept_for, self.now());
        for build in &unused {
            let forgotten = self.parts.builds.forget_cached(*build).await;
            forgotten.map_err(failure::store("forgetting the result of a step"))?;
        }
        Ok(unused.len())
    }

    /// Removes records of builds that are too many of their template, and that no tag names; how many.
    async fn forget_builds(&self) -> Result<usize, ManagerError> {
        let beyond = self.parts.builds.builds_beyond(RECORDS_MAX).await;
        let beyond = beyond.map_err(failure::store("reading the builds"))?;
        if beyond.is_empty() {
            return Ok(0);
        }
        // After them: a build that is over is named by its template before it is over, or never.
        let named = self.parts.templates.builds().await;
        let named = named.map_err(failure::store("reading what names builds"))?;
        let named: HashSet<BuildId> = named.into_iter().collect();
        let mut removed = 0;
        for build in beyond.into_iter().filter(|build| !named.contains(build)) {
            let gone = self.parts.builds.remove_build(build).await;
            gone.map_err(failure::store("removing the record of a build"))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes uploads that are old, and that no build under way reads; how many.
    async fn remove_uploads(&self) -> Result<usize, ManagerError> {
        let uploads = self.parts.blobs.list(upload::UPLOADS).await;
        let uploads = uploads.map_err(failure::blobs("listing the uploads"))?;
        let now = self.now();
        let old: Vec<_> = uploads
            .into_iter()
            .filter(|blob| upload::is_old(blob, now))
            .collect();
        if old.is_empty() {
            return Ok(0);
        }
        let unfinished = self.parts.builds.unfinished_builds().await;
        let unfinished = unfinished.map_err(failure::store("reading the builds"))?;
        let read: HashSet<String> = unfinished
            .iter()
            .flat_map(|build| {
                let keys = |recipe: &Recipe| upload::keys_of(build.team, recipe).collect::<Vec<_>>();
                build.recipe.as_ref().map(keys).unwrap_or_default()
            })
            .collect();
        let mut removed = 0;
        for blob in old.iter().filter(|blob| !read.contains(&blob.key)) {
            removed += usize::from(self.remove_upload(&blob.key).await?);
        }
        Ok(removed)
    }

    /// Removes one, unless somebody uploads at this moment, or has uploaded it again.
    async fn remove_upload(&self, key: &str) -> Result<bool, ManagerError> {
        let Ok(_alone) = self.uploading.try_write() else {
            return Ok(false);
        };
        let step = "removing an upload";
        let found = self.parts.blobs.find(key).await.map_err(failure::blobs(step))?;
        if !found.is_some_and(|blob| upload::is_old(&blob, self.now())) {
            return Ok(false);
        }
        self.parts.blobs.remove(key).await.map_err(failure::blobs(step))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_steps_are_kept_by_use_and_number() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let builds: Vec<_> = (0..4).map(|_| BuildId::random()).collect();
        let kept: Vec<_> = builds
            .iter()
            .zip([100, 500, 900, 2000])
            .map(|(build, at)| (*build, SystemTime::UNIX_EPOCH + Duration::from_secs(at)))
            .collect();
        let unused = |most, seconds| unused(&kept, most, Duration::from_secs(seconds), now);
        assert_eq!(unused(10, 10_000), []);
        assert_eq!(unused(10, 600), builds[..1]);
        assert_eq!(unused(10, 500), builds[..1]);
        assert_eq!(unused(10, 499), builds[..2]);
        assert_eq!(unused(1, 600), builds[..3]);
        assert_eq!(unused(0, 10_000), builds);
        assert_eq!(super::unused(&[], 1, Duration::ZERO, now), []);
    }
}
