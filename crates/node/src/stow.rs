//! Builds in the blobs, where they outlive this node: brought there, had again from there, swept.
//!
//! Of a build the blobs hold what it alone consists of and what was sealed for those below it: disks, and memory of machines with a
//! kernel of their own, block by block; and the archives of the layers of images that it stands on. What a container's was made of
//! the machine itself must be on the node that has the build again.
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use artifact::digest::Digest;
use artifact::disk::{self, Description, DiskError, Manifest};
use artifact::{LayerArchives, TravelError};
use async_trait::async_trait;
use model::{BuildId, Kind};
use ports::runtime::{MemoryFile, PartError, PartImage, PartImages};
use ports::{BlobError, Blobs, NodeError};

use crate::build::HeldLayers;
use crate::node::LocalNode;
use crate::sandbox::bring_up::failed;

/// What is younger may be on its way.
const GRACE: Duration = Duration::from_secs(24 * 3600);
/// A layer that was brought longer ago is brought again where nobody is known to name it: it might be swept before the build is
/// noted that stands on it. What is left of [`GRACE`] is longer than bringing one takes.
const YOUNG: Duration = Duration::from_secs(12 * 3600);

/// Images of which it is remembered that they were brought: some hundred bytes each.
const KNOWN_MAX: usize = 65_536;

impl LocalNode {
    /// Says where builds are brought; without it, they are here alone. The first call counts.
    pub fn stow_in(&self, blobs: Arc<dyn Blobs>) {
        let _ = self.blobs.set(blobs);
    }

    fn stowage(&self) -> Result<Arc<dyn Blobs>, NodeError> {
        let none = || NodeError::Refused("this node has no place to bring builds to".to_owned());
        self.blobs.get().cloned().ok_or_else(none)
    }

    /// Brings a build to the blobs; the digest by which it is found there. Blocks that disks of `kin` hold, which are told by
    /// their digests, are not brought again.
    pub(crate) async fn stow(&self, build: BuildId, kin: &[String]) -> Result<String, NodeError> {
        const STEP: &str = "bringing a build to the blobs";
        let blobs = self.stowage()?;
        // One at a time: it reads whole disks, and nobody waits for it.
        let mut stowed = self.stowed_images.lock().await;
        let parts = self.runtime.parts(build).await.map_err(failed(STEP))?;
        let layer = |dir: &PathBuf| {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            format!("sha256:{name}")
                .parse()
                .map_err(|_| broken(STEP)(DiskError::Description("of a layer without a digest")))
        };
        let layers: Vec<Digest> = parts.given.iter().map(layer).collect::<Result<_, _>>()?;
        let kin = Kin::load(&*blobs, kin).await;
        let archives = match self.images.get() {
            Some(images) => images.stow(&*blobs, &layers, &kin.archives(), YOUNG).await,
            None => Ok(LayerArchives::new()),
        };
        let archives = archives.map_err(travelled(STEP))?;
        failpoint::reach("node/layers-stowed");
        let description = Description::new(self.runtime.name(), parts.record, layers);
        let mut description = description.with_archives(archives);
        let mut relied_on = Vec::new();
        for (image, file) in parts.images {
            let known = match image {
                PartImage::Sealed(_) | PartImage::Drawn(_) | PartImage::Memory(..) => {
                    stowed.get(&image).copied().or_else(|| kin.disk(image))
                }
                PartImage::Own => None,
            };
            let disk = match known {
                Some(disk) if disk::is_whole(&*blobs, disk).await.map_err(broken(STEP))? => {
                    relied_on.push((image, disk));
                    disk
                }
                _ => {
                    let base = match image {
                        PartImage::Own | PartImage::Drawn(_) => kin.base.as_ref(),
                        PartImage::Memory(_, file) => kin.memory.get(&file),
                        // Its own was sealed from a disk of its lineage; of those below it nothing is known.
                        PartImage::Sealed(of) => kin.base.as_ref().filter(|_| of == build),
                    };
                    let published = disk::publish(&*blobs, file, base).await;
                    published.map_err(broken(STEP))?.digest()
                }
            };
            if image != PartImage::Own {
                if stowed.len() >= KNOWN_MAX {
                    // They are found in the blobs again, where what is akin names them.
                    stowed.clear();
                }
                stowed.insert(image, disk);
            }
            description.add(image, disk);
        }
        failpoint::reach("node/disks-stowed");
        let digest = description.put(&*blobs).await.map_err(broken(STEP))?;
        // From here on no sweep takes what it names. One that was under way may have: then it is brought the next time.
        for (image, disk) in relied_on {
            if !disk::is_whole(&*blobs, disk).await.map_err(broken(STEP))? {
                stowed.remove(&image);
                return Err(broken(STEP)(DiskError::Description(
                    "of a disk that was swept meanwhile",
                )));
            }
        }
        tracing::info!(%build, %digest, "a build is in the blobs");
        Ok(digest.to_string())
    }

    /// Has a build here that the blobs hold.
    pub(crate) async fn fetch(&self, build: BuildId, digest: &str) -> Result<(), NodeError> {
        const STEP: &str = "bringing a build from the blobs";
        let blobs = self.stowage()?;
        // One at a time, too: two that want the same one want it once.
        let _turn = self.fetching.lock().await;
        if self.runtime.has_build(build).await {
            return Ok(());
        }
        let mut claim = self.in_use.claim();
        claim.add(build);
        let digest: Digest = digest
            .parse()
            .map_err(|_| broken(STEP)(DiskError::Description("not told by a digest")))?;
        let description = Description::load(&*blobs, digest).await.map_err(broken(STEP))?;
        if description.runtime != self.runtime.name() {
            // Another node may have it, or can have it.
            tracing::warn!(%build, runtime = description.runtime, "a build is one of another runtime, and cannot be had here");
            return Err(NodeError::NoBuild(build));
        }
        let layers = self.layers(&*blobs, build, &description).await?;
        failpoint::reach("node/layers-fetched");
        let images = Stowed {
            blobs: &*blobs,
            description: &description,
        };
        let begun = std::time::Instant::now();
        self.runtime
            .assemble(build, &description.record, layers.paths, &images)
            .await
            .map_err(failed(STEP))?;
        // From here on the build keeps them.
        drop(layers.held);
        tracing::info!(%build, took = ?begun.elapsed(), "a build came from the blobs");
        Ok(())
    }

