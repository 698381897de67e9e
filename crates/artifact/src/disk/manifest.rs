use std::collections::HashMap;

use crate::digest::Digest;

/// Bytes of a block. A change of one byte costs so many; each costs 48 bytes of manifest.
pub(crate) const BLOCK_BYTES: usize = 128 << 10;
/// A compressed block is stored as it is where that is shorter, so none is longer than this.
pub(crate) const STORED_BYTES_MAX: usize = BLOCK_BYTES;
/// What a pack holds at most.
pub(crate) const PACK_BYTES_MAX: usize = 16 << 20;
/// The largest disk: 4 TiB.
const DISK_BYTES_MAX: u64 = 4 << 40;
/// The longest manifest that is read: some 2 TiB of blocks that are all different.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 1 << 30;

const MAGIC: &[u8; 8] = b"ATDISK1\n";
const HEAD: usize = MAGIC.len() + 8 + 4 + 4;
const DIGEST: usize = 32;
const ENTRY: usize = 4 * 4 + DIGEST;

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// Which of the disk: its first byte divided by [`BLOCK_BYTES`].
    pub(crate) index: u32,
    /// Which of the manifest's packs.
    pub(crate) pack: u32,
    /// Its first byte there.
    pub(crate) offset: u32,
    /// Its stored bytes: [`BLOCK_BYTES`] where they are not compressed.
    pub(crate) length: u32,
    /// Of its bytes on the disk; the last block of a disk is filled up with zeros.
    pub(crate) digest: Digest,
}

/// What a disk consists of. Blocks that are not in it are zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub(crate) size: u64,
    pub(crate) packs: Vec<Digest>,
    /// By index, each once.
    pub(crate) blocks: Vec<Block>,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is something else, or of a later form.
    #[error("it does not begin as a manifest does")]
    Magic,
    /// It ends too early or too late.
    #[error("its length is not what it says")]
    Length,
    /// A number leads out of its bounds.
    #[error("a number in it is out of bounds")]
    Bounds,
}

impl Manifest {
    /// Bytes of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Bytes of the disk that are not zeros, in whole blocks.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES as u64
    }

    /// What it is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// Where each block lies that may be shared: in one of these packs, which are so many bytes long.
    pub(crate) fn known(&self, packs: &HashMap<Digest, u64>) -> HashMap<Digest, (Digest, Block)> {
        let place = |block: &Block| {
            let pack = self.packs[block.pack as usize];
            self.is_in(block, packs).then_some((block.digest, (pack, *block)))
        };
        self.blocks.iter().filter_map(place).collect()
    }

    /// Whether a block lies in one of these packs, which are so many bytes long.
    pub(crate) fn is_in(&self, block: &Block, packs: &HashMap<Digest, u64>) -> bool {
        let end = u64::from(block.offset) + u64::from(block.length);
        let pack = &self.packs[block.pack as usize];
        packs.get(pack).is_some_and(|bytes| *bytes >= end)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let length = HEAD + self.packs.len() * DIGEST + self.blocks.len() * ENTRY;
        let mut bytes = Vec::with_capacity(length);
        let count = |n: usize| {
            u32::try_from(n)
                .expect("a disk of at most 4 TiB has fewer blocks")
                .to_le_bytes()
        };
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&count(self.packs.len()));
        bytes.extend_from_slice(&count(self.blocks.len()));
        for pack in &self.packs {
            bytes.extend_from_slice(pack.bytes());
        }
        for block in &self.blocks {
            for number in [block.index, block.pack, block.offset, block.length] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(block.digest.bytes());
        }
        bytes
    }

    /// Reads a manifest. Its bytes may be anybody's: what comes out is within every bound.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(ManifestError::Magic)?;
        let (size, rest) = rest.split_first_chunk().ok_or(ManifestError::Length)?;
        let (packs, rest) = number(rest)?;
        let (blocks, rest) = number(rest)?;
        let size = u64::from_le_bytes(*size);
        let wanted = (u64::from(packs) * DIGEST as u64) + u64::from(blocks) * ENTRY as u64;
        // Also the bound of what is allocated below: no more than there is.
        if wanted != rest.len() as u64 {
            return Err(ManifestError::Length);
        }
        if size > DISK_BYTES_MAX {
            return Err(ManifestError::Bounds);
        }
        let (names, entries) = rest.split_at(packs as usize * DIGEST);
        let packs: Vec<Digest> = names
            .as_chunks()
            .0
            .iter()
            .map(|name| Digest::known(*name))
            .collect();
        let blocks = entries
            .as_chunks::<ENTRY>()
            .0
            .iter()
            .map(block)
            .collect::<Result<Vec<Block>, _>>()?;
        let manifest = Self { size, packs, blocks };
        manifest
            .is_bounded()
            .then_some(manifest)
            .ok_or(ManifestError::Bounds)
    }

    fn is_bounded(&self) -> bool {
        let count = self.size.div_ceil(BLOCK_BYTES as u64);
        let fits = |block: &Block| {
            u64::from(block.index) < count
                && (block.pack as usize) < self.packs.len()
                && (1..=STORED_BYTES_MAX).contains(&(block.length as usize))
                && u64::from(block.offset) + u64::from(block.length) <= PACK_BYTES_MAX as u64
        };
        self.blocks.iter().all(fits) && self.blocks.is_sorted_by(|a, b| a.index < b.index)
    }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), ManifestError> {
    let (number, rest) = bytes.split_first_chunk().ok_or(ManifestError::Length)?;
    Ok((u32::from_le_bytes(*number), rest))
}

fn block(entry: &[u8; ENTRY]) -> Result<Block, ManifestError> {
    let (index, rest) = number(entry)?;
    let (pack, rest) = number(rest)?;
    let (offset, rest) = number(rest)?;
    let (length, rest) = number(rest)?;
    let digest = Digest::known(*rest.first_chunk().ok_or(ManifestError::Length)?);
    Ok(Block {
        index,
        pack,
        offset,
        length,
        digest,
    })
}
