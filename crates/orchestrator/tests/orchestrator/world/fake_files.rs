//! Volumes that are there or not, and hold nothing.
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use model::{MiB, VolumeId};
use ports::VolumeFiles;
use ports::blobs::ByteStream;
use ports::volumes::{FileError, FileKind, FileStat, Ownership};

#[derive(Default)]
pub(crate) struct FakeFiles(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    volumes: BTreeSet<VolumeId>,
    failure: Option<FileError>,
}

fn none() -> FileError {
    FileError::Invalid("these volumes hold nothing".to_owned())
}

impl FakeFiles {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The next call that changes something fails, and changes nothing.
    pub(crate) fn fail(&self, error: FileError) {
        self.inner().failure = Some(error);
    }

    /// What was to fail, and did not.
    pub(crate) fn take_failure(&self) -> Option<FileError> {
        self.inner().failure.take()
    }

    /// Has a volume that nobody told it to make.
    pub(crate) fn has(&self, id: VolumeId) {
        self.inner().volumes.insert(id);
    }

    pub(crate) fn volumes(&self) -> BTreeSet<VolumeId> {
        self.inner().volumes.clone()
    }

    /// Loses everything.
    pub(crate) fn clear(&self) {
        self.inner().volumes.clear();
    }
}

#[async_trait]
impl VolumeFiles for FakeFiles {
    async fn make(&self, id: VolumeId, _: MiB) -> Result<(), FileError> {
        let mut inner = self.inner();
        if let Some(error) = inner.failure.take() {
            return Err(error);
        }
        inner.volumes.insert(id);
        Ok(())
    }

    async fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        let mut inner = self.inner();
        if let Some(error) = inner.failure.take() {
            return Err(error);
        }
        inner.volumes.remove(&id);
        Ok(())
    }

    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        Ok(self.volumes().into_iter().collect())
    }

    async fn stat(&self, id: VolumeId, path: &str) -> Result<FileStat, FileError> {
        if !self.inner().volumes.contains(&id) {
            return Err(FileError::NoVolume);
        }
        Ok(FileStat {
            name: path.to_owned(),
            path: path.to_owned(),
            kind: FileKind::Directory,
            size: 0,
            mode: 0o40755,
            uid: 0,
            gid: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            target: None,
        })
    }

    async fn change(&self, _: VolumeId, _: &str, _: Ownership) -> Result<FileStat, FileError> {
        Err(none())
    }

    async fn list(&self, _: VolumeId, _: &str, _: u32) -> Result<Vec<FileStat>, FileError> {
        Err(none())
    }

    async fn make_dir(&self, _: VolumeId, _: &str, _: Ownership, _: bool) -> Result<FileStat, FileError> {
        Err(none())
    }

    async fn remove(&self, _: VolumeId, _: &str) -> Result<(), FileError> {
        Err(none())
    }

    async fn read(&self, _: VolumeId, _: &str) -> Result<(u64, ByteStream), FileError> {
        Err(none())
    }

    async fn write(
        &self,
        _: VolumeId,
        _: &str,
        _: ByteStream,
        _: Ownership,
        _: bool,
    ) -> Result<FileStat, FileError> {
        Err(none())
    }
}
