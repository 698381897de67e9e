//! What a node looks up and keeps while it builds for a team.
use std::sync::Arc;

use async_trait::async_trait;
use model::TeamId;
use model::recipe::Key;
use ports::blobs::ByteStream;
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
}

impl Shelf {
    pub(super) fn new(orchestrator: Arc<Orchestrator>, team: TeamId, using: Arc<Use>) -> Self {
        Self {
            orchestrator,
            team,
            using,
        }
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
        self.orchestrator.parts.blobs.get(&key, None).await
    }
}
