use std::time::{Duration, SystemTime};

use model::{MiB, TeamId, Volume, VolumeId};
use ports::volumes::FileError;
use ports::{ManagerError, StoreError, VolumeError};

use crate::config::Config;
use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::timeout::whole_micros;

/// Longer names are in nobody's interest: they are shown whole.
const NAME_BYTES_MAX: usize = 128;
/// A volume that is younger than this and has no files was being made when the process died. An older one has lost them,
/// or its node is not as it was: nothing is made in its place.
const UNMADE_MAX: Duration = Duration::from_secs(3600);

fn check_name(name: &str) -> Result<(), VolumeError> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_word) {
        return Err(VolumeError::Invalid("Invalid volume name".to_owned()));
    }
    Ok(())
}

/// Refuses another volume where the team has what it may have.
fn check_room(own: &[Volume], config: &Config) -> Result<(), VolumeError> {
    let most = config.volumes_max;
    if own.len() >= most as usize {
        return Err(VolumeError::Exhausted(format!(
            "The team has reached its limit of {most} volumes: delete one first"
        )));
    }
    let MiB(size_max) = config.volumes_size_max;
    let sizes = own.iter().map(|volume| u64::from(volume.size.0));
    if sizes.sum::<u64>() + u64::from(config.volume_size.0) > u64::from(size_max) {
        return Err(VolumeError::Exhausted(format!(
            "The team has reached its limit of {} in volumes: delete one first",
            config.volumes_size_max
        )));
    }
    Ok(())
}

/// What a client is told of files that were not made.
pub(super) fn files(step: &'static str) -> impl FnOnce(FileError) -> VolumeError {
    move |error| match error {
        FileError::Full => {
            VolumeError::Manager(ManagerError::NoCapacity("it has no room for volumes".to_owned()))
        }
        error => VolumeError::Manager(ManagerError::Failed {
            step,
            kind: model::Kind::Internal,
            source: error.into(),
        }),
    }
}

impl Orchestrator {
    /// Makes a volume.
    #[tracing::instrument(name = "volume.create", skip_all, fields(%team, volume))]
    pub(super) async fn create_volume(&self, team: TeamId, name: &str) -> Result<Volume, VolumeError> {
        check_name(name)?;
        let _locked = self.team_locks.lock(team).await;
        let own = self.parts.volumes.volumes(team).await;
        let own = own.map_err(failure::store("reading the volumes"))?;
        if own.iter().any(|volume| volume.name == name) {
            return Err(VolumeError::Exists(name.to_owned()));
        }
        check_room(&own, &self.parts.config)?;
        let volume = Volume {
            id: VolumeId::random(),
            team,
            name: name.to_owned(),
            size: self.parts.config.volume_size,
            created_at: whole_micros(self.now()),
        };
        tracing::Span::current().record("volume", volume.id.as_str());
        // Nobody has it before its files are there, nor deletes it.
        let _unmade = self.mounts.doom(volume.id);
        match self.parts.volumes.insert_volume(&volume).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => return Err(VolumeError::Exists(name.to_owned())),
            Err(error) => return Err(failure::store("storing the volume")(error).into()),
        }
        failpoint::reach("orchestrator/volume-stored");
        if let Err(error) = self.parts.volume_files.make(volume.id, volume.size).await {
            self.unmake_volume(&volume).await;
            return Err(match error {
                // Whoever keeps files may keep none.
                FileError::Invalid(why) => VolumeError::Invalid(why),
                error => files("making the volume")(error),
            });
        }
        failpoint::reach("orchestrator/volume-made");
        Ok(volume)
    }

    /// Forgets a volume that could not be made.
    async fn unmake_volume(&self, volume: &Volume) {
        let id = volume.id;
        if let Err(error) = self.parts.volume_files.discard(id).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(volume = %id, error, "a volume that was not made is left; it can be deleted");
            return;
        }
        if let Err(error) = self.parts.volumes.remove_volume(id).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(volume = %id, error, "a volume that was not made is stored; it can be deleted");
        }
    }

    /// Makes the files of volumes that were being made when the last process died. Those of all others are left as they
    /// are; the log tells where there are none.
    pub(crate) async fn make_unmade_volumes(&self) -> Result<(), ManagerError> {
        let volumes = self.parts.volumes.all_volumes().await;
        for volume in volumes.map_err(failure::store("reading the volumes"))? {
            match self.parts.volume_files.stat(volume.id, "/").await {
                Err(FileError::NoVolume) if is_unmade(&volume, self.now()) => {
                    let made = self.parts.volume_files.make(volume.id, volume.size).await;
                    let outcome = if made.is_ok() { "made" } else { "not made" };
                    tracing::info!(volume = %volume.id, outcome, "a volume was being made when the server went down");
                }
                Err(FileError::NoVolume) => {
                    tracing::error!(volume = %volume.id, team = %volume.team, "a volume has no files here: it was moved or lost");
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn is_unmade(volume: &Volume, now: SystemTime) -> bool {
    now.duration_since(volume.created_at)
        .is_ok_and(|age| age < UNMADE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word() {
        for good in ["a", "A_b-9", &"x".repeat(NAME_BYTES_MAX)] {
            check_name(good).unwrap();
        }
        for bad in [
            "",
            "a b",
            "a/b",
            "ä",
            "a.b",
            "..",
            &"x".repeat(NAME_BYTES_MAX + 1),
        ] {
            assert_eq!(
                check_name(bad).unwrap_err().to_string(),
                "Invalid volume name",
                "{bad}"
            );
        }
    }

    #[test]
    fn a_team_has_so_many_volumes_and_so_much_in_them() {
        let config = Config {
            volume_size: MiB(10),
            volumes_max: 3,
            volumes_size_max: MiB(25),
            ..Config::default()
        };
        let volume = Volume {
            id: VolumeId::random(),
            team: TeamId::random(),
            name: "a".to_owned(),
            size: MiB(10),
            created_at: SystemTime::UNIX_EPOCH,
        };
        let own = |count| vec![volume.clone(); count];
        check_room(&own(1), &config).unwrap();
        assert!(
            check_room(&own(2), &config)
                .unwrap_err()
                .to_string()
                .contains("25 MiB")
        );
        let wide = Config {
            volumes_size_max: MiB(1000),
            ..config
        };
        check_room(&own(2), &wide).unwrap();
        assert!(
            check_room(&own(3), &wide)
                .unwrap_err()
                .to_string()
                .contains("3 volumes")
        );
    }
}
