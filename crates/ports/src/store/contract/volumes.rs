use std::time::{Duration, UNIX_EPOCH};

use model::{MiB, NodeId, TeamId, Volume, VolumeId, VolumeState};

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
        home: Some(NodeId::random()),
        state: VolumeState::Making,
        version: 0,
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

/// What was given up is found by nobody, its name is free, and it is among the remains until these are forgotten.
pub async fn a_volume_that_was_given_up_leaves_its_name_and_remains(store: &dyn VolumeStore) {
    let team = TeamId::random();
    let (first, other) = (volume(team, "data"), volume(team, "other"));
    store.insert_volume(&first).await.unwrap();
    store.insert_volume(&other).await.unwrap();
    let remains = async |id| {
        let remains = store.volume_remains().await.unwrap();
        remains.into_iter().find(|volume| volume.id == id)
    };
    assert_eq!(remains(first.id).await, None);
    store.give_up_volume(&first).await.unwrap();
    assert!(matches!(
        store.give_up_volume(&first).await,
        Err(StoreError::Missing)
    ));
    assert_eq!(store.volume(first.id).await.unwrap(), None);
    assert_eq!(store.volume_named(team, "data").await.unwrap(), None);
    assert_eq!(store.volumes(team).await.unwrap(), std::slice::from_ref(&other));
    assert!(!store.all_volumes().await.unwrap().contains(&first));
    assert_eq!(remains(first.id).await.as_ref(), Some(&first));
    assert_eq!(remains(other.id).await, None);
    store.insert_volume(&volume(team, "data")).await.unwrap();
    store.forget_remains(first.id).await.unwrap();
    store.forget_remains(first.id).await.unwrap();
    assert_eq!(remains(first.id).await, None);
}

/// A write on an old version changes nothing, and neither does giving up what was written since.
pub async fn a_stale_volume_is_refused(store: &dyn VolumeStore) {
    let team = TeamId::random();
    let stale = volume(team, "data");
    assert!(matches!(
        store.update_volume(&stale).await,
        Err(StoreError::Missing)
    ));
    store.insert_volume(&stale).await.unwrap();
    let mut fresh = Volume {
        state: VolumeState::Ready,
        ..stale.clone()
    };
    fresh.version = store.update_volume(&fresh).await.unwrap();
    assert_eq!(fresh.version, stale.version + 1);
    assert!(matches!(
        store.update_volume(&stale).await,
        Err(StoreError::Conflict)
    ));
    assert!(matches!(
        store.give_up_volume(&stale).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(store.volume(stale.id).await.unwrap().as_ref(), Some(&fresh));
    assert_eq!(
        store.volume_named(team, "data").await.unwrap().as_ref(),
        Some(&fresh)
    );
    assert!(!store.volume_remains().await.unwrap().contains(&stale));
    store.give_up_volume(&fresh).await.unwrap();
    assert!(store.volume_remains().await.unwrap().contains(&fresh));
    store.forget_remains(fresh.id).await.unwrap();
}

/// Of many who write one version one wins, whether they change it or give it up.
pub async fn of_many_writers_of_one_volume_one_wins(store: &dyn VolumeStore) {
    let stale = volume(TeamId::random(), "data");
    store.insert_volume(&stale).await.unwrap();
    let doomed = Volume {
        state: VolumeState::Doomed,
        ..stale.clone()
    };
    let writes = (0..8).map(|number| {
        let doomed = &doomed;
        async move {
            match number % 2 {
                0 => store.update_volume(doomed).await.map(drop),
                _ => store.give_up_volume(doomed).await,
            }
        }
    });
    let outcomes = super::join_all(writes).await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 1, "{outcomes:?}");
    let is_there = store.volume(stale.id).await.unwrap().is_some();
    let remains = store.volume_remains().await.unwrap();
    let is_given_up = remains.iter().any(|volume| volume.id == stale.id);
    assert!(is_there != is_given_up, "it is in one place");
    store.forget_remains(stale.id).await.unwrap();
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
