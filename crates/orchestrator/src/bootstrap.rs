//! What a fresh installation needs before its first client: a team and a key.
use std::time::SystemTime;

use model::{ApiKey, KeyId, Quota, Secret, Team, TeamId};
use ports::{StoreError, TeamStore};
use rand::TryRngCore;
use sha2::{Digest, Sha256};

/// The slug of the team that is made where there is none.
const DEFAULT_SLUG: &str = "default";
/// What keys begin with (contract 2.1).
const KEY_PREFIX: &str = "e2b_";
/// Random bytes of a key (contract 2.1).
const KEY_LEN: usize = 20;

/// The team of an installation that has one team. Made once; the same ever after, but for what it may hold and do, which
/// is `quota` from now on.
///
/// # Errors
/// Where the store is away.
pub async fn default_team(teams: &dyn TeamStore, quota: Quota) -> Result<Team, StoreError> {
    if let Some(team) = teams.team_by_slug(DEFAULT_SLUG).await? {
        if team.quota != quota {
            teams.set_quota(team.id, quota).await?;
        }
        let team = Team { quota, ..team };
        return Ok(team);
    }
    let team = Team {
        id: TeamId::random(),
        name: "Default".to_owned(),
        slug: DEFAULT_SLUG.to_owned(),
        quota,
        blocked: false,
    };
    match teams.insert_team(&team).await {
        Ok(()) => Ok(team),
        // Somebody else was first.
        Err(StoreError::Conflict) => teams.team_by_slug(DEFAULT_SLUG).await?.ok_or(StoreError::Missing),
        Err(error) => Err(error),
    }
}

/// Makes a key of a team. The key itself is only in the answer: the store keeps its hash.
///
/// # Errors
/// [`StoreError::Missing`] for an unknown team; otherwise where the store, or the system's source of randomness, is away.
pub async fn mint_key(
    teams: &dyn TeamStore,
    team: TeamId,
    name: &str,
) -> Result<(ApiKey, Secret<String>), StoreError> {
    let mut bytes = [0; KEY_LEN];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| StoreError::Away(error.into()))?;
    let text = hex::encode(bytes);
    let key = ApiKey {
        id: KeyId::random(),
        team,
        name: name.to_owned(),
        hash: hex::encode(Sha256::digest(bytes)),
        mask_prefix: text[..2].to_owned(),
        mask_suffix: text[text.len() - 4..].to_owned(),
        created_at: SystemTime::now(),
        last_used: None,
    };
    teams.insert_key(&key).await?;
    Ok((key, Secret::new(format!("{KEY_PREFIX}{text}"))))
}

#[cfg(test)]
mod tests {
    use ports::store::Memory;

    use super::*;

    #[tokio::test]
    async fn the_default_team_is_made_once() {
        let store = Memory::default();
        let first = default_team(&store, Quota::default()).await.unwrap();
        assert_eq!(default_team(&store, Quota::default()).await.unwrap(), first);
        assert_eq!(store.teams().await.unwrap(), [first]);
    }

    #[tokio::test]
    async fn a_minted_key_is_found_by_the_hash_of_its_bytes_and_not_stored() {
        let store = Memory::default();
        let team = default_team(&store, Quota::default()).await.unwrap();
        let (key, secret) = mint_key(&store, team.id, "laptop").await.unwrap();
        let text = secret.expose().strip_prefix("e2b_").unwrap();
        assert_eq!(text.len(), 40);
        let hash = hex::encode(Sha256::digest(hex::decode(text).unwrap()));
        assert_eq!(hash, key.hash);
        assert!(text.starts_with(&key.mask_prefix) && text.ends_with(&key.mask_suffix));
        let (found, owner) = store.key_by_hash(&hash).await.unwrap().unwrap();
        assert_eq!(
            (found, owner),
            (
                ApiKey {
                    created_at: key.created_at,
                    ..key
                },
                team
            )
        );
    }
}
