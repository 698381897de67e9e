//! Volumes where there are none: refused by name.
use async_trait::async_trait;
use model::{MiB, VolumeId};
use ports::VolumeFiles;
use ports::blobs::ByteStream;
use ports::volumes::{FileError, FileStat, Ownership};

/// Of what does not have them, such as `the qemu runtime`.
pub(crate) struct NoVolumes(pub(crate) String);

impl NoVolumes {
    fn refused<T>(&self) -> Result<T, FileError> {
        Err(FileError::Invalid(format!("{} does not support volumes", self.0)))
    }
}

#[async_trait]
impl VolumeFiles for NoVolumes {
    async fn make(&self, _: VolumeId, _: MiB) -> Result<(), FileError> {
        self.refused()
    }
    /// There is none that could be left.
    async fn discard(&self, _: VolumeId) -> Result<(), FileError> {
        Ok(())
    }
    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        Ok(Vec::new())
    }
    async fn stat(&self, _: VolumeId, _: &str) -> Result<FileStat, FileError> {
        self.refused()
    }
    async fn change(&self, _: VolumeId, _: &str, _: Ownership) -> Result<FileStat, FileError> {
        self.refused()
    }
    async fn list(&self, _: VolumeId, _: &str, _: u32) -> Result<Vec<FileStat>, FileError> {
        self.refused()
    }
    async fn make_dir(&self, _: VolumeId, _: &str, _: Ownership, _: bool) -> Result<FileStat, FileError> {
        self.refused()
    }
    async fn remove(&self, _: VolumeId, _: &str) -> Result<(), FileError> {
        self.refused()
    }
    async fn read(&self, _: VolumeId, _: &str) -> Result<(u64, ByteStream), FileError> {
        self.refused()
    }
    async fn write(
        &self,
        _: VolumeId,
        _: &str,
        _: ByteStream,
        _: Ownership,
        _: bool,
    ) -> Result<FileStat, FileError> {
        self.refused()
    }
}
