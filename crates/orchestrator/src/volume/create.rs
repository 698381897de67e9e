use model::{MiB, NodeId, Resources, TeamId, Volume, VolumeId, VolumeState};
use ports::volumes::FileError;
use ports::{ManagerError, StoreError, VolumeError, VolumeFiles};

use super::settle::Late;
use crate::config::Config;
use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::placement::{Needs, Wish};
use crate::timeout::whole_micros;

/// Longer names are in nobody's interest: they are shown whole.
const NAME_BYTES_MAX: usize = 128;
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
        error @ (FileError::Away { .. } | FileError::Crowded) => {
            VolumeError::Manager(ManagerError::NoCapacity(error.to_string()))
        }
        error => VolumeError::Manager(ManagerError::Failed {
            step,
            kind: model::Kind::Internal,
            source: error.into(),
        }),
    }
}

/// What its files need of a node: not more than that it has volumes, for room is taken as it is written.
const NO_SHARE: Resources = Resources {
    cpu: 0,
    memory: MiB(0),
    disk: MiB(0),
};

/// Why a volume was not made on one node.
enum NotMade {
    /// Another node may do better.
    There(VolumeError),
    /// No other would.
    Anywhere(VolumeError),
}

impl Orchestrator {
    /// Makes a volume.
    #[tracing::instrument(name = "volume.create", skip_all, fields(%team, volume, node))]
    pub(super) async fn create_volume(&self, team: TeamId, name: &str) -> Result<Volume, VolumeError> {
        check_name(name)?;
        let _locked = self.team_locks.lock(team).await;
        let own = self.own_volumes(team).await?;
        if own.iter().any(|volume| volume.name == name) {
            return Err(VolumeError::Exists(name.to_owned()));
        }
        check_room(&own, &self.parts.config)?;
        let wish = Wish {
            needs: Needs::VOLUMES,
            ..Wish::new(team, NO_SHARE)
        };
        // A sandbox can have volumes of one node alone, so those of a team lie together while that node takes them.
        let beside = own.iter().rev().find_map(|volume| volume.home);
        let near = beside.map(|node| Wish {
            only: Some(node),
            ..wish
        });
        let excluded: Vec<NodeId> = beside.into_iter().collect();
        let far = Wish {
            excluded: &excluded,
            ..wish
        };
        let mut last = None;
        for wish in near.into_iter().chain([far]) {
            let mut search = self.placement.search(wish);
            while let Some(place) = search.next_node() {
                let node = place.node();
                let Some(files) = self.parts.volume_nodes.files_on(node) else {
                    search.failed(place);
                    continue;
                };
                match self.make_volume_on(team, name, node, &*files).await {
                    Ok(volume) => return Ok(volume),
                    Err(NotMade::Anywhere(error)) => return Err(error),
                    Err(NotMade::There(error)) => {
                        last = Some(error);
                        search.lacking(place, "volumes");
                    }
                }
            }
            if last.is_none() && wish.only.is_none() {
                last = Some(search.no_capacity().into());
            }
        }
        Err(last.unwrap_or_else(|| ManagerError::NoCapacity("there are no nodes".to_owned()).into()))
    }

