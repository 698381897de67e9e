use std::sync::Arc;

use bytes::Bytes;
use ports::Blobs;

use super::manifest::{BLOCK_BYTES, Manifest};
use super::restore::{read, unpack};
use super::{DiskError, pack_key};

/// A disk whose blocks are fetched when they are wanted. It keeps none: whoever asks does.
pub struct Lazy {
    blobs: Arc<dyn Blobs>,
    manifest: Manifest,
}

impl Lazy {
    /// Bytes of a block.
    pub const BLOCK_BYTES: usize = BLOCK_BYTES;

    /// Over a manifest that was loaded.
    #[must_use]
    pub fn new(blobs: Arc<dyn Blobs>, manifest: Manifest) -> Self {
        Self { blobs, manifest }
    }

    /// The block at `index`, verified; `None` where it is all zeros, or lies behind the end.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub async fn block(&self, index: u32) -> Result<Option<Bytes>, DiskError> {
        let blocks = &self.manifest.blocks;
        let Ok(at) = blocks.binary_search_by_key(&index, |block| block.index) else {
            return Ok(None);
        };
        let block = blocks[at];
        let key = pack_key(self.manifest.packs[block.pack as usize]);
        let start = u64::from(block.offset);
        let stored = read(&*self.blobs, &key, start..start + u64::from(block.length)).await?;
        let whole = unpack(&block, &stored).ok_or(DiskError::Forged(key))?;
        Ok(Some(whole.into()))
    }
}
