use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{KeyId, Quota, TeamId};

/// Who owns things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Its name for ever.
    pub id: TeamId,
    /// For people.
    pub name: String,
    /// Its namespace in template names: `[a-z0-9-]+`, unique.
    pub slug: String,
    /// What it may hold and do.
    pub quota: Quota,
    /// A blocked team's keys answer 403.
    pub blocked: bool,
}

/// An API key, as far as it is known after its creation. The key itself is shown once and never stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its name for ever.
    pub id: KeyId,
    /// Whose it is.
    pub team: TeamId,
    /// For people.
    pub name: String,
    /// SHA-256 of the key's decoded bytes (contract 2.1), in hex.
    pub hash: String,
    /// The first characters after the prefix, to tell keys apart in a list.
    pub mask_prefix: String,
    /// The last characters.
    pub mask_suffix: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last used, to the minute.
    pub last_used: Option<SystemTime>,
}
