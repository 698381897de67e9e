//! Volumes. Losing them loses the names of what lies on the nodes.
use async_trait::async_trait;
use model::{TeamId, Volume, VolumeId};
use ports::{StoreError, VolumeStore};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::micros;
use crate::sqlite::{Sqlite, away};

/// Every query of volumes selects `body`.
fn volume(row: &SqliteRow) -> Result<Volume, StoreError> {
    serde_json::from_str(row.try_get(0).map_err(away)?).map_err(away)
}

#[async_trait]
impl VolumeStore for Sqlite {
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let insert =
            sqlx::query("INSERT INTO volumes (id, team, name, created_us, body) VALUES (?, ?, ?, ?, ?)")
                .bind(volume.id.to_string())
                .bind(volume.team.to_string())
                .bind(volume.name.clone())
                .bind(micros::of(volume.created_at))
                .bind(serde_json::to_string(volume).map_err(away)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, StoreError> {
        let select = sqlx::query("SELECT body FROM volumes WHERE id = ?").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volume_named(&self, team: TeamId, name: &str) -> Result<Option<Volume>, StoreError> {
        let select = sqlx::query("SELECT body FROM volumes WHERE team = ? AND name = ?")
            .bind(team.to_string())
            .bind(name.to_owned());
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volumes(&self, team: TeamId) -> Result<Vec<Volume>, StoreError> {
        let select = sqlx::query("SELECT body FROM volumes WHERE team = ? ORDER BY created_us, id");
        self.read_all(select.bind(team.to_string()))
            .await?
            .iter()
            .map(volume)
            .collect()
    }

    async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError> {
        let select = sqlx::query("SELECT body FROM volumes ORDER BY created_us, id");
        self.read_all(select).await?.iter().map(volume).collect()
    }

    async fn remove_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM volumes WHERE id = ?").bind(id.to_string()))
            .await?;
        Ok(())
    }
}
