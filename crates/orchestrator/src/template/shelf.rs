//! What a node looks up and keeps while it builds for a team.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use model::TeamId;
use model::recipe::Key;
use ports::blobs::{BlobInfo, ByteStream};
use ports::builds::{BuildShelf, CachedStep};
use ports::{BlobError, StoreError};

use super::upload;
use crate::orchestrator::Orchestrator;
use crate::uses::Use;

/// The shelf of one team. What is found or kept while a build is under way is not collected before it has ended: see
/// [`crate::uses`].
pub(super) struct Shelf {
    orchestrator: Arc<Orchestrator>,
    team: TeamId,
    using: Arc<Use>,
    /// What was read of uploads, as it was then.
    read: Mutex<HashMap<String, BlobInfo>>,
}

impl Shelf {
    pub(super) fn new(orchestrator: Arc<Orchestrator>, team: TeamId, using: Arc<Use>) -> Self {
        Self {
            orchestrator,
            team,
            using,
            read: Mutex::default(),
        }
    }

    fn read(&self) -> MutexGuard<'_, HashMap<String, BlobInfo>> {
        self.read.lock().expect("nothing panics while it holds them")
    }
}

fn warn(error: &StoreError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(
        error,
        "the results of steps are not to be had; the build goes on without"
    );
}

#[async_trait]
impl BuildShelf for Shelf {
    async fn cached(&self, key: Key) -> Option<CachedStep> {
        let now = self.orchestrator.now();
        let found = self
            .orchestrator
            .parts
            .builds
            .cached_step(self.team, key, now)
            .await;
        let found = found.inspect_err(warn).ok().flatten();
        found.filter(|step| self.using.take(step.build))
    }

    async fn cache(&self, key: Key, step: CachedStep) {
        if !self.using.take(step.build) {
            return;
        }
        let now = self.orchestrator.now();
        let builds = &self.orchestrator.parts.builds;
        let kept = builds.cache_step(self.team, key, &step, now).await;
        if kept.inspect_err(warn).is_ok() {
            failpoint::reach("orchestrator/step-cached");
        }
    }

    async fn upload(&self, files: &str) -> Result<ByteStream, BlobError> {
        let missing = |_| BlobError::Missing(files.chars().take(128).collect());
        let key = upload::key(self.team, files).map_err(missing)?;
        let blobs = &self.orchestrator.parts.blobs;
        // Before it is read: what is uploaded after that is not what was read.
        if let Some(found) = blobs.find(&key).await? {
            self.read().insert(key.clone(), found);
        }
        blobs.get(&key, None).await
    }

    async fn discard_upload(&self, files: &str) {
        let Ok(key) = upload::key(self.team, files) else {
            return;
        };
        let Some(read) = self.read().remove(&key) else {
            return;
        };
        let blobs = &self.orchestrator.parts.blobs;
        let removed = async {
            if blobs.find(&key).await?.as_ref() == Some(&read) {
                blobs.remove(&key).await?;
            }
            Ok::<_, BlobError>(())
        };
        if let Err(error) = removed.await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(team = %self.team, files, error, "a broken upload could not be removed; it is there until it is old");
        }
    }
}
