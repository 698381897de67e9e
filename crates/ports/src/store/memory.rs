//! The stores of one process, which forget everything with it: the reference model of the laws, and the stores of tests.
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use model::{
    ApiKey, BuildId, KeyId, Phase, Quota, Sandbox, SandboxId, Secret, State, Team, TeamId, Template,
    TemplateId,
};

use super::{SandboxQuery, SandboxStore, StoreError, TeamStore, TemplateStore};
use crate::manager::wants;

/// All stores in maps.
#[derive(Default)]
pub struct Memory(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    /// With the time at which each was stored as gone.
    sandboxes: BTreeMap<SandboxId, (Sandbox, Option<SystemTime>)>,
    templates: Vec<Template>,
    teams: Vec<Team>,
    keys: Vec<ApiKey>,
    seed: Option<Secret<Vec<u8>>>,
}

impl Memory {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().expect("nothing panics while it holds the tables")
    }
}

fn gone_at(sandbox: &Sandbox) -> Option<SystemTime> {
    matches!(sandbox.phase, Phase::Gone { .. }).then(SystemTime::now)
}

/// Times compare at microseconds.
fn micros(time: SystemTime) -> Duration {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::new(since.as_secs(), since.subsec_micros() * 1000)
}

/// Sorts newest first, ties by id.
fn place(started_at: SystemTime, id: SandboxId) -> (Reverse<Duration>, SandboxId) {
    (Reverse(micros(started_at)), id)
}

fn matches(query: &SandboxQuery, sandbox: &Sandbox) -> bool {
    let behind = query.after.is_none_or(|cursor| {
        let order = place(sandbox.started_at, sandbox.id).cmp(&place(cursor.started_at, cursor.id));
        if query.ascending {
            order.is_lt()
        } else {
            order.is_gt()
        }
    });
    behind
        && sandbox.team == query.team
        && sandbox
            .phase
            .state()
            .is_some_and(|state| wants(&query.states, state))
        && query.template.is_none_or(|template| sandbox.template == template)
        && query
            .started_after
            .is_none_or(|after| micros(sandbox.started_at) >= micros(after))
        && query
            .metadata
            .iter()
            .all(|(key, value)| sandbox.metadata.get(key) == Some(value))
}

#[async_trait]
impl SandboxStore for Memory {
    async fn insert(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        let mut tables = self.tables();
        if tables.sandboxes.contains_key(&sandbox.id) {
            return Err(StoreError::Conflict);
        }
        tables
            .sandboxes
            .insert(sandbox.id, (sandbox.clone(), gone_at(sandbox)));
        Ok(())
    }

    async fn get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        Ok(self
            .tables()
            .sandboxes
            .get(&id)
            .map(|(sandbox, _)| sandbox.clone()))
    }

    async fn update(&self, sandbox: &Sandbox) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let (stored, gone) = tables.sandboxes.get_mut(&sandbox.id).ok_or(StoreError::Missing)?;
        if stored.version != sandbox.version {
            return Err(StoreError::Conflict);
        }
        *stored = Sandbox {
            version: sandbox.version + 1,
            ..sandbox.clone()
        };
        *gone = gone.or_else(|| gone_at(sandbox));
        Ok(stored.version)
    }

    async fn list(&self, query: &SandboxQuery) -> Result<Vec<Sandbox>, StoreError> {
        let tables = self.tables();
        let all = tables.sandboxes.values().map(|(sandbox, _)| sandbox);
        let mut found: Vec<_> = all.filter(|sandbox| matches(query, sandbox)).cloned().collect();
        found.sort_by_key(|sandbox| place(sandbox.started_at, sandbox.id));
        if query.ascending {
            found.reverse();
        }
        found.truncate(query.limit);
        Ok(found)
    }

    async fn count(&self, team: TeamId, state: State) -> Result<u64, StoreError> {
        let tables = self.tables();
        let of = |(sandbox, _): &&(Sandbox, _)| sandbox.team == team && sandbox.phase.state() == Some(state);
        Ok(tables.sandboxes.values().filter(of).count() as u64)
    }

    async fn live(&self) -> Result<Vec<Sandbox>, StoreError> {
        let tables = self.tables();
        let live = tables.sandboxes.values().filter(|(_, gone)| gone.is_none());
        Ok(live.map(|(sandbox, _)| sandbox.clone()).collect())
    }

    async fn forget_gone(&self, before: SystemTime) -> Result<u64, StoreError> {
        let mut tables = self.tables();
        let stored = tables.sandboxes.len();
        tables
            .sandboxes
            .retain(|_, (_, gone)| gone.is_none_or(|gone| gone >= before));
        Ok((stored - tables.sandboxes.len()) as u64)
    }
}

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

    fn key(&mut self, team: TeamId, id: KeyId) -> Result<usize, StoreError> {
        self.keys
            .iter()
            .position(|key| key.id == id && key.team == team)
            .ok_or(StoreError::Missing)
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

    async fn update(&self, template: &Template) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let taken = tables.is_taken(template);
        let stored = tables.template(template.id)?;
        if taken {
            return Err(StoreError::Conflict);
        }
        let (spawn_count, last_spawned_at) = (stored.spawn_count, stored.last_spawned_at);
        *stored = Template {
            spawn_count,
            last_spawned_at,
            ..template.clone()
        };
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Memory;

    crate::store_contract!(async { ((), Arc::new(Memory::default())) });
}
