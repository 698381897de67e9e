use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use model::recipe::Key;
use model::{Build, BuildId, TeamId, TemplateId};

use super::{Memory, micros};
use crate::builds::{BuildLine, BuildStore, CachedStep, LinesQuery};
use crate::store::StoreError;

#[async_trait]
impl BuildStore for Memory {
    async fn insert_build(&self, build: &Build) -> Result<(), StoreError> {
        let mut tables = self.tables();
        if tables.builds.contains_key(&build.id) {
            return Err(StoreError::Conflict);
        }
        tables.builds.insert(build.id, (build.clone(), Vec::new()));
        Ok(())
    }

    async fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        Ok(self.tables().builds.get(&id).map(|(build, _)| build.clone()))
    }

    async fn update_build(&self, build: &Build) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let (stored, _) = tables.builds.get_mut(&build.id).ok_or(StoreError::Missing)?;
        if stored.version != build.version {
            return Err(StoreError::Conflict);
        }
        *stored = Build {
            version: build.version + 1,
            ..build.clone()
        };
        Ok(stored.version)
    }

    async fn builds_of(&self, template: TemplateId) -> Result<Vec<Build>, StoreError> {
        let tables = self.tables();
        let all = tables.builds.values().map(|(build, _)| build);
        let mut found: Vec<_> = all.filter(|build| build.template == template).cloned().collect();
        found.sort_by_key(|build| (Reverse(micros(build.created_at)), build.id));
        Ok(found)
    }

    async fn unfinished_builds(&self) -> Result<Vec<Build>, StoreError> {
        let tables = self.tables();
        let all = tables.builds.values().map(|(build, _)| build);
        let mut found: Vec<_> = all.filter(|build| !build.status.is_over()).cloned().collect();
        found.sort_by_key(|build| (micros(build.created_at), build.id));
        Ok(found)
    }

    async fn remove_builds_of(&self, template: TemplateId) -> Result<(), StoreError> {
        let mut tables = self.tables();
        tables.builds.retain(|_, (build, _)| build.template != template);
        Ok(())
    }

    async fn builds_beyond(&self, newer: u32) -> Result<Vec<BuildId>, StoreError> {
        let tables = self.tables();
        let over = tables.builds.values().map(|(build, _)| build);
        let mut over: Vec<_> = over.filter(|build| build.status.is_over()).collect();
        over.sort_by_key(|build| (Reverse(micros(build.created_at)), build.id));
        let mut seen = BTreeMap::new();
        over.retain(|build| {
            let newer_ones = seen.entry(build.template).or_insert(0_u32);
            *newer_ones += 1;
            *newer_ones > newer
        });
        over.sort_by_key(|build| (micros(build.created_at), build.id));
        Ok(over.into_iter().map(|build| build.id).collect())
    }

    async fn remove_build(&self, id: BuildId) -> Result<(), StoreError> {
        let mut tables = self.tables();
        tables
            .builds
            .retain(|_, (build, _)| build.id != id || !build.status.is_over());
        Ok(())
    }

    async fn append_lines(&self, build: BuildId, lines: &[BuildLine]) -> Result<(), StoreError> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut tables = self.tables();
        let (_, log) = tables.builds.get_mut(&build).ok_or(StoreError::Missing)?;
        log.extend_from_slice(lines);
        Ok(())
    }

    async fn lines(&self, build: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, StoreError> {
        let tables = self.tables();
        let Some((_, log)) = tables.builds.get(&build) else {
            return Ok(Vec::new());
        };
        let offset = usize::try_from(query.offset).unwrap_or(usize::MAX);
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let asked = log.iter().filter(|line| line.level >= query.level);
        Ok(asked.skip(offset).take(limit).cloned().collect())
    }

    async fn cached_step(
        &self,
        team: TeamId,
        key: Key,
        now: SystemTime,
    ) -> Result<Option<CachedStep>, StoreError> {
        let mut tables = self.tables();
        Ok(tables.cached.get_mut(&(team, key)).map(|(step, used)| {
            *used = now.max(*used);
            step.clone()
        }))
    }

    async fn cache_step(
        &self,
        team: TeamId,
        key: Key,
        step: &CachedStep,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        self.tables().cached.insert((team, key), (step.clone(), now));
        Ok(())
    }

    async fn cached_builds(&self) -> Result<Vec<(BuildId, SystemTime)>, StoreError> {
        let tables = self.tables();
        let mut last = std::collections::BTreeMap::new();
        for (step, used) in tables.cached.values() {
            let known = last.entry(step.build).or_insert(*used);
            *known = (*known).max(*used);
        }
        let mut found: Vec<_> = last.into_iter().collect();
        found.sort_by_key(|&(build, used)| (micros(used), build));
        Ok(found)
    }

    async fn forget_cached(&self, build: BuildId) -> Result<(), StoreError> {
        self.tables().cached.retain(|_, (step, _)| step.build != build);
        Ok(())
    }

    async fn note_stowed(&self, build: BuildId, digest: &str) -> Result<(), StoreError> {
        self.tables().stowed.insert(build, digest.to_owned());
        Ok(())
    }

    async fn stowed(&self) -> Result<BTreeMap<BuildId, String>, StoreError> {
        Ok(self.tables().stowed.clone())
    }

    async fn stowed_as(&self, build: BuildId) -> Result<Option<String>, StoreError> {
        Ok(self.tables().stowed.get(&build).cloned())
    }

    async fn forget_stowed(&self, build: BuildId) -> Result<(), StoreError> {
        self.tables().stowed.remove(&build);
        Ok(())
    }
}
