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

    /// The stored one, if it is of the same version.
    fn current(&mut self, volume: &Volume) -> Result<&mut Volume, StoreError> {
        let stored = self.volumes.get_mut(&volume.id).ok_or(StoreError::Missing)?;
        if stored.version != volume.version {
            return Err(StoreError::Conflict);
        }
        Ok(stored)
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

    async fn update_volume(&self, volume: &Volume) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let stored = tables.current(volume)?;
        let version = volume.version + 1;
        // What names it, and its place in lists, stay.
        *stored = Volume {
            team: stored.team,
            name: stored.name.clone(),
            created_at: stored.created_at,
            version,
            ..volume.clone()
        };
        Ok(version)
    }

    async fn give_up_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let mut tables = self.tables();
        tables.current(volume)?;
        tables.volumes.remove(&volume.id);
        tables.remains.insert(volume.id, volume.clone());
        Ok(())
    }

    async fn volume_remains(&self) -> Result<Vec<Volume>, StoreError> {
        Ok(self.tables().remains.values().cloned().collect())
    }

    async fn forget_remains(&self, id: VolumeId) -> Result<(), StoreError> {
        self.tables().remains.remove(&id);
        Ok(())
    }
}
