//! What must not be lost: sandboxes, templates, teams and their keys.
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{
    ApiKey, BuildId, KeyId, Kind, Quota, Sandbox, SandboxId, State, Team, TeamId, Template, TemplateId,
};

pub mod contract;
mod memory;
mod resolve;

pub use memory::Memory;
pub use resolve::find_template;

/// The store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object is not there.
    #[error("the object is not in the store")]
    Missing,
    /// Somebody else wrote first, or the name is taken.
    #[error("the object was changed by somebody else")]
    Conflict,
    /// The store is away, full or broken.
    #[error("the store is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            StoreError::Missing => Kind::NotFound,
            StoreError::Conflict => Kind::Conflict,
            StoreError::Away(_) => Kind::Unavailable,
        }
    }

    /// When another try may help: a store is away for moments, such as those of a checkpoint.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        matches!(self, StoreError::Away(_)).then_some(Duration::from_secs(1))
    }
}

/// Which sandboxes are listed (contract 3.6). Only those that clients see: see [`model::Phase::state`].
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxQuery {
    /// Of which team.
    pub team: TeamId,
    /// In which states; empty is all.
    pub states: Vec<State>,
    /// Pairs that must all be in the metadata.
    pub metadata: BTreeMap<String, String>,
    /// Runs that began then or later, compared at microseconds.
    pub started_after: Option<SystemTime>,
    /// Of one template.
    pub template: Option<TemplateId>,
    /// Oldest first instead of newest first. Ties are broken by id: ascending when newest first, descending otherwise.
    pub ascending: bool,
    /// Start behind this one.
    pub after: Option<Cursor>,
    /// At most so many.
    pub limit: usize,
}

/// A place in a list of sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Start of the last one's run, at microseconds.
    pub started_at: SystemTime,
    /// The last one.
    pub id: SandboxId,
}

/// Sandboxes: desired state and the last settled fact.
#[async_trait]
pub trait SandboxStore: Send + Sync {
    /// Stores a new one. [`StoreError::Conflict`] if the id is taken.
    async fn insert(&self, sandbox: &Sandbox) -> Result<(), StoreError>;
    /// The sandbox, whoever owns it.
    async fn get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError>;
    /// Replaces the one of the same id and of version `sandbox.version`, and returns the new version;
    /// [`StoreError::Conflict`] if the stored version is another.
    async fn update(&self, sandbox: &Sandbox) -> Result<u64, StoreError>;
    /// One page of a team's sandboxes.
    async fn list(&self, query: &SandboxQuery) -> Result<Vec<Sandbox>, StoreError>;
    /// How many of a team's sandboxes are in a state.
    async fn count(&self, team: TeamId, state: State) -> Result<u64, StoreError>;
    /// All that are not gone, of all teams: the reconciler's and start-up's view.
    async fn live(&self) -> Result<Vec<Sandbox>, StoreError>;
    /// Forgets those that are gone since before `before`; returns how many.
    async fn forget_gone(&self, before: SystemTime) -> Result<u64, StoreError>;
}

/// Templates and their builds.
#[async_trait]
pub trait TemplateStore: Send + Sync {
    /// Stores a new template. [`StoreError::Conflict`] if its id, or one of its names in its team, is taken.
    async fn insert(&self, template: &Template) -> Result<(), StoreError>;
    /// Replaces the one of the same id and of version `template.version`, but not its counters, and returns the new
    /// version; [`StoreError::Conflict`] if the stored version is another, or one of its names is taken,
    /// [`StoreError::Missing`] if there is none.
    async fn update(&self, template: &Template) -> Result<u64, StoreError>;
    /// By id.
    async fn get(&self, id: TemplateId) -> Result<Option<Template>, StoreError>;
    /// By one of its names in a team.
    async fn named(&self, team: TeamId, name: &str) -> Result<Option<Template>, StoreError>;
    /// A public template of any team by name; the oldest, where several have it.
    async fn promoted(&self, name: &str) -> Result<Option<Template>, StoreError>;
    /// Those of a team, by creation.
    async fn list(&self, team: TeamId) -> Result<Vec<Template>, StoreError>;
    /// Removes a template. No template is no error.
    async fn remove(&self, id: TemplateId) -> Result<(), StoreError>;
    /// Counts a spawn.
    async fn spawned(&self, id: TemplateId, at: SystemTime) -> Result<(), StoreError>;
    /// Every build that some template names.
    async fn builds(&self) -> Result<Vec<BuildId>, StoreError>;
}

/// Teams and their API keys.
#[async_trait]
pub trait TeamStore: Send + Sync {
    /// Stores a new team. [`StoreError::Conflict`] if its id or slug is taken.
    async fn insert_team(&self, team: &Team) -> Result<(), StoreError>;
    /// By id.
    async fn team(&self, id: TeamId) -> Result<Option<Team>, StoreError>;
    /// By slug.
    async fn team_by_slug(&self, slug: &str) -> Result<Option<Team>, StoreError>;
    /// All teams, by creation.
    async fn teams(&self) -> Result<Vec<Team>, StoreError>;
    /// Replaces what a team may hold and do. [`StoreError::Missing`] if it is not there.
    async fn set_quota(&self, id: TeamId, quota: Quota) -> Result<(), StoreError>;
    /// Stores a key.
    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError>;
    /// The key with this hash and its team.
    async fn key_by_hash(&self, hash: &str) -> Result<Option<(ApiKey, Team)>, StoreError>;
    /// A team's keys, by creation.
    async fn keys(&self, team: TeamId) -> Result<Vec<ApiKey>, StoreError>;
    /// Renames a team's key.
    async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<(), StoreError>;
    /// Deletes a team's key: [`StoreError::Missing`] if it is not there.
    async fn remove_key(&self, team: TeamId, id: KeyId) -> Result<(), StoreError>;
    /// Notes that a key was used.
    async fn key_used(&self, id: KeyId, at: SystemTime) -> Result<(), StoreError>;
    /// The secret from which tokens of sandboxes are derived, 32 bytes, made on first use.
    async fn seed(&self) -> Result<model::Secret<Vec<u8>>, StoreError>;
}
