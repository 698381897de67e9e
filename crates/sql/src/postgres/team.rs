//! Teams, their API keys, and the installation's seed.
use std::time::SystemTime;

use async_trait::async_trait;
use model::{ApiKey, KeyId, Quota, Secret, Team, TeamId};
use ports::{StoreError, TeamStore};
use rand::TryRngCore;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::fault::garbled;
use super::{Postgres, Statement, text};
use crate::micros;

/// Every query of teams selects `quota, body`, the former of which beats the latter.
fn team(row: &PgRow) -> Result<Team, StoreError> {
    let mut team: Team = serde_json::from_str(row.try_get("body").map_err(garbled)?).map_err(garbled)?;
    team.quota = serde_json::from_str(row.try_get("quota").map_err(garbled)?).map_err(garbled)?;
    Ok(team)
}

fn quota(quota: &Quota) -> Result<String, StoreError> {
    serde_json::to_string(quota).map_err(garbled)
}

fn key(row: &PgRow) -> Result<ApiKey, StoreError> {
    let text = |column: &str| row.try_get::<&str, _>(column).map_err(garbled);
    Ok(ApiKey {
        id: text("id")?.parse().map_err(garbled)?,
        team: text("team")?.parse().map_err(garbled)?,
        name: text::meant(text("name")?),
        hash: text::meant(text("hash")?),
        mask_prefix: text::meant(text("mask_prefix")?),
        mask_suffix: text::meant(text("mask_suffix")?),
        created_at: micros::to(row.try_get("created_us").map_err(garbled)?),
        last_used: row
            .try_get::<Option<i64>, _>("last_used_us")
            .map_err(garbled)?
            .map(micros::to),
    })
}

#[async_trait]
impl TeamStore for Postgres {
    async fn insert_team(&self, team: &Team) -> Result<(), StoreError> {
        let insert = Statement::new("INSERT INTO teams (id, slug, quota, body) VALUES ($1, $2, $3, $4)")
            .bind(team.id.to_string())
            .bind(text::stored(&team.slug))
            .bind(quota(&team.quota)?)
            .bind(serde_json::to_string(team).map_err(garbled)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn team(&self, id: TeamId) -> Result<Option<Team>, StoreError> {
        let select = Statement::new("SELECT quota, body FROM teams WHERE id = $1").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(team).transpose()
    }

    async fn team_by_slug(&self, slug: &str) -> Result<Option<Team>, StoreError> {
        let select = Statement::new("SELECT quota, body FROM teams WHERE slug = $1").bind(text::stored(slug));
        self.read_one(select).await?.as_ref().map(team).transpose()
    }

    async fn teams(&self) -> Result<Vec<Team>, StoreError> {
        let select = Statement::new("SELECT quota, body FROM teams ORDER BY seq");
        self.read_all(select).await?.iter().map(team).collect()
    }

    async fn set_quota(&self, id: TeamId, new: Quota) -> Result<(), StoreError> {
        let update = Statement::new("UPDATE teams SET quota = $1 WHERE id = $2")
            .bind(quota(&new)?)
            .bind(id.to_string());
        found(self.write(update).await?)
    }

    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        let insert = Statement::new(
            "INSERT INTO api_keys (id, team, name, hash, mask_prefix, mask_suffix, created_us, last_used_us)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(key.id.to_string())
        .bind(key.team.to_string())
        .bind(text::stored(&key.name))
        .bind(text::stored(&key.hash))
        .bind(text::stored(&key.mask_prefix))
        .bind(text::stored(&key.mask_suffix))
        .bind(micros::of(key.created_at))
        .bind(key.last_used.map(micros::of));
        self.write(insert).await?;
        Ok(())
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<(ApiKey, Team)>, StoreError> {
        let select = Statement::new(
            "SELECT api_keys.id, api_keys.team, name, hash, mask_prefix, mask_suffix, created_us, last_used_us, quota, body
             FROM api_keys JOIN teams ON teams.id = api_keys.team WHERE hash = $1",
        );
        let Some(row) = self.read_one(select.bind(text::stored(hash))).await? else {
            return Ok(None);
        };
        Ok(Some((key(&row)?, team(&row)?)))
    }

    async fn keys(&self, team: TeamId) -> Result<Vec<ApiKey>, StoreError> {
        let select = Statement::new(
            "SELECT id, team, name, hash, mask_prefix, mask_suffix, created_us, last_used_us
             FROM api_keys WHERE team = $1 ORDER BY created_us, seq",
        );
        let rows = self.read_all(select.bind(team.to_string())).await?;
        rows.iter().map(key).collect()
    }

    async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<(), StoreError> {
        let update = Statement::new("UPDATE api_keys SET name = $1 WHERE id = $2 AND team = $3")
            .bind(text::stored(name))
            .bind(id.to_string())
            .bind(team.to_string());
        found(self.write(update).await?)
    }

    async fn remove_key(&self, team: TeamId, id: KeyId) -> Result<(), StoreError> {
        let delete = Statement::new("DELETE FROM api_keys WHERE id = $1 AND team = $2")
            .bind(id.to_string())
            .bind(team.to_string());
        found(self.write(delete).await?)
    }

    /// Does not wait for the disk: see [`ports::TemplateStore::spawned`] here.
    async fn key_used(&self, id: KeyId, at: SystemTime) -> Result<(), StoreError> {
        let update = Statement::new(
            "WITH at_once AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
             UPDATE api_keys SET last_used_us = greatest(last_used_us, $1) FROM at_once WHERE id = $2",
        )
        .bind(micros::of(at))
        .bind(id.to_string());
        found(self.write(update).await?)
    }

    async fn seed(&self) -> Result<Secret<Vec<u8>>, StoreError> {
        let select = || Statement::new("SELECT value FROM secrets WHERE name = 'seed'");
        let mut row = self.read_one(select()).await?;
        if row.is_none() {
            let mut drawn = [0; 32];
            rand::rngs::OsRng.try_fill_bytes(&mut drawn).map_err(garbled)?;
            let insert = Statement::new(
                "INSERT INTO secrets (name, value) VALUES ('seed', $1) ON CONFLICT DO NOTHING",
            );
            self.write(insert.bind(drawn.to_vec())).await?;
            row = self.read_one(select()).await?;
        }
        let row = row.ok_or_else(|| garbled("the seed was stored and is not there"))?;
        Ok(Secret::new(row.try_get(0).map_err(garbled)?))
    }
}

fn found(rows: u64) -> Result<(), StoreError> {
    if rows > 0 {
        Ok(())
    } else {
        Err(StoreError::Missing)
    }
}
