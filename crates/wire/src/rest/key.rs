use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A key that is to be made or renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewKey {
    /// For people; 1..=256 characters.
    #[schema(min_length = 1, max_length = 256)]
    pub name: String,
}

/// What is shown of a key after its creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyMask {
    /// `e2b_`.
    pub prefix: String,
    /// Characters behind the prefix.
    pub value_length: usize,
    /// The first of those.
    pub masked_value_prefix: String,
    /// The last of those.
    pub masked_value_suffix: String,
}

/// A team's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// What is shown of it.
    pub mask: KeyMask,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When it was last used, to the minute.
    pub last_used: Option<String>,
}

/// A key on the one occasion on which it is shown whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedKey {
    /// The key: keep it now.
    pub key: String,
    /// What will be shown of it from now on.
    #[serde(flatten)]
    pub about: Key,
}

/// A team that the caller belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Team {
    /// Its id.
    #[serde(rename = "teamID")]
    pub team_id: String,
    /// For people.
    pub name: String,
    /// A key of it: the one that the caller presented.
    pub api_key: String,
    /// Whether it is the one that clients choose by themselves.
    pub is_default: bool,
}
