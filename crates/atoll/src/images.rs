//! The images of the daemon: what `atoll image` asks of it, and their layers that nobody needs.
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use artifact::{Evicted, Images, Imported};
use ports::Runtime;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::house::House;

/// How often layers are evicted.
const PERIOD: Duration = Duration::from_secs(600);

/// An image that was imported, as it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) name: String,
    pub(crate) digest: String,
    #[serde(rename = "importedAt")]
    pub(crate) imported_at: String,
}

impl From<&Imported> for Told {
    fn from(image: &Imported) -> Self {
        Self {
            name: image.name.clone(),
            digest: image.digest.to_string(),
            imported_at: humantime::format_rfc3339_seconds(image.imported_at).to_string(),
        }
    }
}

/// What a collection removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub(crate) builds: usize,
    #[serde(rename = "buildsWaiting")]
    pub(crate) builds_waiting: usize,
    pub(crate) steps: usize,
    pub(crate) uploads: usize,
    /// Records of builds, with their logs.
    pub(crate) records: usize,
    #[serde(rename = "silentNodes")]
    pub(crate) silent_nodes: usize,
    pub(crate) layers: usize,
    #[serde(rename = "layerBytes")]
    pub(crate) layer_bytes: u64,
    #[serde(rename = "layerBytesLeft")]
    pub(crate) layer_bytes_left: u64,
}

impl House {
    /// Takes an image from a file of this machine.
    pub(crate) async fn import_image(
        &self,
        path: &Path,
        name: Option<&str>,
        image: Option<&str>,
    ) -> Result<Told> {
        let (imported, _) = self.host.images.import(path, image, name).await?;
        tracing::info!(name = imported.name, digest = %imported.digest, "an image was imported");
        Ok(Told::from(&imported))
    }

    /// Images that were imported.
    pub(crate) async fn imported_images(&self) -> Result<Vec<Told>> {
        Ok(self
            .host
            .images
            .imported()
            .await?
            .iter()
            .map(Told::from)
            .collect())
    }

    /// Forgets one.
    pub(crate) async fn forget_image(&self, name: &str) -> Result<()> {
        let is_gone = self.host.images.forget(name).await?;
        anyhow::ensure!(
            is_gone,
            "no image called {name} was imported; `atoll image list` lists those that were"
        );
        Ok(())
    }

    /// Removes what nothing names, and then layers beyond the bound.
    pub(crate) async fn collect(&self) -> Result<Removed> {
        let collected = self.orchestrator.collect_now().await?;
        let evicted = self.evict().await?;
        Ok(Removed {
            builds: collected.removed,
            builds_waiting: collected.waiting,
            steps: collected.steps,
            uploads: collected.uploads,
            records: collected.records,
            silent_nodes: collected.silent_nodes,
            layers: evicted.layers,
            layer_bytes: evicted.bytes,
            layer_bytes_left: evicted.left_bytes,
        })
    }

    async fn evict(&self) -> Result<Evicted> {
        evict(
            &self.host.images,
            &*self.host.machines.runtime(),
            self.settings.image_cache_mib,
        )
        .await
    }
}

/// Removes layers that no build stands on, until all are within the bound.
async fn evict(images: &Images, runtime: &dyn Runtime, cache_mib: u64) -> Result<Evicted> {
    // What becomes a build meanwhile was used within the last minutes, and stays for that.
    let mut in_use: HashSet<PathBuf> = HashSet::new();
    for build in runtime.builds().await {
        in_use.extend(runtime.layers_of(build).await);
    }
    images
        .evict(cache_mib << 20, in_use)
        .await
        .context("unused layers of images could not be removed")
}

/// Evicts layers now and then, until it is told to stop.
pub(crate) async fn evict_until(
    images: Images,
    runtime: Arc<dyn Runtime>,
    cache_mib: u64,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        match stop
            .run_until_cancelled(evict(&images, &*runtime, cache_mib))
            .await
        {
            Some(Ok(evicted)) if evicted.layers > 0 => {
                tracing::info!(?evicted, "unused layers of images are removed");
            }
            Some(Err(error)) => tracing::warn!("{error:#}"),
            Some(Ok(_)) | None => {}
        }
    }
}
