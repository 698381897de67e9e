//! Volumes. Losing them loses the names of what lies on the nodes; losing remains leaves on nodes what nobody wants.
use async_trait::async_trait;
use model::{TeamId, Volume, VolumeId};
use ports::{StoreError, VolumeStore};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::fault::garbled;
use super::{Postgres, Statement, text};
use crate::micros;

/// Every query of volumes selects `version, body`: the column beats the body.
fn volume(row: &PgRow) -> Result<Volume, StoreError> {
    let version: i64 = row.try_get(0).map_err(garbled)?;
    let mut volume: Volume = serde_json::from_str(row.try_get(1).map_err(garbled)?).map_err(garbled)?;
    volume.version = u64::try_from(version).map_err(garbled)?;
    Ok(volume)
}

/// Of what was given up the body is all that is kept.
fn remains(row: &PgRow) -> Result<Volume, StoreError> {
    serde_json::from_str(row.try_get(0).map_err(garbled)?).map_err(garbled)
}

fn version(volume: &Volume) -> Result<i64, StoreError> {
    i64::try_from(volume.version).map_err(garbled)
}

impl Postgres {
    async fn stale_volume(&self, id: VolumeId) -> StoreError {
        let select = Statement::new("SELECT 1 FROM volumes WHERE id = $1").bind(id.to_string());
        self.unchanged(select).await
    }
}

#[async_trait]
impl VolumeStore for Postgres {
    async fn insert_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let insert = Statement::new(
            "INSERT INTO volumes (id, team, name, created_us, version, body) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(volume.id.to_string())
        .bind(volume.team.to_string())
        .bind(text::stored(&volume.name))
        .bind(micros::of(volume.created_at))
        .bind(version(volume)?)
        .bind(serde_json::to_string(volume).map_err(garbled)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn volume(&self, id: VolumeId) -> Result<Option<Volume>, StoreError> {
        let select = Statement::new("SELECT version, body FROM volumes WHERE id = $1").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volume_named(&self, team: TeamId, name: &str) -> Result<Option<Volume>, StoreError> {
        let select = Statement::new("SELECT version, body FROM volumes WHERE team = $1 AND name = $2")
            .bind(team.to_string())
            .bind(text::stored(name));
        self.read_one(select).await?.as_ref().map(volume).transpose()
    }

    async fn volumes(&self, team: TeamId) -> Result<Vec<Volume>, StoreError> {
        let select =
            Statement::new("SELECT version, body FROM volumes WHERE team = $1 ORDER BY created_us, id");
        let rows = self.read_all(select.bind(team.to_string())).await?;
        rows.iter().map(volume).collect()
    }

    async fn all_volumes(&self) -> Result<Vec<Volume>, StoreError> {
        let select = Statement::new("SELECT version, body FROM volumes ORDER BY created_us, id");
        self.read_all(select).await?.iter().map(volume).collect()
    }

    async fn update_volume(&self, volume: &Volume) -> Result<u64, StoreError> {
        let update =
            Statement::new("UPDATE volumes SET version = $3 + 1, body = $2 WHERE id = $1 AND version = $3")
                .bind(volume.id.to_string())
                .bind(serde_json::to_string(volume).map_err(garbled)?)
                .bind(version(volume)?);
        if self.write(update).await? > 0 {
            return Ok(volume.version + 1);
        }
        Err(self.stale_volume(volume.id).await)
    }

    async fn give_up_volume(&self, volume: &Volume) -> Result<(), StoreError> {
        let removal = Statement::new("DELETE FROM volumes WHERE id = $1 AND version = $2")
            .bind(volume.id.to_string())
            .bind(version(volume)?);
        let note = Statement::new("INSERT INTO volume_remains (id, body) VALUES ($1, $2)")
            .bind(volume.id.to_string())
            .bind(serde_json::to_string(volume).map_err(garbled)?);
        if self.write_all(&[removal, note]).await? > 0 {
            return Ok(());
        }
        Err(self.stale_volume(volume.id).await)
    }

    async fn volume_remains(&self) -> Result<Vec<Volume>, StoreError> {
        let select = Statement::new("SELECT body FROM volume_remains ORDER BY id");
        self.read_all(select).await?.iter().map(remains).collect()
    }

    async fn forget_remains(&self, id: VolumeId) -> Result<(), StoreError> {
        self.write(Statement::new("DELETE FROM volume_remains WHERE id = $1").bind(id.to_string()))
            .await?;
        Ok(())
    }
}
