//! What was begun with volumes, and not brought to its end: by a process that died, or because a node was away.
//!
//! A pass takes no input. It reads what is stored, and leaves alone for a while what another process may be at; every write is a
//! compare-and-set, so whoever is taken for dead too early loses nothing but its work.
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use model::{Volume, VolumeId, VolumeState};
use ports::volumes::FileError;
use ports::{ManagerError, VolumeError};
use tokio::time::Instant;

use super::delete::Given;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// How often there is a pass: who waits for it is a node's disk.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);
/// A maker asks a node for half a minute at most, and a deletion takes a few writes.
const OTHERS_FOR: Duration = Duration::from_secs(60);
/// A node that was asked to make a volume and did not answer may make it later: until then it is told to remove it.
const LATE_MAX: Duration = Duration::from_secs(600);
/// One answers within milliseconds, and one that removes much takes longer: the next pass asks again. Clients wait for it.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

/// Whether a node may make the files of a volume after it was told to remove them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// Who asked it to make them is at it still, or was not answered.
    Possible,
    /// It answered whoever asked.
    No,
}

/// Volumes in transition: the version that was seen, and since when. Time is measured here, for the clocks of two machines are no
/// measure.
#[derive(Default)]
pub(crate) struct Seen(Mutex<HashMap<VolumeId, (u64, Instant)>>);

impl Seen {
    /// For how long a volume was seen as it is.
    fn age(&self, volume: &Volume) -> Duration {
        let now = Instant::now();
        let mut seen = self
            .0
            .lock()
            .expect("nothing panics while it holds what was seen");
        let (version, since) = seen.entry(volume.id).or_insert((volume.version, now));
        if *version != volume.version {
            (*version, *since) = (volume.version, now);
        }
        now.duration_since(*since)
    }

    /// Forgets what is in no transition any more.
    fn keep(&self, is_there: impl Fn(&VolumeId) -> bool) {
        let mut seen = self
            .0
            .lock()
            .expect("nothing panics while it holds what was seen");
        seen.retain(|id, _| is_there(id));
    }
}

impl Orchestrator {
    /// Brings to its end what was begun with volumes.
    ///
    /// # Errors
    /// Where the store is away. What a node did not do is tried again by the next pass.
    pub async fn settle_volumes(&self) -> Result<(), ManagerError> {
        let step = "reading the volumes";
        let remains = self.parts.volumes.volume_remains().await;
        let remains = remains.map_err(failure::store(step))?;
        let volumes = self.parts.volumes.all_volumes().await;
        let mut volumes = volumes.map_err(failure::store(step))?;
        volumes.retain(|volume| volume.state != VolumeState::Ready);
        self.seen_volumes.keep(|id| {
            let mut all = remains.iter().chain(&volumes);
            all.any(|volume| volume.id == *id)
        });
        for volume in &remains {
            // Where this process is alone, whoever was to make it is dead.
            let may_be_late = self.parts.config.shared
                && volume.state == VolumeState::Making
                && self.seen_volumes.age(volume) < LATE_MAX;
            let late = if may_be_late { Late::Possible } else { Late::No };
            self.clear_remains(volume, late).await;
        }
        for volume in volumes {
            if self.parts.config.shared && self.seen_volumes.age(&volume) < OTHERS_FOR {
                continue;
            }
            // An operation of this process is at it.
            let Some(_doomed) = self.mounts.doom(volume.id) else {
                continue;
            };
            match volume.state {
                VolumeState::Making => self.finish_making(volume).await?,
                VolumeState::Doomed => self.finish_deletion(volume).await?,
                VolumeState::Ready => {}
            }
        }
        Ok(())
    }

    /// Deletes a volume, or lets it be, whose deletion was asked for by somebody who died.
    async fn finish_deletion(&self, volume: Volume) -> Result<(), ManagerError> {
        match self.give_up_unused(volume.clone()).await {
            Ok(Given::Up) => {
                tracing::info!(volume = %volume.id, "a volume is deleted, as was asked for");
                self.clear_remains(&volume, Late::No).await;
            }
            Ok(Given::Used(_)) => {
                tracing::info!(volume = %volume.id, "a volume is not deleted: a sandbox has it");
            }
            Ok(Given::Changed) => {}
            Err(VolumeError::Manager(error)) => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }

    /// Has the files removed of a volume that was given up; where that cannot be now, the next pass tries again.
    pub(super) async fn clear_remains(&self, volume: &Volume, late: Late) {
        let id = volume.id;
        let Some(node) = self.home_of(volume) else {
            return;
        };
        let Some(files) = self.parts.volume_nodes.files_on(node) else {
            tracing::debug!(volume = %id, %node, "a deleted volume waits for its node");
            return;
        };
        match tokio::time::timeout(REMOVED_WITHIN, files.discard(id)).await {
            Ok(Ok(()) | Err(FileError::NoVolume)) => {}
            // A sandbox that is over is on its way off its node, or somebody reads in it.
            Ok(Err(FileError::InUse(_))) | Err(_) => {
                tracing::debug!(volume = %id, %node, "a deleted volume waits for whoever uses it still");
                return;
            }
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(volume = %id, %node, error, "the files of a deleted volume are left; it is tried again");
                return;
            }
        }
        failpoint::reach("orchestrator/volume-discarded");
        if late == Late::Possible {
            return;
        }
        if let Err(error) = self.parts.volumes.forget_remains(id).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(volume = %id, error, "a deleted volume is still noted; it is tried again");
            return;
        }
        failpoint::reach("orchestrator/volume-removed");
    }

    /// A pass behind everybody's back.
    pub(crate) async fn settle_volumes_in_background(self: std::sync::Arc<Self>) {
        // The last one waits for a node still.
        let Ok(_alone) = self.settling_volumes.try_lock() else {
            return;
        };
        let settled = async {
            self.settle_volumes().await?;
            self.look_at_homes().await
        };
        if let Err(error) = settled.await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "volumes were not looked after; it is tried again");
        }
    }
}
