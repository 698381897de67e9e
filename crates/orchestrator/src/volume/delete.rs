use std::time::Duration;

use model::{Kind, TeamId, VolumeId};
use ports::volumes::FileError;
use ports::{ManagerError, VolumeError};
use tokio::time::Instant;

use super::create::files;
use super::mounts::Doomed;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// How long a deletion waits for sandboxes that are being created with the volume: they are stored within milliseconds,
/// and then tell that they have it.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Orchestrator {
    /// Removes a volume that no sandbox has, running or paused.
    #[tracing::instrument(name = "volume.delete", skip_all, fields(%team, volume = %id))]
    pub(super) async fn delete_volume(&self, team: TeamId, id: VolumeId) -> Result<(), VolumeError> {
        self.own_volume(team, id).await?;
        let _doomed = self.doom_volume(id).await?;
        let volume = self.own_volume(team, id).await?;
        let live = self.parts.sandboxes.live().await;
        let live = live.map_err(failure::store("reading the sandboxes"))?;
        let has = |sandbox: &&model::Sandbox| sandbox.volumes.iter().any(|mount| mount.volume == id);
        if let Some(sandbox) = live.iter().find(has) {
            return Err(VolumeError::InUse {
                name: volume.name,
                sandbox: sandbox.id,
            });
        }
        match self.parts.volume_files.discard(id).await {
            Ok(()) | Err(FileError::NoVolume) => {}
            // A sandbox that is over is still on its way off its node.
            Err(FileError::InUse(_)) => {
                return Err(VolumeError::Manager(failure::fault(
                    "deleting the volume",
                    Kind::Unavailable,
                    "its node is not done with the last sandbox that had it",
                )));
            }
            Err(error) => return Err(files("deleting the volume")(error)),
        }
        failpoint::reach("orchestrator/volume-discarded");
        let removed = self.parts.volumes.remove_volume(id).await;
        removed.map_err(failure::store("forgetting the volume"))?;
        failpoint::reach("orchestrator/volume-removed");
        Ok(())
    }

    /// Lets no sandbox take a volume any more; waits for those that are about to.
    async fn doom_volume(&self, id: VolumeId) -> Result<Doomed, VolumeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(doomed) = self.mounts.doom(id) {
                return Ok(doomed);
            }
            if Instant::now() >= deadline {
                let what = "waiting for sandboxes that are being created with the volume";
                return Err(ManagerError::Timeout(what).into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
