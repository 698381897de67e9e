use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{Phase, Sandbox, SandboxId, State, TeamId};

use super::{Memory, micros};
use crate::manager::wants;
use crate::store::{SandboxQuery, SandboxStore, StoreError};

fn gone_at(sandbox: &Sandbox) -> Option<SystemTime> {
    matches!(sandbox.phase, Phase::Gone { .. }).then(SystemTime::now)
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
