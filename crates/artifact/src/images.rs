//! Images: pulled from registries or imported from archives, as directories that machines start from.
//!
//! ```text
//! <dir>/layers, <dir>/facts     see `layers.rs`
//! <dir>/imports/<sha256>.json   an image that was imported, by the digest of its name
//! ```
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::recipe::RegistryCredentials;
use ports::Blobs;
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::layers::{Evicted, Hold, Layers};
use crate::manifest::ImageConfig;
use crate::policy::{Policy, PolicyError};
use crate::reference::Reference;
use crate::registry::Client;

mod error;
mod imported;
mod mend;
mod pipe;
mod pull;
mod travel;

pub use error::PullError;
pub use imported::Imported;
pub use travel::{LayerArchives, LayersHere, TravelError};

/// What happens while an image is fetched. Whoever does not listen misses it, and nothing waits for him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// It is known what is needed.
    Resolved {
        /// Which image.
        digest: Digest,
        /// How many layers it has.
        layers: usize,
        /// How many bytes they are, compressed.
        bytes: u64,
    },
    /// A layer is there already.
    Present {
        /// Which, by the digest of its compressed bytes.
        layer: Digest,
    },
    /// So much of a layer has come.
    Progress {
        /// Which, by the digest of its compressed bytes.
        layer: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Of so many.
        total: u64,
    },
    /// A layer broke off, and goes on.
    Again {
        /// Which, by the digest of its compressed bytes.
        layer: Digest,
        /// From so many bytes.
        bytes: u64,
        /// What was seen.
        why: String,
    },
    /// A layer is there now.
    Unpacked {
        /// Which, by the digest of its compressed bytes.
        layer: Digest,
        /// How many bytes it is, uncompressed.
        bytes: u64,
    },
}

/// Where [`PullEvent`]s are sent to; those that it has no room for are lost.
pub type Progress = mpsc::Sender<PullEvent>;

/// Why the images of a node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The policy cannot be followed.
    #[error("[images] {0}")]
    Policy(#[from] PolicyError),
    /// The directory cannot be used.
    #[error("the directory for images {dir} cannot be used")]
    Dir {
        /// Which.
        dir: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The certificates of authorities that are trusted cannot be read.
    #[error("[images] authorities cannot be read")]
    Authorities(#[source] io::Error),
}

/// An image that is there. Its layers stay while this is there, and ten minutes longer.
#[derive(Debug)]
pub struct Image {
    /// Which: of its manifest; of an archive without one, of its configuration.
    pub digest: Digest,
    /// How it is run.
    pub config: ImageConfig,
    /// Directories as overlayfs takes them, the lowest first. They belong to [`Images`], and nobody writes into them.
    pub layers: Vec<PathBuf>,
    _held: Vec<Hold>,
}

/// The images of a node. One process has them at a time. Clones are the same.
#[derive(Debug, Clone)]
pub struct Images {
    dir: PathBuf,
    layers: Arc<Layers>,
    client: Client,
    policy: Arc<Policy>,
    keeps_archives: bool,
}

impl Images {
    /// Opens them, and removes what a process that died left half made. Needs a runtime of tokio. Blocks.
    pub fn open(dir: impl Into<PathBuf>, policy: Policy) -> Result<Self, OpenError> {
        let dir = dir.into();
        policy.check()?;
        let of_dir = |source| OpenError::Dir {
            dir: dir.clone(),
            source,
        };
        let layers = Layers::open(&dir).map_err(of_dir)?;
        std::fs::create_dir_all(dir.join("imports")).map_err(of_dir)?;
        let policy = Arc::new(policy);
        Ok(Self {
            layers: Arc::new(layers),
            client: Client::new(Arc::clone(&policy)).map_err(OpenError::Authorities)?,
            policy,
            dir,
            keeps_archives: false,
        })
    }

    /// Whether what layers are unpacked from is kept beside them, so that they can be brought to the blobs ([`Images::stow`]).
    /// It takes room, compressed, which counts as the layers' own.
    #[must_use]
    pub fn keeping_archives(self, keeps_archives: bool) -> Self {
        Self {
            keeps_archives,
            ..self
        }
    }

    /// What a name means: the registry of the policy where it names none.
    pub fn reference(&self, text: &str) -> Result<Reference, PullError> {
        Ok(Reference::parse(text, &self.policy.default_registry)?)
    }

    /// The digest of the image that a name means now, for this machine: the same that [`Image::digest`] will be. An imported
    /// image comes before one of the same name in a registry, which is asked in any other case, so that who may not read an
    /// image gets nothing of it.
    pub async fn resolve(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<Digest, PullError> {
        pull::resolve(self, reference, credentials).await
    }

    /// Fetches an image, of it only the layers that are not there. Dropping the future ends it, and leaves whole layers.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<&RegistryCredentials>,
        progress: Option<Progress>,
    ) -> Result<Image, PullError> {
        pull::pull(self, reference, credentials, progress.as_ref()).await
    }

    /// Takes an image from a file of this machine: a directory or tar in the layout of OCI, or what `docker save` writes, gzipped or
    /// not. `image` says which, where there are several; `name` what it is called from now on, in the place of what the archive
    /// calls it. It stays until [`Images::forget`].
    pub async fn import(
        &self,
        path: &Path,
        image: Option<&str>,
        name: Option<&str>,
    ) -> Result<(Imported, Image), PullError> {
        imported::import(self, path, image, name).await
    }

    /// Images that were imported, by name.
    pub async fn imported(&self) -> Result<Vec<Imported>, PullError> {
        imported::all(self).await
    }

    /// Forgets an image that was imported; its layers go when nobody uses them. `false` where there is none of this name.
    pub async fn forget(&self, name: &str) -> Result<bool, PullError> {
        imported::forget(self, name).await
    }

    /// Brings to the blobs the archives of those of these layers that are not there, the highest first; what is there of them
    /// by then. `known` are archives that something names which stays in the blobs until this is over; others are brought
    /// again where they were brought longer ago than `young`, since nobody may name them any more. A layer without an archive
    /// that is kept is left out.
    ///
    /// # Errors
    /// See [`TravelError`]. What was brought by then is whole.
    pub async fn stow(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        known: &LayerArchives,
        young: Duration,
    ) -> Result<LayerArchives, TravelError> {
        travel::stow(self, blobs, layers, known, young).await
    }

    /// Has layers here, the highest first, of which those that are not are had from the blobs, as a pull would have them from
    /// a registry: within the same bounds, and verified by both of their digests. Dropping the future ends it, and leaves
    /// whole layers.
    ///
    /// # Errors
    /// See [`TravelError`]. Layers that have come by then are whole, and need not come again.
    pub async fn fetch(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        archives: &LayerArchives,
    ) -> Result<LayersHere, TravelError> {
        travel::fetch(self, blobs, layers, archives).await
    }

    /// Removes layers that were not used for the longest time, until all take no more than so many bytes. Those in `in_use`
    /// ([`Image::layers`]), those of imported images, and those that were used within the last ten minutes stay.
    pub async fn evict(&self, bytes_max: u64, mut in_use: HashSet<PathBuf>) -> Result<Evicted, PullError> {
        for imported in imported::all(self).await? {
            in_use.extend(imported.diffs().map(|diff| self.layers.path(diff)));
        }
        let layers = Arc::clone(&self.layers);
        blocking(move || layers.evict(bytes_max, &in_use))
            .await?
            .map_err(PullError::disk("removing unused layers"))
    }
}

/// Runs what blocks where that harms nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PullError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|error| PullError::disk("a task")(io::Error::other(error)))
}

#[cfg(test)]
mod tests;
