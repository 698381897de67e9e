//! Volumes. Losing them loses the names of what lies on the nodes.
use async_trait::async_trait;
use model::{TeamId, Volume, VolumeId};
use ports::{StoreError, VolumeStore};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::fault::garbled;
use super::{Postgres, Statement, text};
use crate::micros;

/// Every query of volumes selects `body`.
fn volume(row: &PgRow) -> Result<Volume, StoreError> {
    serde_json::from_str(row.try_get(0).map_err(garbled)?).map_err(garbled)
}

#[async_trait]
impl VolumeStore for Postgres {
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let insert = Statement::new(
            "INSERT INTO volumes (id, team, name, created_us, body) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(volume.id.to_string())
        .bind(volume.team.to_string())
        .bind(text::stored(&volume.name))
        .bind(micros::of(volume.created_at))
        .bind(serde_json::to_string(volume).map_err(garbled)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, StoreError> {
        let select = Statement::new("SELECT body FROM volumes WHERE id = $1").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volume_named(&self, team: TeamId, name: &str) -> Result<Option<Volume>, StoreError> {
        let select = Statement::new("SELECT body FROM volumes WHERE team = $1 AND name = $2")
            .bind(team.to_string())
            .bind(text::stored(name));
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volumes(&self, team: TeamId) -> Result<Vec<Volume>, StoreError> {
        let select = Statement::new("SELECT body FROM volumes WHERE team = $1 ORDER BY created_us, id");
        let rows = self.read_all(select.bind(team.to_string())).await?;
        rows.iter().map(volume).collect()
    }

    async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError> {
        let select = Statement::new("SELECT body FROM volumes ORDER BY created_us, id");
        self.read_all(select).await?.iter().map(volume).collect()
    }

    async fn remove_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        self.write(Statement::new("DELETE FROM volumes WHERE id = $1").bind(id.to_string()))
            .await?;
        Ok(())
    }
}
