use model::Secret;
use wire::rest::{NewVolume, Volume, VolumeAndToken};

use super::{Client, segment};
use crate::error::CallError;
use crate::volume::VolumeClient;

impl Client {
    /// Makes a volume.
    ///
    /// # Errors
    /// As of every call.
    pub async fn create_volume(&self, name: &str) -> Result<VolumeAndToken, CallError> {
        let wanted = NewVolume {
            name: name.to_owned(),
        };
        self.post("/volumes", &wanted).await?.json()
    }

    /// Volumes of the team.
    ///
    /// # Errors
    /// As of every call.
    pub async fn volumes(&self) -> Result<Vec<Volume>, CallError> {
        self.get("/volumes").await?.json()
    }

    /// A volume, by its id, with a token for its content.
    ///
    /// # Errors
    /// As of every call.
    pub async fn volume(&self, id: &str) -> Result<VolumeAndToken, CallError> {
        self.get(&format!("/volumes/{}", segment(id))).await?.json()
    }

    /// Removes a volume that no sandbox has, with everything in it.
    ///
    /// # Errors
    /// As of every call.
    pub async fn delete_volume(&self, id: &str) -> Result<(), CallError> {
        self.delete(&format!("/volumes/{}", segment(id))).await
    }

    /// What is in a volume, where this client's API is.
    ///
    /// # Errors
    /// [`CallError::Unsendable`] where its token is none.
    pub fn volume_content(&self, volume: &VolumeAndToken) -> Result<VolumeClient, CallError> {
        let token = Secret::new(volume.token.clone());
        VolumeClient::over(
            self.base.clone(),
            self.transport.clone(),
            &volume.volume_id,
            &token,
        )
    }
}
