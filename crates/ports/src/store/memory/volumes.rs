use async_trait::async_trait;
use model::{TeamId, Volume, VolumeId};

use super::{Memory, Tables, micros};
use crate::store::StoreError;
use crate::volumes::VolumeStore;

impl Tables {
    /// Those that are asked for, by creation.
    fn volumes(&self, asked: impl Fn(&Volume) -> bool) -> Vec<Volume> {
        let mut found: Vec<_> = self
            .volumes
            .values()
            .filter(|volume| asked(volume))
            .cloned()
            .collect();
        found.sort_by_key(|volume| (micros(volume.created_at), volume.id));
        found
    }
}

#[async_trait]
impl VolumeStore for Memory {
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let is_taken =
            |old: &Volume| old.id == volume.id || (old.team == volume.team && old.name == volume.name);
        if tables.volumes.values().any(is_taken) {
            return Err(StoreError::Conflict);
        }
        tables.volumes.insert(volume.id, volume.clone());
        Ok(())
    }

    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, StoreError> {
        Ok(self.tables().volumes.get(&id).cloned())
    }

    async fn volume_named(&self, team: TeamId, name: &str) -> Result<Option<Volume>, StoreError> {
        let tables = self.tables();
        let named = |volume: &&Volume| volume.team == team && volume.name == name;
        Ok(tables.volumes.values().find(named).cloned())
    }

    async fn volumes(&self, team: TeamId) -> Result<Vec<Volume>, StoreError> {
        Ok(self.tables().volumes(|volume| volume.team == team))
    }

    async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError> {
        Ok(self.tables().volumes(|_| true))
    }

    async fn remove_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        self.tables().volumes.remove(&id);
        Ok(())
    }
}
