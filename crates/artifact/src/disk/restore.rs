use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use ports::Blobs;

use super::manifest::{BLOCK_BYTES, Block, MANIFEST_BYTES_MAX, Manifest};
use super::{DiskError, disk_key, pack_key};
use crate::digest::Digest;

/// What is asked for at a time, where blocks lie one behind the other.
const RUN_BYTES_MAX: u32 = 8 << 20;

/// The manifest of a digest.
///
/// # Errors
/// See [`DiskError`].
pub async fn load(blobs: &dyn Blobs, disk: Digest) -> Result<Manifest, DiskError> {
    let bytes = read_whole(blobs, disk_key(disk), disk, MANIFEST_BYTES_MAX).await?;
    Manifest::decode(&bytes).map_err(|error| DiskError::Manifest(disk, error))
}

/// Writes a disk into an empty file, which is as sparse as it can be. Everything is verified and on the file's disk when this
/// returns; after an error the file holds rubbish.
///
/// # Errors
/// See [`DiskError`].
pub async fn restore(blobs: &dyn Blobs, manifest: &Manifest, image: File) -> Result<(), DiskError> {
    let written = |error| DiskError::Image("written", error);
    image.set_len(manifest.size).map_err(written)?;
    let image = Arc::new(image);
    let mut blocks: Vec<Block> = manifest.blocks.clone();
    blocks.sort_unstable_by_key(|block| (block.pack, block.offset));
    for run in runs(&blocks) {
        let (pack, part) = place(manifest, run);
        let key = pack_key(pack);
        let bytes = read(blobs, &key, u64::from(part.start)..u64::from(part.end)).await?;
        let (run, image, size) = (run.to_vec(), Arc::clone(&image), manifest.size);
        let write = move || write_run(&run, part.start, &bytes, &image, size);
        tokio::task::spawn_blocking(write)
            .await?
            .map_err(|failed| match failed {
                Failed::Io(error) => written(error),
                Failed::Forged => DiskError::Forged(key),
            })?;
    }
    tokio::task::spawn_blocking(move || image.sync_all())
        .await?
        .map_err(written)
}

enum Failed {
    Io(io::Error),
    Forged,
}

fn write_run(run: &[Block], start: u32, bytes: &Bytes, image: &File, size: u64) -> Result<(), Failed> {
    for block in run {
        let from = (block.offset - start) as usize;
        let stored = bytes
            .get(from..from + block.length as usize)
            .ok_or(Failed::Forged)?;
        let whole = unpack(block, stored).ok_or(Failed::Forged)?;
        let at = u64::from(block.index) * BLOCK_BYTES as u64;
        let end = usize::try_from((size - at).min(BLOCK_BYTES as u64)).unwrap_or(BLOCK_BYTES);
        image.write_all_at(&whole[..end], at).map_err(Failed::Io)?;
    }
    Ok(())
}

/// The bytes of a block, if they are its own.
pub(super) fn unpack(block: &Block, stored: &[u8]) -> Option<Vec<u8>> {
    let whole = if stored.len() == BLOCK_BYTES {
        stored.to_vec()
    } else {
        zstd::bulk::decompress(stored, BLOCK_BYTES).ok()?
    };
    (whole.len() == BLOCK_BYTES && Digest::of(&whole) == block.digest).then_some(whole)
}

/// Blocks that lie in one pack, one behind the other, in pieces that are worth one request.
fn runs(blocks: &[Block]) -> impl Iterator<Item = &[Block]> {
    let mut length = 0;
    blocks.chunk_by(move |a, b| {
        length += a.length;
        let goes_on = a.pack == b.pack
            && (b.offset == a.offset + a.length || b.offset == a.offset)
            && length + b.length <= RUN_BYTES_MAX;
        if !goes_on {
            length = 0;
        }
        goes_on
    })
}

fn place(manifest: &Manifest, run: &[Block]) -> (Digest, Range<u32>) {
    let (first, last) = (run[0], run[run.len() - 1]);
    (
        manifest.packs[first.pack as usize],
        first.offset..last.offset + last.length,
    )
}

/// A whole blob of at most `max` bytes, which must be what its digest says.
pub(super) async fn read_whole(
    blobs: &dyn Blobs,
    key: String,
    digest: Digest,
    max: u64,
) -> Result<Bytes, DiskError> {
    let found = blobs.find(&key).await?;
    let found = found.ok_or_else(|| ports::BlobError::Missing(key.clone()))?;
    if found.bytes > max {
        return Err(DiskError::Forged(key));
    }
    let bytes = read(blobs, &key, 0..found.bytes).await?;
    if Digest::of(&bytes) != digest {
        return Err(DiskError::Forged(key));
    }
    Ok(bytes)
}

/// A part of a blob, which must be as long as it should be.
pub(super) async fn read(blobs: &dyn Blobs, key: &str, part: Range<u64>) -> Result<Bytes, DiskError> {
    let wanted = usize::try_from(part.end - part.start).unwrap_or(usize::MAX);
    let mut pieces = blobs.get(key, Some(part)).await?;
    let mut bytes = BytesMut::new();
    let broken = |error: io::Error| DiskError::Blobs(ports::BlobError::Away(error.into()));
    while let Some(piece) = pieces.try_next().await.map_err(broken)? {
        if bytes.len() + piece.len() > wanted {
            return Err(DiskError::Forged(key.to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() < wanted {
        return Err(DiskError::Forged(key.to_owned()));
    }
    Ok(bytes.freeze())
}
