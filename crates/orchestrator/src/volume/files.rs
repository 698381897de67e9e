//! The files of volumes, each on the node where it lies.
use std::sync::Arc;

use async_trait::async_trait;
use model::{MiB, NodeId, Volume, VolumeId, VolumeState};
use ports::blobs::ByteStream;
use ports::volumes::{FileError, FileStat, Ownership};
use ports::{StoreError, VolumeFiles, VolumeNodes, VolumeStore};

use crate::orchestrator::Orchestrator;

/// Finds the node of a volume, and asks it.
struct AtHome {
    volumes: Arc<dyn VolumeStore>,
    nodes: Arc<dyn VolumeNodes>,
}

/// A volume, and who has its files.
struct Found {
    volume: Volume,
    node: NodeId,
    files: Arc<dyn VolumeFiles>,
}

fn store(error: StoreError) -> FileError {
    FileError::Failed {
        step: "reading where the volume lies",
        source: std::io::Error::other(error),
    }
}

/// Where a volume lies. Where there is one node alone, all do: also those that it made under another name.
pub(super) fn home(volume: &Volume, nodes: &dyn VolumeNodes) -> Option<NodeId> {
    nodes.only().or(volume.home)
}

impl AtHome {
    async fn find(&self, id: VolumeId) -> Result<Found, FileError> {
        let volume = self.volumes.volume(id).await.map_err(store)?;
        let volume = volume.ok_or(FileError::NoVolume)?;
        let node = home(&volume, &*self.nodes).ok_or(FileError::NoVolume)?;
        let files = self
            .nodes
            .files_on(node)
            .ok_or(FileError::Away { volume: id, node })?;
        Ok(Found { volume, node, files })
    }
}

impl Found {
    /// A volume that was made once, and that its node does not know, is lost.
    fn told<T>(&self, outcome: Result<T, FileError>) -> Result<T, FileError> {
        match outcome {
            Err(FileError::NoVolume) if self.volume.state == VolumeState::Ready => Err(FileError::Lost {
                volume: self.volume.id,
                node: self.node,
            }),
            outcome => outcome,
        }
    }
}

impl Orchestrator {
    /// The files of all volumes, wherever they lie: what the API serves.
    #[must_use]
    pub fn volume_files(&self) -> Arc<dyn VolumeFiles> {
        Arc::new(AtHome {
            volumes: Arc::clone(&self.parts.volumes),
            nodes: Arc::clone(&self.parts.volume_nodes),
        })
    }

    /// Where a volume lies; `None` where that was never noted, and there is more than one node.
    pub(crate) fn home_of(&self, volume: &Volume) -> Option<NodeId> {
        home(volume, &*self.parts.volume_nodes)
    }
}

#[async_trait]
impl VolumeFiles for AtHome {
    async fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError> {
        self.find(id).await?.files.make(id, size).await
    }

    async fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        self.find(id).await?.files.discard(id).await
    }

    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        let all = self.volumes.all_volumes().await.map_err(store)?;
        Ok(all.into_iter().map(|volume| volume.id).collect())
    }

    async fn stat(&self, id: VolumeId, path: &str) -> Result<FileStat, FileError> {
        let at = self.find(id).await?;
        at.told(at.files.stat(id, path).await)
    }

    async fn change(&self, id: VolumeId, path: &str, ownership: Ownership) -> Result<FileStat, FileError> {
        let at = self.find(id).await?;
        at.told(at.files.change(id, path, ownership).await)
    }

    async fn list(&self, id: VolumeId, path: &str, depth: u32) -> Result<Vec<FileStat>, FileError> {
        let at = self.find(id).await?;
        at.told(at.files.list(id, path, depth).await)
    }

    async fn make_dir(
        &self,
        id: VolumeId,
        path: &str,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        let at = self.find(id).await?;
        at.told(at.files.make_dir(id, path, ownership, force).await)
    }

    async fn remove(&self, id: VolumeId, path: &str) -> Result<(), FileError> {
        let at = self.find(id).await?;
        at.told(at.files.remove(id, path).await)
    }

    async fn read(&self, id: VolumeId, path: &str) -> Result<(u64, ByteStream), FileError> {
        let at = self.find(id).await?;
        at.told(at.files.read(id, path).await)
    }

    async fn write(
        &self,
        id: VolumeId,
        path: &str,
        bytes: ByteStream,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        let at = self.find(id).await?;
        at.told(at.files.write(id, path, bytes, ownership, force).await)
    }
}
