use std::time::{Duration, UNIX_EPOCH};

use model::{MiB, TeamId, Volume, VolumeId};

use super::ODD_TEXTS;
use crate::store::StoreError;
use crate::volumes::VolumeStore;

/// A volume of a team.
#[must_use]
pub fn volume(team: TeamId, name: &str) -> Volume {
    Volume {
        id: VolumeId::random(),
        team,
        name: name.to_owned(),
        size: MiB(1024),
        created_at: UNIX_EPOCH + Duration::new(1_790_000_000, 123_456_789),
    }
}

/// Each way of looking up finds it, and finds what was written.
pub async fn a_volume_is_found_by_id_and_name(store: &dyn VolumeStore) {
    let team = TeamId::random();
    let volume = volume(team, "Data_1");
    store.insert_volume(&volume).await.unwrap();
    assert_eq!(store.volume(volume.id).await.unwrap().as_ref(), Some(&volume));
    assert_eq!(
        store.volume_named(team, "Data_1").await.unwrap().as_ref(),
        Some(&volume)
    );
    assert!(store.all_volumes().await.unwrap().contains(&volume));
    // Names differ by case, and are the team's own.
    assert_eq!(store.volume_named(team, "data_1").await.unwrap(), None);
    assert_eq!(
        store.volume_named(TeamId::random(), "Data_1").await.unwrap(),
        None
    );
    assert_eq!(store.volume(VolumeId::random()).await.unwrap(), None);
}

/// Two volumes of a team do not share a name, two of different teams may; no two share an id.
pub async fn a_volume_name_is_taken_once_in_a_team(store: &dyn VolumeStore) {
    let (ours, theirs) = (TeamId::random(), TeamId::random());
    let first = volume(ours, "data");
    store.insert_volume(&first).await.unwrap();
    let second = volume(ours, "data");
    assert!(matches!(
        store.insert_volume(&second).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(store.volume(second.id).await.unwrap(), None);
    let same_id = Volume {
        id: first.id,
        ..volume(theirs, "other")
    };
    assert!(matches!(
        store.insert_volume(&same_id).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(store.volume(first.id).await.unwrap(), Some(first));
    store.insert_volume(&volume(theirs, "data")).await.unwrap();
}

/// A team's volumes are listed, and no other's, by creation.
pub async fn volumes_are_listed_by_creation(store: &dyn VolumeStore) {
    let team = TeamId::random();
    let newer = volume(team, "a");
    let mut older = volume(team, "b");
    older.created_at -= Duration::from_micros(1);
    let foreign = volume(TeamId::random(), "c");
    for volume in [&newer, &older, &foreign] {
        store.insert_volume(volume).await.unwrap();
    }
    assert_eq!(store.volumes(team).await.unwrap(), [older, newer]);
    assert_eq!(store.volumes(TeamId::random()).await.unwrap(), []);
}

/// What was removed is gone, its name is free, and a second removal is no error.
pub async fn a_removed_volume_leaves_its_name(store: &dyn VolumeStore) {
    let team = TeamId::random();
    let (first, other) = (volume(team, "data"), volume(team, "other"));
    store.insert_volume(&first).await.unwrap();
    store.insert_volume(&other).await.unwrap();
    store.remove_volume(first.id).await.unwrap();
    store.remove_volume(first.id).await.unwrap();
    assert_eq!(store.volume(first.id).await.unwrap(), None);
    assert_eq!(store.volume_named(team, "data").await.unwrap(), None);
    assert_eq!(store.volumes(team).await.unwrap(), [other]);
    store.insert_volume(&volume(team, "data")).await.unwrap();
}

/// A name is found by exactly its own text, however odd that is.
pub async fn a_volume_name_holds_every_character(store: &dyn VolumeStore) {
    let team = TeamId::random();
    for name in ODD_TEXTS {
        assert_eq!(store.volume_named(team, name).await.unwrap(), None);
        let volume = volume(team, name);
        store.insert_volume(&volume).await.unwrap();
        assert_eq!(store.volume_named(team, name).await.unwrap(), Some(volume));
    }
}
