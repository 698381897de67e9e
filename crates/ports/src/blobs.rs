//! Bytes that are kept under a name: uploads, layers, blocks of disks.
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use model::Kind;

pub mod contract;

/// Bytes as they come.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// What is known of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// When it was put.
    pub modified: SystemTime,
}

/// Why a blob was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is none of this name.
    #[error("there is no blob {0}")]
    Missing(String),
    /// It is no name that a blob may have.
    #[error("{0:?} names no blob: parts of [a-z0-9._-], but for . and .., joined by /")]
    Name(String),
    /// The bytes that were to be stored ended with an error.
    #[error("the bytes for blob {0} broke off")]
    Source(String, #[source] io::Error),
    /// The store is away, full or broken.
    #[error("the blob store is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BlobError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            BlobError::Missing(_) => Kind::NotFound,
            BlobError::Name(_) | BlobError::Source(..) => Kind::Invalid,
            BlobError::Away(_) => Kind::Unavailable,
        }
    }
}

/// The longest name, in bytes: S3 takes 1024, and adapters may need some for a place of their own in a bucket.
pub const KEY_BYTES_MAX: usize = 768;
/// The longest part of a name, in bytes: file systems take 255, and adapters need some for the names of unfinished files.
pub const PART_BYTES_MAX: usize = 200;

/// Whether a text may name a blob. Every adapter asks first, so that no name leads out of its place.
///
/// # Errors
/// [`BlobError::Name`] where it may not.
pub fn check_key(key: &str) -> Result<(), BlobError> {
    let is_part = |part: &str| {
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        !matches!(part, "" | "." | "..") && part.len() <= PART_BYTES_MAX && part.bytes().all(is_plain)
    };
    if key.len() <= KEY_BYTES_MAX && key.split('/').all(is_part) {
        return Ok(());
    }
    Err(BlobError::Name(key.chars().take(KEY_BYTES_MAX).collect()))
}

/// The whole parts that names must begin with: `prefix` without a `/` at its end. Empty where all are meant.
///
/// # Errors
/// [`BlobError::Name`] where no name begins so.
pub fn check_prefix(prefix: &str) -> Result<&str, BlobError> {
    let parts = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() {
        check_key(parts)?;
    }
    Ok(parts)
}

/// Bytes under names. A name is `[a-z0-9._-]+` parts joined by `/`, none of them `.` or `..`: see [`check_key`]; others are
/// refused with [`BlobError::Name`]. No name may be the first parts of another: a disk cannot hold both. What stands under a
/// name is whole, always: a put that fails, is given up, or whose process dies, leaves what was there before it, and who has
/// begun to read goes on in what he began with.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Stores bytes under a name, in the place of what was there; returns how many they were. They are durable when this
    /// returns. No more than a few MiB of them are in memory at a time.
    async fn put(&self, key: &str, bytes: ByteStream) -> Result<u64, BlobError>;
    /// The bytes under a name, or a part of them. A part that reaches beyond the end is cut there.
    async fn get(&self, key: &str, part: Option<Range<u64>>) -> Result<ByteStream, BlobError>;
    /// What is known of one.
    async fn find(&self, key: &str) -> Result<Option<BlobInfo>, BlobError>;
    /// Those below `prefix`: whose names begin with all of its parts, and have more; all where it is empty. In the order of
    /// their names' bytes.
    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>, BlobError>;
    /// Removes one. None is no error.
    async fn remove(&self, key: &str) -> Result<(), BlobError>;
}

/// Blobs in memory.
#[derive(Debug, Default)]
pub struct Memory {
    blobs: Mutex<BTreeMap<String, (Bytes, SystemTime)>>,
}

impl Memory {
    fn blobs(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Bytes, SystemTime)>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn info(key: &str, (bytes, modified): &(Bytes, SystemTime)) -> BlobInfo {
    BlobInfo {
        key: key.to_owned(),
        bytes: bytes.len() as u64,
        modified: *modified,
    }
}

#[async_trait]
impl Blobs for Memory {
    async fn put(&self, key: &str, mut bytes: ByteStream) -> Result<u64, BlobError> {
        check_key(key)?;
        let mut whole = BytesMut::new();
        while let Some(piece) = bytes.next().await {
            whole.extend_from_slice(&piece.map_err(|error| BlobError::Source(key.to_owned(), error))?);
        }
        let length = whole.len() as u64;
        self.blobs()
            .insert(key.to_owned(), (whole.freeze(), SystemTime::now()));
        Ok(length)
    }

    async fn get(&self, key: &str, part: Option<Range<u64>>) -> Result<ByteStream, BlobError> {
        check_key(key)?;
        let blobs = self.blobs();
        let (bytes, _) = blobs.get(key).ok_or_else(|| BlobError::Missing(key.to_owned()))?;
        let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = part.map_or_else(
            || bytes.clone(),
            |part| bytes.slice(at(part.start)..at(part.end).max(at(part.start))),
        );
        Ok(futures_util::stream::once(std::future::ready(Ok(bytes))).boxed())
    }

    async fn find(&self, key: &str) -> Result<Option<BlobInfo>, BlobError> {
        check_key(key)?;
        Ok(self.blobs().get(key).map(|blob| info(key, blob)))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>, BlobError> {
        let parts = check_prefix(prefix)?;
        let blobs = self.blobs();
        let under =
            |key: &str| parts.is_empty() || key.strip_prefix(parts).is_some_and(|rest| rest.starts_with('/'));
        Ok(blobs
            .iter()
            .filter(|(key, _)| under(key))
            .map(|(key, blob)| info(key, blob))
            .collect())
    }

    async fn remove(&self, key: &str) -> Result<(), BlobError> {
        check_key(key)?;
        self.blobs().remove(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Memory;

    crate::blob_contract!(async { ((), Arc::new(Memory::default())) });
}
