//! The face towards the API. Whatever has effects runs to its end, whether or not its client waits.
use std::time::Duration;

use async_trait::async_trait;
use model::{Secret, TeamId, Volume, VolumeId};
use ports::{VolumeError, VolumeManager};

use crate::failure::{self, logged_of_volume as logged};
use crate::orchestrator::Orchestrator;

/// How long a token opens a volume's content. Each look at the volume gives a new one.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

impl Orchestrator {
    /// A team's own volume; another's is not there.
    pub(super) async fn own_volume(&self, team: TeamId, id: VolumeId) -> Result<Volume, VolumeError> {
        let volume = self.parts.volumes.volume(id).await;
        let volume = volume.map_err(failure::store("reading the volume"))?;
        volume
            .filter(|volume| volume.team == team)
            .ok_or(VolumeError::NotFound)
    }
}

#[async_trait]
impl VolumeManager for Orchestrator {
    async fn create(&self, team: TeamId, name: &str) -> Result<Volume, VolumeError> {
        let name = name.to_owned();
        self.detached(move |me| async move { me.create_volume(team, &name).await })
            .await
            .inspect_err(logged(team))
    }

    async fn list(&self, team: TeamId) -> Result<Vec<Volume>, VolumeError> {
        let volumes = self.parts.volumes.volumes(team).await;
        let volumes = volumes.map_err(failure::store("reading the volumes"));
        volumes.map_err(VolumeError::from).inspect_err(logged(team))
    }

    async fn get(&self, team: TeamId, id: VolumeId) -> Result<Volume, VolumeError> {
        self.own_volume(team, id).await.inspect_err(logged(team))
    }

    async fn delete(&self, team: TeamId, id: VolumeId) -> Result<(), VolumeError> {
        self.detached(move |me| async move { me.delete_volume(team, id).await })
            .await
            .inspect_err(logged(team))
    }

    async fn token(&self, volume: &Volume) -> Result<Secret<String>, VolumeError> {
        Ok(self.tokens().await?.volume(volume, self.now() + TOKEN_LIFE))
    }

    async fn admits(&self, id: VolumeId, token: &str) -> Result<bool, VolumeError> {
        let tokens = self.tokens().await?;
        let volume = self.parts.volumes.volume(id).await;
        let volume = volume.map_err(failure::store("reading the volume"))?;
        Ok(volume.is_some_and(|volume| tokens.opens_volume(&volume, token, self.now())))
    }
}