    /// Has the layers of images here that a build stands on.
    async fn layers(
        &self,
        blobs: &dyn Blobs,
        build: BuildId,
        description: &Description,
    ) -> Result<HeldLayers, NodeError> {
        let missing = |layer: &Digest| {
            tracing::warn!(%build, %layer, "a build needs a layer of an image that is not here, and not in the blobs");
            NodeError::NoBuild(build)
        };
        let (layers, archives) = (&description.layers, &description.archives);
        let fetched = match (self.images.get(), layers.first()) {
            (Some(images), _) => images.fetch(blobs, layers, archives).await,
            (None, None) => return Ok(HeldLayers::default()),
            (None, Some(layer)) => return Err(missing(layer)),
        };
        fetched.map_err(|error| match error {
            TravelError::Missing(layer) => missing(&layer),
            error => travelled("bringing the layers of a build from the blobs")(error),
        })
    }

    /// Removes from the blobs what no living description refers to.
    pub(crate) async fn sweep(&self, living: &[String]) -> Result<u64, NodeError> {
        const STEP: &str = "sweeping the blobs";
        let blobs = self.stowage()?;
        // Nothing is brought meanwhile that would stand on what is just being removed.
        let _alone = self.stowed_images.lock().await;
        let living: BTreeSet<Digest> = living
            .iter()
            .map(|digest| digest.parse())
            .collect::<Result<_, _>>()
            .map_err(|_| broken(STEP)(DiskError::Description("not told by a digest")))?;
        let swept = disk::sweep(&*blobs, &living, SystemTime::now(), GRACE)
            .await
            .map_err(broken(STEP))?;
        Ok(swept.blobs)
    }
}

/// The images of a build that the blobs hold.
struct Stowed<'a> {
    blobs: &'a dyn Blobs,
    description: &'a Description,
}

#[async_trait]
impl PartImages for Stowed<'_> {
    async fn write(&self, image: PartImage, into: std::fs::File) -> Result<(), PartError> {
        let written = async {
            let disk = self
                .description
                .disk(image)
                .ok_or(DiskError::Description("without a disk that its record names"))?;
            let manifest = disk::load(self.blobs, disk).await?;
            disk::restore(self.blobs, &manifest, into).await
        };
        written.await.map_err(|error| match error {
            DiskError::Blobs(BlobError::Away(_)) => PartError::Away(error.into()),
            error => PartError::Lost(error.into()),
        })
    }
}

/// What the blobs hold of builds that are akin to another. What cannot be read of them is left out: without them that one is
/// brought whole, and comes back all the same.
#[derive(Default)]
struct Kin {
    descriptions: Vec<Description>,
    /// What the machines of the nearest begin with a copy of, where that is one disk.
    base: Option<Manifest>,
    /// The memory of the nearest that has some.
    memory: BTreeMap<MemoryFile, Manifest>,
}

impl Kin {
    async fn load(blobs: &dyn Blobs, digests: &[String]) -> Self {
        let mut kin = Self::default();
        for digest in digests {
            match kin.add(blobs, digest).await {
                Ok(()) => {}
                Err(error) => tracing::debug!(
                    digest,
                    error = &error as &dyn std::error::Error,
                    "a build in the blobs is of no use for another"
                ),
            }
        }
        kin
    }

    async fn add(&mut self, blobs: &dyn Blobs, digest: &str) -> Result<(), DiskError> {
        let digest = digest
            .parse()
            .map_err(|_| DiskError::Description("not told by a digest"))?;
        let description = Description::load(blobs, digest).await?;
        let whole = description.whole();
        for file in [MemoryFile::Pages, MemoryFile::Devices] {
            if let (Some(memory), false) = (description.only_memory(file), self.memory.contains_key(&file)) {
                self.memory.insert(file, disk::load(blobs, memory).await?);
            }
        }
        self.descriptions.push(description);
        if let (Some(whole), None) = (whole, &self.base) {
            self.base = Some(disk::load(blobs, whole).await?);
        }
        Ok(())
    }

    /// The archives of layers that they stand on.
    fn archives(&self) -> LayerArchives {
        let all = self.descriptions.iter();
        all.flat_map(|description| description.archives.clone()).collect()
    }

    /// The disk of an image that is the same wherever it is named.
    fn disk(&self, image: PartImage) -> Option<Digest> {
        let mut found = self.descriptions.iter();
        found.find_map(|description| description.disk(image))
    }
}

/// How it is told that layers were not brought.
fn travelled(step: &'static str) -> impl Fn(TravelError) -> NodeError {
    move |error| NodeError::Failed {
        step,
        kind: error.kind(),
        source: Box::new(error),
    }
}

/// How a failure of the blobs is told.
fn broken(step: &'static str) -> impl Fn(DiskError) -> NodeError {
    move |error| NodeError::Failed {
        step,
        kind: match &error {
            DiskError::Blobs(_) => Kind::Unavailable,
            _ => Kind::Internal,
        },
        source: Box::new(error),
    }
}
