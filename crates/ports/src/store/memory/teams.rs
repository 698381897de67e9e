use std::time::SystemTime;

use async_trait::async_trait;
use model::{ApiKey, KeyId, Quota, Secret, Team, TeamId};

use super::{Memory, Tables};
use crate::store::{StoreError, TeamStore};

impl Tables {
    fn key(&mut self, team: TeamId, id: KeyId) -> Result<usize, StoreError> {
        self.keys
            .iter()
            .position(|key| key.id == id && key.team == team)
            .ok_or(StoreError::Missing)
    }
}

#[async_trait]
impl TeamStore for Memory {
    async fn insert_team(&self, team: &Team) -> Result<(), StoreError> {
        let mut tables = self.tables();
        if tables
            .teams
            .iter()
            .any(|old| old.id == team.id || old.slug == team.slug)
        {
            return Err(StoreError::Conflict);
        }
        tables.teams.push(team.clone());
        Ok(())
    }

    async fn team(&self, id: TeamId) -> Result<Option<Team>, StoreError> {
        Ok(self.tables().teams.iter().find(|team| team.id == id).cloned())
    }

    async fn team_by_slug(&self, slug: &str) -> Result<Option<Team>, StoreError> {
        Ok(self.tables().teams.iter().find(|team| team.slug == slug).cloned())
    }

    async fn teams(&self) -> Result<Vec<Team>, StoreError> {
        Ok(self.tables().teams.clone())
    }

    async fn set_quota(&self, id: TeamId, quota: Quota) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let team = tables.teams.iter_mut().find(|team| team.id == id);
        team.ok_or(StoreError::Missing)?.quota = quota;
        Ok(())
    }

    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        let mut tables = self.tables();
        if !tables.teams.iter().any(|team| team.id == key.team) {
            return Err(StoreError::Missing);
        }
        if tables
            .keys
            .iter()
            .any(|old| old.id == key.id || old.hash == key.hash)
        {
            return Err(StoreError::Conflict);
        }
        tables.keys.push(key.clone());
        Ok(())
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<(ApiKey, Team)>, StoreError> {
        let tables = self.tables();
        let Some(key) = tables.keys.iter().find(|key| key.hash == hash) else {
            return Ok(None);
        };
        let team = tables.teams.iter().find(|team| team.id == key.team);
        Ok(team.map(|team| (key.clone(), team.clone())))
    }

    async fn keys(&self, team: TeamId) -> Result<Vec<ApiKey>, StoreError> {
        let tables = self.tables();
        let mut keys: Vec<_> = tables
            .keys
            .iter()
            .filter(|key| key.team == team)
            .cloned()
            .collect();
        keys.sort_by_key(|key| key.created_at);
        Ok(keys)
    }

    async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let index = tables.key(team, id)?;
        name.clone_into(&mut tables.keys[index].name);
        Ok(())
    }

    async fn remove_key(&self, team: TeamId, id: KeyId) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let index = tables.key(team, id)?;
        tables.keys.remove(index);
        Ok(())
    }

    async fn key_used(&self, id: KeyId, at: SystemTime) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let key = tables
            .keys
            .iter_mut()
            .find(|key| key.id == id)
            .ok_or(StoreError::Missing)?;
        key.last_used = key.last_used.max(Some(at));
        Ok(())
    }

    async fn seed(&self) -> Result<Secret<Vec<u8>>, StoreError> {
        // Two random UUIDs are 244 random bits, in a store that lives as long as one process.
        let draw = || {
            Secret::new(
                [
                    KeyId::random().0.as_bytes().as_slice(),
                    KeyId::random().0.as_bytes(),
                ]
                .concat(),
            )
        };
        Ok(self.tables().seed.get_or_insert_with(draw).clone())
    }
}
