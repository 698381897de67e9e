//! Blobs in a directory, or in a bucket of an S3-compatible store.
//!
//! What is put is staged elsewhere and named when it is whole: by a rename in a directory, by the completion of a multipart upload
//! in a bucket. What a put that died left behind is no blob; a bucket wants a life-cycle rule for incomplete uploads.
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::{StreamExt as _, TryStreamExt as _};
use model::Secret;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    Error, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload,
};
use ports::blobs::{BlobError, BlobInfo, Blobs, ByteStream};

/// What is sent at a time. S3 takes parts of 5 MiB or more, and 10 000 of them: a blob has at most 78 GiB.
const PART_BYTES: usize = 8 << 20;

/// What is left of a directory's file system to all others who write there, the daemon's own records among them: a tenth of a
/// small one, and at most so many bytes. Who puts blobs must not be able to stop everything.
const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Where it is, as the store calls it: `us-east-1`.
    pub region: String,
    /// The store's address, where it is not Amazon's: `https://minio.example:9000`. Plain HTTP only if it is written here.
    pub endpoint: Option<String>,
    /// What stands before every key, so that several may share a bucket.
    pub prefix: String,
    /// Access key and its secret; without them the machine's role is asked for (instance metadata, web identity).
    pub credentials: Option<(String, Secret<String>)>,
}

/// Blobs in a store that object_store knows.
pub struct Stored {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Where they take the room of others.
    room: Option<PathBuf>,
}

impl Stored {
    /// In a directory, which is made where it is not there. Everything is on the disk before a put returns.
    ///
    /// # Errors
    /// The directory cannot be made or opened.
    pub fn in_directory(directory: &Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(directory).map_err(|error| BlobError::Away(error.into()))?;
        let store = LocalFileSystem::new_with_prefix(directory)
            .map_err(|error| BlobError::Away(error.into()))?
            .with_fsync(true)
            .with_automatic_cleanup(false);
        Ok(Self {
            store: Arc::new(store),
            prefix: String::new(),
            room: Some(directory.to_owned()),
        })
    }

    /// In a bucket, which must be there. Nothing is asked of it yet.
    ///
    /// # Errors
    /// What is told of it makes no sense.
    pub fn in_bucket(bucket: &Bucket) -> Result<Self, BlobError> {
        // One provider of cryptography for the whole program. A second call changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&bucket.name)
            .with_region(&bucket.region);
        if let Some(endpoint) = &bucket.endpoint {
            builder = builder
                .with_endpoint(endpoint)
                .with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some((id, secret)) = &bucket.credentials {
            builder = builder
                .with_access_key_id(id)
                .with_secret_access_key(secret.expose());
        }
        let store = builder.build().map_err(|error| BlobError::Away(error.into()))?;
        Ok(Self {
            store: Arc::new(store),
            prefix: bucket.prefix.trim_matches('/').to_owned(),
            room: None,
        })
    }

    fn key(&self, key: &str) -> Result<Key, BlobError> {
        ports::blobs::check_key(key)?;
        let whole = if self.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}/{key}", self.prefix)
        };
        Key::parse(whole).map_err(|error| BlobError::Away(error.into()))
    }

    fn info(&self, about: ObjectMeta) -> BlobInfo {
        let key = about.location.as_ref();
        let key = key
            .strip_prefix(&self.prefix)
            .unwrap_or(key)
            .trim_start_matches('/');
        BlobInfo {
            key: key.to_owned(),
            bytes: about.size,
            modified: about.last_modified.into(),
        }
    }
}

