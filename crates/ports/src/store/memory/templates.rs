use std::time::SystemTime;

use async_trait::async_trait;
use model::{BuildId, TeamId, Template, TemplateId};

use super::{Memory, Tables};
use crate::store::{StoreError, TemplateStore};

impl Tables {
    fn template(&mut self, id: TemplateId) -> Result<&mut Template, StoreError> {
        self.templates
            .iter_mut()
            .find(|template| template.id == id)
            .ok_or(StoreError::Missing)
    }

    fn is_taken(&self, new: &Template) -> bool {
        let other = |old: &&Template| old.team == new.team && old.id != new.id;
        self.templates
            .iter()
            .filter(other)
            .any(|old| old.names.iter().any(|name| new.names.contains(name)))
    }
}

#[async_trait]
impl TemplateStore for Memory {
    async fn insert(&self, template: &Template) -> Result<(), StoreError> {
        let mut tables = self.tables();
        if tables.is_taken(template) || tables.template(template.id).is_ok() {
            return Err(StoreError::Conflict);
        }
        tables.templates.push(template.clone());
        tables.templates.sort_by_key(|template| template.created_at);
        Ok(())
    }

    async fn update(&self, template: &Template) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let taken = tables.is_taken(template);
        let stored = tables.template(template.id)?;
        if taken || stored.version != template.version {
            return Err(StoreError::Conflict);
        }
        let (spawn_count, last_spawned_at) = (stored.spawn_count, stored.last_spawned_at);
        *stored = Template {
            spawn_count,
            last_spawned_at,
            version: template.version + 1,
            ..template.clone()
        };
        Ok(stored.version)
    }

    async fn get(&self, id: TemplateId) -> Result<Option<Template>, StoreError> {
        Ok(self.tables().template(id).ok().cloned())
    }

    async fn named(&self, team: TeamId, name: &str) -> Result<Option<Template>, StoreError> {
        let tables = self.tables();
        let named = |t: &&Template| t.team == team && t.names.iter().any(|n| n == name);
        Ok(tables.templates.iter().find(named).cloned())
    }

    async fn promoted(&self, name: &str) -> Result<Option<Template>, StoreError> {
        let tables = self.tables();
        let promoted = |t: &&Template| t.public && t.names.iter().any(|n| n == name);
        Ok(tables.templates.iter().find(promoted).cloned())
    }

    async fn list(&self, team: TeamId) -> Result<Vec<Template>, StoreError> {
        Ok(self
            .tables()
            .templates
            .iter()
            .filter(|t| t.team == team)
            .cloned()
            .collect())
    }

    async fn remove(&self, id: TemplateId) -> Result<(), StoreError> {
        self.tables().templates.retain(|template| template.id != id);
        Ok(())
    }

    async fn spawned(&self, id: TemplateId, at: SystemTime) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let template = tables.template(id)?;
        template.spawn_count += 1;
        template.last_spawned_at = template.last_spawned_at.max(Some(at));
        Ok(())
    }

    async fn builds(&self) -> Result<Vec<BuildId>, StoreError> {
        let tables = self.tables();
        let mut builds: Vec<_> = tables
            .templates
            .iter()
            .flat_map(|t| t.tags.values().copied())
            .collect();
        builds.sort_unstable();
        builds.dedup();
        Ok(builds)
    }
}
