//! Teams, their API keys, and the installation's seed.
use std::time::SystemTime;

use async_trait::async_trait;
use model::{ApiKey, KeyId, Quota, Secret, Team, TeamId};
use ports::{StoreError, TeamStore};
use rand::TryRngCore;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::micros;
use crate::sqlite::{Sqlite, away};

fn team(body: &str) -> Result<Team, StoreError> {
    serde_json::from_str(body).map_err(away)
}

fn team_row(row: &SqliteRow) -> Result<Team, StoreError> {
    team(row.try_get(0).map_err(away)?)
}

fn key(row: &SqliteRow) -> Result<ApiKey, StoreError> {
    let text = |column: &str| row.try_get::<&str, _>(column).map_err(away);
    Ok(ApiKey {
        id: text("id")?.parse().map_err(away)?,
        team: text("team")?.parse().map_err(away)?,
        name: text("name")?.to_owned(),
        hash: text("hash")?.to_owned(),
        mask_prefix: text("mask_prefix")?.to_owned(),
        mask_suffix: text("mask_suffix")?.to_owned(),
        created_at: micros::to(row.try_get("created_us").map_err(away)?),
        last_used: row
            .try_get::<Option<i64>, _>("last_used_us")
            .map_err(away)?
            .map(micros::to),
    })
}

#[async_trait]
impl TeamStore for Sqlite {
    async fn insert_team(&self, team: &Team) -> Result<(), StoreError> {
        let insert = sqlx::query("INSERT INTO teams (id, slug, body) VALUES (?, ?, ?)")
            .bind(team.id.to_string())
            .bind(team.slug.clone())
            .bind(serde_json::to_string(team).map_err(away)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn team(&self, id: TeamId) -> Result<Option<Team>, StoreError> {
        let select = sqlx::query("SELECT body FROM teams WHERE id = ?").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(team_row).transpose()
    }

    async fn team_by_slug(&self, slug: &str) -> Result<Option<Team>, StoreError> {
        let select = sqlx::query("SELECT body FROM teams WHERE slug = ?").bind(slug.to_owned());
        self.read_one(select).await?.as_ref().map(team_row).transpose()
    }

    async fn teams(&self) -> Result<Vec<Team>, StoreError> {
        self.read_all(sqlx::query("SELECT body FROM teams ORDER BY rowid"))
            .await?
            .iter()
            .map(team_row)
            .collect()
    }

    async fn set_quota(&self, id: TeamId, quota: Quota) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE teams SET body = json_set(body, '$.quota', json(?)) WHERE id = ?");
        let quota = serde_json::to_string(&quota).map_err(away)?;
        found(self.write(update.bind(quota).bind(id.to_string())).await?)
    }

    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO api_keys (id, team, name, hash, mask_prefix, mask_suffix, created_us, last_used_us)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(key.id.to_string())
        .bind(key.team.to_string())
        .bind(key.name.clone())
        .bind(key.hash.clone())
        .bind(key.mask_prefix.clone())
        .bind(key.mask_suffix.clone())
        .bind(micros::of(key.created_at))
        .bind(key.last_used.map(micros::of));
        self.write(insert).await?;
        Ok(())
    }

    async fn key_by_hash(&self, hash: &str) -> Result<Option<(ApiKey, Team)>, StoreError> {
        let select = sqlx::query(
            "SELECT api_keys.*, teams.body AS owner FROM api_keys JOIN teams ON teams.id = api_keys.team WHERE hash = ?",
        );
        let Some(row) = self.read_one(select.bind(hash.to_owned())).await? else {
            return Ok(None);
        };
        Ok(Some((key(&row)?, team(row.try_get("owner").map_err(away)?)?)))
    }

    async fn keys(&self, team: TeamId) -> Result<Vec<ApiKey>, StoreError> {
        let select = sqlx::query("SELECT * FROM api_keys WHERE team = ? ORDER BY created_us, rowid");
        self.read_all(select.bind(team.to_string()))
            .await?
            .iter()
            .map(key)
            .collect()
    }

    async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE api_keys SET name = ? WHERE id = ? AND team = ?");
        found(
            self.write(
                update
                    .bind(name.to_owned())
                    .bind(id.to_string())
                    .bind(team.to_string()),
            )
            .await?,
        )
    }

    async fn remove_key(&self, team: TeamId, id: KeyId) -> Result<(), StoreError> {
        let delete = sqlx::query("DELETE FROM api_keys WHERE id = ? AND team = ?");
        found(
            self.write(delete.bind(id.to_string()).bind(team.to_string()))
                .await?,
        )
    }

    async fn key_used(&self, id: KeyId, at: SystemTime) -> Result<(), StoreError> {
        let update =
            sqlx::query("UPDATE api_keys SET last_used_us = max(coalesce(last_used_us, 0), ?) WHERE id = ?");
        found(
            self.write(update.bind(micros::of(at)).bind(id.to_string()))
                .await?,
        )
    }

    async fn seed(&self) -> Result<Secret<Vec<u8>>, StoreError> {
        let mut drawn = [0; 32];
        rand::rngs::OsRng.try_fill_bytes(&mut drawn).map_err(away)?;
        let insert =
            sqlx::query("INSERT INTO secrets (name, value) VALUES ('seed', ?) ON CONFLICT DO NOTHING");
        self.write(insert.bind(drawn.to_vec())).await?;
        let row = self
            .read_one(sqlx::query("SELECT value FROM secrets WHERE name = 'seed'"))
            .await?;
        let row = row.ok_or_else(|| away("the seed was stored and is not there"))?;
        Ok(Secret::new(row.try_get(0).map_err(away)?))
    }
}

fn found(rows: u64) -> Result<(), StoreError> {
    if rows > 0 {
        Ok(())
    } else {
        Err(StoreError::Missing)
    }
}