fn has_room(directory: Option<&Path>) -> Result<(), BlobError> {
    let Some(directory) = directory else { return Ok(()) };
    let about =
        rustix::fs::statvfs(directory).map_err(|errno| BlobError::Away(io::Error::from(errno).into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(about.f_frsize);
    if is_enough(bytes(about.f_bavail), bytes(about.f_blocks)) {
        return Ok(());
    }
    Err(BlobError::Away(
        io::Error::from(io::ErrorKind::StorageFull).into(),
    ))
}

fn is_enough(free_bytes: u64, total_bytes: u64) -> bool {
    free_bytes >= (total_bytes / 10).min(RESERVE_BYTES_MAX)
}

fn failed(key: &str) -> impl Fn(Error) -> BlobError + '_ {
    move |error| match error {
        Error::NotFound { .. } => BlobError::Missing(key.to_owned()),
        error => BlobError::Away(error.into()),
    }
}

/// Takes from a stream what is to be sent next: a whole part, or the last of it.
async fn next_part(bytes: &mut ByteStream, rest: &mut BytesMut) -> std::io::Result<Option<PutPayload>> {
    while rest.len() < PART_BYTES {
        match bytes.next().await {
            Some(piece) => rest.extend_from_slice(&piece?),
            None if rest.is_empty() => return Ok(None),
            None => return Ok(Some(rest.split().freeze().into())),
        }
    }
    Ok(Some(rest.split_to(PART_BYTES).freeze().into()))
}

async fn put_parts(
    upload: &mut dyn MultipartUpload,
    key: &str,
    first: PutPayload,
    bytes: &mut ByteStream,
    rest: &mut BytesMut,
    room: Option<&Path>,
) -> Result<u64, BlobError> {
    let mut length = first.content_length() as u64;
    upload.put_part(first).await.map_err(failed(key))?;
    while let Some(part) = next_part(bytes, rest)
        .await
        .map_err(|error| BlobError::Source(key.to_owned(), error))?
    {
        length += part.content_length() as u64;
        has_room(room)?;
        upload.put_part(part).await.map_err(failed(key))?;
    }
    upload.complete().await.map_err(failed(key))?;
    Ok(length)
}

#[async_trait]
impl Blobs for Stored {
    async fn put(&self, key: &str, mut bytes: ByteStream) -> Result<u64, BlobError> {
        let place = self.key(key)?;
        has_room(self.room.as_deref())?;
        let mut rest = BytesMut::new();
        let broken = |error| BlobError::Source(key.to_owned(), error);
        let first = next_part(&mut bytes, &mut rest)
            .await
            .map_err(broken)?
            .unwrap_or_default();
        // What fits into one part is one request.
        if first.content_length() < PART_BYTES {
            let length = first.content_length() as u64;
            self.store.put(&place, first).await.map_err(failed(key))?;
            return Ok(length);
        }
        let mut upload = self.store.put_multipart(&place).await.map_err(failed(key))?;
        let put = put_parts(
            &mut *upload,
            key,
            first,
            &mut bytes,
            &mut rest,
            self.room.as_deref(),
        )
        .await;
        if put.is_err() {
            // What is left of it costs room until it is swept; it is never found by its name.
            let _ = upload.abort().await;
        }
        put
    }

    async fn get(&self, key: &str, part: Option<Range<u64>>) -> Result<ByteStream, BlobError> {
        let place = self.key(key)?;
        let options = match part {
            None => GetOptions::default(),
            Some(part) => {
                // A range that begins behind the end is an error of HTTP, and no bytes here.
                let length = self.store.head(&place).await.map_err(failed(key))?.size;
                let part = part.start.min(length)..part.end.min(length);
                if part.is_empty() {
                    return Ok(futures_util::stream::empty().boxed());
                }
                GetOptions {
                    range: Some(GetRange::Bounded(part)),
                    ..GetOptions::default()
                }
            }
        };
        let found = self.store.get_opts(&place, options).await.map_err(failed(key))?;
        Ok(found.into_stream().map_err(std::io::Error::other).boxed())
    }

    async fn find(&self, key: &str) -> Result<Option<BlobInfo>, BlobError> {
        match self.store.head(&self.key(key)?).await {
            Ok(about) => Ok(Some(BlobInfo {
                key: key.to_owned(),
                ..self.info(about)
            })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(BlobError::Away(error.into())),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>, BlobError> {
        let prefix = ports::blobs::check_prefix(prefix)?;
        let place = match (self.prefix.is_empty(), prefix.is_empty()) {
            (true, true) => None,
            (false, true) => Some(Key::from(self.prefix.as_str())),
            _ => Some(self.key(prefix)?),
        };
        let mut found: Vec<BlobInfo> = self
            .store
            .list(place.as_ref())
            .map_ok(|about| self.info(about))
            .try_collect()
            .await
            .map_err(failed(prefix))?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    async fn remove(&self, key: &str) -> Result<(), BlobError> {
        match self.store.delete(&self.key(key)?).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(BlobError::Away(error.into())),
        }
    }
}

#[cfg(test)]
mod tests;
