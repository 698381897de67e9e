//! Volumes. Losing them loses the names of what lies on the nodes; losing remains leaves on nodes what nobody wants.
use async_trait::async_trait;
use model::{TeamId, Volume, VolumeId};
use ports::{StoreError, VolumeStore};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::micros;
use crate::sqlite::{Sqlite, away};

/// Every query of volumes selects `version, body`: the column beats the body.
fn volume(row: &SqliteRow) -> Result<Volume, StoreError> {
    let version: i64 = row.try_get(0).map_err(away)?;
    let mut volume: Volume = serde_json::from_str(row.try_get(1).map_err(away)?).map_err(away)?;
    volume.version = u64::try_from(version).map_err(away)?;
    Ok(volume)
}

/// Of what was given up the body is all that is kept.
fn remains(row: &SqliteRow) -> Result<Volume, StoreError> {
    serde_json::from_str(row.try_get(0).map_err(away)?).map_err(away)
}

fn version(volume: &Volume) -> Result<i64, StoreError> {
    i64::try_from(volume.version).map_err(away)
}

impl Sqlite {
    async fn stale_volume(&self, id: VolumeId) -> StoreError {
        let select = sqlx::query("SELECT 1 FROM volumes WHERE id = ?").bind(id.to_string());
        self.unchanged(select).await
    }
}

#[async_trait]
impl VolumeStore for Sqlite {
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO volumes (id, team, name, created_us, version, body) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(volume.id.to_string())
        .bind(volume.team.to_string())
        .bind(volume.name.clone())
        .bind(micros::of(volume.created_at))
        .bind(version(volume)?)
        .bind(serde_json::to_string(volume).map_err(away)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, StoreError> {
        let select = sqlx::query("SELECT version, body FROM volumes WHERE id = ?").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volume_named(&self, team: TeamId, name: &str) -> Result<Option<Volume>, StoreError> {
        let select = sqlx::query("SELECT version, body FROM volumes WHERE team = ? AND name = ?")
            .bind(team.to_string())
            .bind(name.to_owned());
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volumes(&self, team: TeamId) -> Result<Vec<Volume>, StoreError> {
        let select = sqlx::query("SELECT version, body FROM volumes WHERE team = ? ORDER BY created_us, id");
        self.read_all(select.bind(team.to_string()))
            .await?
            .iter()
            .map(volume)
            .collect()
    }

    async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError> {
        let select = sqlx::query("SELECT version, body FROM volumes ORDER BY created_us, id");
        self.read_all(select).await?.iter().map(volume).collect()
    }

    async fn update_volume(&self, volume: &Volume) -> Result<u64, StoreError> {
        let update = sqlx::query("UPDATE volumes SET version = ?, body = ? WHERE id = ? AND version = ?")
            .bind(version(volume)? + 1)
            .bind(serde_json::to_string(volume).map_err(away)?)
            .bind(volume.id.to_string())
            .bind(version(volume)?);
        if self.write(update).await? > 0 {
            return Ok(volume.version + 1);
        }
        Err(self.stale_volume(volume.id).await)
    }

    async fn give_up_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let removal = sqlx::query("DELETE FROM volumes WHERE id = ? AND version = ?")
            .bind(volume.id.to_string())
            .bind(version(volume)?);
        let note = sqlx::query("INSERT INTO volume_remains (id, body) VALUES (?, ?)")
            .bind(volume.id.to_string())
            .bind(serde_json::to_string(volume).map_err(away)?);
        if self.write_all(vec![removal, note]).await? > 0 {
            return Ok(());
        }
        Err(self.stale_volume(volume.id).await)
    }

    async fn volume_remains(&self) -> Result<Vec<Volume>, StoreError> {
        let select = sqlx::query("SELECT body FROM volume_remains ORDER BY id");
        self.read_all(select).await?.iter().map(remains).collect()
    }

    async fn forget_remains(&self, id: VolumeId) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM volume_remains WHERE id = ?").bind(id.to_string()))
            .await?;
        Ok(())
    }
}