    /// One attempt on one node. Each is a volume of its own: clients see only the one that was made.
    async fn make_volume_on(
        &self,
        team: TeamId,
        name: &str,
        node: NodeId,
        on: &dyn VolumeFiles,
    ) -> Result<Volume, NotMade> {
        let mut volume = Volume {
            id: VolumeId::random(),
            team,
            name: name.to_owned(),
            size: self.parts.config.volume_size,
            created_at: whole_micros(self.now()),
            home: Some(node),
            state: VolumeState::Making,
            version: 0,
        };
        let span = tracing::Span::current();
        span.record("volume", volume.id.as_str());
        span.record("node", tracing::field::display(node));
        // Nobody deletes it in this process before its files are there.
        let _unmade = self.mounts.doom(volume.id);
        match self.parts.volumes.insert_volume(&volume).await {
            Ok(()) => {}
            Err(StoreError::Conflict) => {
                return Err(NotMade::Anywhere(VolumeError::Exists(name.to_owned())));
            }
            Err(error) => {
                return Err(NotMade::Anywhere(
                    failure::store("storing the volume")(error).into(),
                ));
            }
        }
        failpoint::reach("orchestrator/volume-stored");
        if let Err(error) = self.check_room_still(&volume).await {
            self.unmake_volume(&volume, Late::No).await;
            return Err(NotMade::Anywhere(error));
        }
        if let Err(error) = on.make(volume.id, volume.size).await {
            let late = match error {
                FileError::Away { .. } => Late::Possible,
                _ => Late::No,
            };
            self.unmake_volume(&volume, late).await;
            return Err(NotMade::There(match error {
                // Whoever keeps files may keep none.
                FileError::Invalid(why) => VolumeError::Invalid(why),
                error => files("making the volume")(error),
            }));
        }
        failpoint::reach("orchestrator/volume-made");
        volume.state = VolumeState::Ready;
        match self.parts.volumes.update_volume(&volume).await {
            Ok(version) => volume.version = version,
            Err(StoreError::Conflict | StoreError::Missing) => {
                // Somebody deleted it meanwhile, or found it made.
                let now = self
                    .own_volume(team, volume.id)
                    .await
                    .map_err(NotMade::Anywhere)?;
                if now.state != VolumeState::Ready {
                    return Err(NotMade::Anywhere(VolumeError::NotFound));
                }
                volume = now;
            }
            Err(error) => {
                return Err(NotMade::Anywhere(
                    failure::store("storing that the volume is made")(error).into(),
                ));
            }
        }
        Ok(volume)
    }

    /// Other processes may have stored volumes of the team since it was read: where there are too many now, this one goes.
    async fn check_room_still(&self, volume: &Volume) -> Result<(), VolumeError> {
        if !self.parts.config.shared {
            return Ok(());
        }
        let mut own = self.own_volumes(volume.team).await?;
        own.retain(|other| other.id != volume.id);
        check_room(&own, &self.parts.config)
    }

    async fn own_volumes(&self, team: TeamId) -> Result<Vec<Volume>, VolumeError> {
        let own = self.parts.volumes.volumes(team).await;
        Ok(own.map_err(failure::store("reading the volumes"))?)
    }

    /// Takes back a volume that was not made. What its node may have of it is removed now, or by the reconciler.
    async fn unmake_volume(&self, volume: &Volume, late: Late) {
        if let Err(error) = self.parts.volumes.give_up_volume(volume).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(volume = %volume.id, error, "a volume that was not made is stored; it can be deleted");
            return;
        }
        self.clear_remains(volume, late).await;
    }

    /// Has the files made of a volume whose maker died on the way.
    pub(super) async fn finish_making(&self, volume: Volume) -> Result<(), ManagerError> {
        let id = volume.id;
        let Some(node) = self.home_of(&volume) else {
            return Ok(());
        };
        let Some(files) = self.parts.volume_nodes.files_on(node) else {
            return Ok(());
        };
        if let Err(error) = files.make(id, volume.size).await {
            tracing::warn!(volume = %id, %node, error = &error as &dyn std::error::Error, "a volume is still not made; it can be deleted");
            return Ok(());
        }
        let ready = Volume {
            state: VolumeState::Ready,
            ..volume
        };
        match self.parts.volumes.update_volume(&ready).await {
            Ok(_) => tracing::info!(volume = %id, %node, "a volume is made whose maker died"),
            Err(StoreError::Conflict | StoreError::Missing) => {}
            Err(error) => return Err(failure::store("storing that a volume is made")(error)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

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
            home: None,
            state: VolumeState::Ready,
            version: 0,
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
