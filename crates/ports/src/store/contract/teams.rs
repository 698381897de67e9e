use std::time::{Duration, UNIX_EPOCH};

use model::{ApiKey, KeyId, Quota, Team, TeamId, TemplateId};

use super::{ODD_TEXTS, join_all};
use crate::store::{StoreError, TeamStore};

/// A team.
#[must_use]
pub fn team(slug: &str) -> Team {
    Team {
        id: TeamId::random(),
        name: slug.to_owned(),
        slug: slug.to_owned(),
        quota: Quota::default(),
        blocked: false,
    }
}

/// A key of a team.
#[must_use]
pub fn key(team: TeamId, hash: &str) -> ApiKey {
    ApiKey {
        id: KeyId::random(),
        team,
        name: "laptop".to_owned(),
        hash: hash.to_owned(),
        mask_prefix: "ab".to_owned(),
        mask_suffix: "cdef".to_owned(),
        created_at: UNIX_EPOCH + Duration::from_secs(1_790_000_000),
        last_used: None,
    }
}

/// A slug names one team.
pub async fn a_team_slug_is_taken_once(store: &dyn TeamStore) {
    let slug = TemplateId::random().to_string();
    let first = team(&slug);
    store.insert_team(&first).await.unwrap();
    assert!(matches!(
        store.insert_team(&team(&slug)).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(store.team(first.id).await.unwrap().as_ref(), Some(&first));
    assert_eq!(store.team_by_slug(&slug).await.unwrap().as_ref(), Some(&first));
    assert_eq!(
        store
            .teams()
            .await
            .unwrap()
            .iter()
            .filter(|team| team.slug == slug)
            .count(),
        1
    );
    assert_eq!(store.team(TeamId::random()).await.unwrap(), None);
}

/// A quota is replaced, and nothing else of the team.
pub async fn a_quota_is_replaced_and_nothing_else(store: &dyn TeamStore) {
    let mut team = team(TemplateId::random().as_str());
    let quota = Quota {
        sandboxes: 2,
        ..team.quota
    };
    assert!(matches!(
        store.set_quota(team.id, quota).await,
        Err(StoreError::Missing)
    ));
    store.insert_team(&team).await.unwrap();
    store.set_quota(team.id, quota).await.unwrap();
    team.quota = quota;
    assert_eq!(store.team(team.id).await.unwrap(), Some(team));
}

/// A key and its team come together; a removed key is found no more.
pub async fn a_key_is_found_by_its_hash_with_its_team(store: &dyn TeamStore) {
    let team = team(TemplateId::random().as_str());
    let hash = TemplateId::random().to_string();
    let mut key = key(team.id, &hash);
    assert!(matches!(store.insert_key(&key).await, Err(StoreError::Missing)));
    store.insert_team(&team).await.unwrap();
    store.insert_key(&key).await.unwrap();
    assert_eq!(
        store.key_by_hash(&hash).await.unwrap(),
        Some((key.clone(), team.clone()))
    );
    assert_eq!(store.key_by_hash("no such").await.unwrap(), None);
    key.last_used = Some(UNIX_EPOCH + Duration::from_secs(1_790_000_060));
    store.key_used(key.id, key.last_used.unwrap()).await.unwrap();
    key.name = "server".to_owned();
    store.rename_key(team.id, key.id, "server").await.unwrap();
    assert_eq!(store.keys(team.id).await.unwrap(), [key.clone()]);
    store.remove_key(team.id, key.id).await.unwrap();
    assert_eq!(store.key_by_hash(&hash).await.unwrap(), None);
}

/// Another team can neither rename nor remove a key, and learns nothing by trying.
pub async fn a_key_belongs_to_its_team_alone(store: &dyn TeamStore) {
    let team = team(TemplateId::random().as_str());
    store.insert_team(&team).await.unwrap();
    let key = key(team.id, TemplateId::random().as_str());
    store.insert_key(&key).await.unwrap();
    let foreign = TeamId::random();
    assert!(matches!(
        store.rename_key(foreign, key.id, "x").await,
        Err(StoreError::Missing)
    ));
    assert!(matches!(
        store.remove_key(foreign, key.id).await,
        Err(StoreError::Missing)
    ));
    assert!(matches!(
        store.remove_key(team.id, KeyId::random()).await,
        Err(StoreError::Missing)
    ));
    assert_eq!(store.keys(foreign).await.unwrap(), []);
    assert_eq!(store.keys(team.id).await.unwrap(), [key]);
}

/// Everybody who asks gets the same 32 bytes.
pub async fn the_seed_stays(store: &dyn TeamStore) {
    let seeds = join_all((0..4).map(|_| store.seed())).await;
    let first = seeds[0].as_ref().unwrap();
    assert_eq!(first.expose().len(), 32);
    assert!(seeds.iter().all(|seed| seed.as_ref().unwrap() == first));
}

/// What users call teams and keys comes back as it was, however odd it is, and is nobody else's name.
pub async fn names_of_teams_and_keys_hold_every_character(store: &dyn TeamStore) {
    let marker = TemplateId::random();
    for text in ODD_TEXTS {
        let name = format!("{marker}{text}");
        assert_eq!(store.team_by_slug(&name).await.unwrap(), None);
        assert_eq!(store.key_by_hash(&name).await.unwrap(), None);
        let team = team(&name);
        store.insert_team(&team).await.unwrap();
        assert_eq!(store.team_by_slug(&name).await.unwrap().as_ref(), Some(&team));
        let mut key = key(team.id, &name);
        key.name = text.to_owned();
        store.insert_key(&key).await.unwrap();
        assert_eq!(store.keys(team.id).await.unwrap(), [key.clone()]);
        key.name = format!("{text}{text}");
        store.rename_key(team.id, key.id, &key.name).await.unwrap();
        assert_eq!(store.key_by_hash(&name).await.unwrap(), Some((key, team)));
    }
}
