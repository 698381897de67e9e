use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use model::BuildId;
use ports::Blobs;
use ports::runtime::{MemoryFile, PartImage};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::restore::read_whole;
use super::{DiskError, description_key};
use crate::digest::Digest;
use crate::images::LayerArchives;

/// The form that is written where archives of layers are named. Whoever knows the first one alone would not keep them.
const FORM_WITH_ARCHIVES: u32 = 2;
/// The form that is written where images with names of their own are named. Whoever knows the earlier ones would not keep those.
const FORM_WITH_DRAWN: u32 = 3;
/// The form that is written where there is neither.
const FORM: u32 = 1;
/// A root has at most 128 layers, and each is told in some hundred bytes.
const BYTES_MAX: u64 = 256 << 10;

/// What a build consists of, in the blobs. Whoever knows its digest knows all that it consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    form: u32,
    /// Of which kind of runtime.
    pub runtime: String,
    /// How its parts are put together, as that runtime has it.
    pub record: serde_json::Value,
    /// Layers of images that it stands on.
    pub layers: Vec<Digest>,
    /// Archives of those of them that are in the blobs. The others must be where it is to be had, or are made there.
    #[serde(default, skip_serializing_if = "LayerArchives::is_empty")]
    pub archives: LayerArchives,
    /// The disk that its machines begin with a copy of.
    pub own: Option<Digest>,
    /// Disks that are layers.
    pub sealed: BTreeMap<BuildId, Digest>,
    /// Disks whose names were drawn at random.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drawn: BTreeMap<Uuid, Digest>,
    /// Files of memory, likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub memory: BTreeMap<Uuid, BTreeMap<MemoryFile, Digest>>,
}

impl Description {
    /// One of a build without disks.
    #[must_use]
    pub fn new(runtime: &str, record: serde_json::Value, layers: Vec<Digest>) -> Self {
        Self {
            form: FORM,
            runtime: runtime.to_owned(),
            record,
            layers,
            archives: LayerArchives::new(),
            own: None,
            sealed: BTreeMap::new(),
            drawn: BTreeMap::new(),
            memory: BTreeMap::new(),
        }
    }

    /// Says which archives of its layers are in the blobs.
    #[must_use]
    pub fn with_archives(self, archives: LayerArchives) -> Self {
        let form = if archives.is_empty() {
            FORM
        } else {
            FORM_WITH_ARCHIVES
        };
        Self {
            form: self.form.max(form),
            archives,
            ..self
        }
    }

    /// Says which disk an image is.
    pub fn add(&mut self, image: PartImage, disk: Digest) {
        match image {
            PartImage::Own => self.own = Some(disk),
            PartImage::Sealed(build) => {
                self.sealed.insert(build, disk);
            }
            PartImage::Drawn(id) => {
                self.form = FORM_WITH_DRAWN;
                self.drawn.insert(id, disk);
            }
            PartImage::Memory(id, file) => {
                self.form = FORM_WITH_DRAWN;
                self.memory.entry(id).or_default().insert(file, disk);
            }
        }
    }

    /// Which disk an image is.
    #[must_use]
    pub fn disk(&self, image: PartImage) -> Option<Digest> {
        match image {
            PartImage::Own => self.own,
            PartImage::Sealed(build) => self.sealed.get(&build).copied(),
            PartImage::Drawn(id) => self.drawn.get(&id).copied(),
            PartImage::Memory(id, file) => self.memory.get(&id)?.get(&file).copied(),
        }
    }

    /// The disk that holds all that is its own, where that is one.
    #[must_use]
    pub fn whole(&self) -> Option<Digest> {
        let only = || self.drawn.values().next().filter(|_| self.drawn.len() == 1);
        self.own.or_else(|| only().copied())
    }

    /// The file of this kind of its memory, where there is one.
    #[must_use]
    pub fn only_memory(&self, file: MemoryFile) -> Option<Digest> {
        let mut found = self.memory.values().filter_map(|files| files.get(&file));
        let first = found.next().copied();
        first.filter(|_| found.next().is_none())
    }

    /// All of its images.
    #[must_use]
    pub fn disks(&self) -> BTreeSet<Digest> {
        self.own
            .into_iter()
            .chain(self.sealed.values().copied())
            .chain(self.drawn.values().copied())
            .chain(self.memory.values().flat_map(|files| files.values().copied()))
            .collect()
    }

    /// Brings it to the blobs, durably; returns its digest. Its disks and archives must be there.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub async fn put(&self, blobs: &dyn Blobs) -> Result<Digest, DiskError> {
        let bytes = serde_json::to_vec(self).map_err(|_| DiskError::Description("too odd to be written"))?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(DiskError::Description("longer than any that is read"));
        }
        let digest = Digest::of(&bytes);
        let whole = futures_util::stream::once(std::future::ready(Ok(bytes.into()))).boxed();
        blobs.put(&description_key(digest), whole).await?;
        Ok(digest)
    }

    /// The one of a digest.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub async fn load(blobs: &dyn Blobs, digest: Digest) -> Result<Self, DiskError> {
        let bytes = read_whole(blobs, description_key(digest), digest, BYTES_MAX).await?;
        let description: Self =
            serde_json::from_slice(&bytes).map_err(|_| DiskError::Description("not understood"))?;
        if !(FORM..=FORM_WITH_DRAWN).contains(&description.form) {
            return Err(DiskError::Description("of a form that this Atoll does not know"));
        }
        Ok(description)
    }
}
