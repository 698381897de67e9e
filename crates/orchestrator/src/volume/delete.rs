use std::time::Duration;

use model::{Phase, Sandbox, TeamId, Volume, VolumeId, VolumeState};
use ports::{ManagerError, StoreError, VolumeError};
use tokio::time::Instant;

use super::mounts::Doomed;
use super::settle::Late;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// How long a deletion waits for sandboxes that are being created with the volume: they are stored within milliseconds,
/// and then tell that they have it.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What became of a deletion.
pub(super) enum Given {
    /// Nobody finds it any more.
    Up,
    /// A sandbox has it.
    Used(VolumeError),
    /// Somebody wrote it meanwhile.
    Changed,
}

impl Orchestrator {
    /// Removes a volume that no sandbox has, running or paused. Its name is free at once, and its files go as soon as its node is
    /// there and done with its last sandbox.
    #[tracing::instrument(name = "volume.delete", skip_all, fields(%team, volume = %id))]
    pub(super) async fn delete_volume(&self, team: TeamId, id: VolumeId) -> Result<(), VolumeError> {
        self.own_volume(team, id).await?;
        let _doomed = self.doom_volume(id).await?;
        let deadline = Instant::now() + PATIENCE;
        let mut volume = self.own_volume(team, id).await?;
        loop {
            match self.give_up_unused(volume.clone()).await? {
                Given::Up => break,
                Given::Used(by) => return Err(by),
                Given::Changed if Instant::now() < deadline => {}
                Given::Changed => {
                    return Err(ManagerError::Timeout("waiting for others that change the volume").into());
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            volume = match self.own_volume(team, id).await {
                // Another process gave it up: that is what was wished.
                Err(VolumeError::NotFound) => return Ok(()),
                found => found?,
            };
        }
        failpoint::reach("orchestrator/volume-given-up");
        let late = match volume.state {
            VolumeState::Making => Late::Possible,
            VolumeState::Ready | VolumeState::Doomed => Late::No,
        };
        self.clear_remains(&volume, late).await;
        Ok(())
    }

    /// Gives a volume up, unless a sandbox has it.
    ///
    /// A sandbox is stored with its volumes, and looks at them again before it is started; this marks the volume, and looks at the
    /// sandboxes again before it is given up. So one of the two sees the other, whichever processes they are in.
    pub(super) async fn give_up_unused(&self, mut volume: Volume) -> Result<Given, VolumeError> {
        if volume.state == VolumeState::Ready {
            if let Some(used) = self.user_of(&volume).await? {
                return Ok(Given::Used(used));
            }
            volume.state = VolumeState::Doomed;
            match self.parts.volumes.update_volume(&volume).await {
                Ok(version) => volume.version = version,
                Err(StoreError::Conflict | StoreError::Missing) => return Ok(Given::Changed),
                Err(error) => return Err(failure::store("marking the volume")(error).into()),
            }
            failpoint::reach("orchestrator/volume-doomed");
        }
        if let Some(used) = self.user_of(&volume).await? {
            volume.state = VolumeState::Ready;
            return match self.parts.volumes.update_volume(&volume).await {
                Ok(_) => Ok(Given::Used(used)),
                Err(StoreError::Conflict | StoreError::Missing) => Ok(Given::Changed),
                Err(error) => Err(failure::store("marking the volume")(error).into()),
            };
        }
        match self.parts.volumes.give_up_volume(&volume).await {
            Ok(()) => Ok(Given::Up),
            Err(StoreError::Conflict | StoreError::Missing) => Ok(Given::Changed),
            Err(error) => Err(failure::store("giving the volume up")(error).into()),
        }
    }

    /// That a sandbox has it, if one does. One that is ended does not, though its node may not have done it yet: what was killed
    /// comes back nowhere, and a node removes no files that somebody has there.
    async fn user_of(&self, volume: &Volume) -> Result<Option<VolumeError>, VolumeError> {
        let live = self.parts.sandboxes.live().await;
        let live = live.map_err(failure::store("reading the sandboxes"))?;
        let has = |sandbox: &&Sandbox| {
            let is_ended = matches!(sandbox.phase, Phase::Killing { .. });
            !is_ended && sandbox.volumes.iter().any(|mount| mount.volume == volume.id)
        };
        Ok(live.iter().find(has).map(|sandbox| VolumeError::InUse {
            name: volume.name.clone(),
            sandbox: sandbox.id,
        }))
    }

    /// Lets no sandbox of this process take a volume any more; waits for those that are about to.
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
