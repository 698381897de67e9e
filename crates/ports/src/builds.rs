//! Builds of templates: what must not be lost of them, and what a node does for them.
use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use model::recipe::{Context, Key, Recipe};
use model::{Build, BuildFailure, BuildId, BuildStep, Memory, Resources, StartCommand, TeamId, TemplateId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::logs::Level;
use crate::store::StoreError;

/// A line of a build's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildLine {
    /// When.
    pub at: SystemTime,
    /// How urgent.
    pub level: Level,
    /// Which part of the build says it.
    pub step: Option<BuildStep>,
    /// What.
    pub message: String,
}

/// Which lines of a build's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinesQuery {
    /// Skips so many: of those that are at least as urgent as `level`.
    pub offset: u64,
    /// At most so many.
    pub limit: u32,
    /// At least so urgent.
    pub level: Level,
}

/// The result of a step that is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CachedStep {
    /// What sandboxes start from to go on behind it.
    pub build: BuildId,
    /// With what the next step runs.
    pub context: Context,
}

/// Builds, their logs, and the results of their steps. Losing them loses the history of builds, not their results.
#[async_trait]
pub trait BuildStore: Send + Sync {
    /// Stores a new one. [`StoreError::Conflict`] if its id is taken.
    async fn insert_build(&self, build: &Build) -> Result<(), StoreError>;
    /// By id.
    async fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError>;
    /// Replaces the one of the same id and of version `build.version`, and returns the new version;
    /// [`StoreError::Conflict`] if the stored version is another, [`StoreError::Missing`] if there is none.
    async fn update_build(&self, build: &Build) -> Result<u64, StoreError>;
    /// Those of a template, newest first.
    async fn builds_of(&self, template: TemplateId) -> Result<Vec<Build>, StoreError>;
    /// All that are not over, oldest first.
    async fn unfinished_builds(&self) -> Result<Vec<Build>, StoreError>;
    /// Removes those of a template, with their lines.
    async fn remove_builds_of(&self, template: TemplateId) -> Result<(), StoreError>;
    /// Builds that are over, of whose template as many others are that were created later: the oldest first, some thousand
    /// at most.
    async fn builds_beyond(&self, newer: u32) -> Result<Vec<BuildId>, StoreError>;
    /// Removes one that is over, with its lines. None, and one that is not over, is no error: the latter stays.
    async fn remove_build(&self, id: BuildId) -> Result<(), StoreError>;
    /// Adds lines to a build's log, together. [`StoreError::Missing`] if there is no such build any more.
    async fn append_lines(&self, build: BuildId, lines: &[BuildLine]) -> Result<(), StoreError>;
    /// Lines of a build's log, oldest first.
    async fn lines(&self, build: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, StoreError>;
    /// What is kept of a team's step, and notes that it was used.
    async fn cached_step(
        &self,
        team: TeamId,
        key: Key,
        now: SystemTime,
    ) -> Result<Option<CachedStep>, StoreError>;
    /// Keeps the result of a team's step, in the place of an earlier one.
    async fn cache_step(
        &self,
        team: TeamId,
        key: Key,
        step: &CachedStep,
        now: SystemTime,
    ) -> Result<(), StoreError>;
    /// Builds that kept results name, with the time of their last use: the longest unused first.
    async fn cached_builds(&self) -> Result<Vec<(BuildId, SystemTime)>, StoreError>;
    /// Forgets all results that name a build.
    async fn forget_cached(&self, build: BuildId) -> Result<(), StoreError>;
    /// Notes by what digest the blobs hold a build: see [`crate::Node::stow_build`]. An earlier note is replaced.
    async fn note_stowed(&self, build: BuildId, digest: &str) -> Result<(), StoreError>;
    /// Every build that the blobs hold, by its digest.
    async fn stowed(&self) -> Result<BTreeMap<BuildId, String>, StoreError>;
    /// By what digest the blobs hold a build, if they do.
    async fn stowed_as(&self, build: BuildId) -> Result<Option<String>, StoreError>;
    /// Forgets that the blobs hold a build. None is no error.
    async fn forget_stowed(&self, build: BuildId) -> Result<(), StoreError>;
}

/// A build, as a node is told of it.
#[derive(Debug, Clone)]
pub struct BuildOrder {
    /// What its result is to be called.
    pub build: BuildId,
    /// Whose.
    pub team: TeamId,
    /// Of which template.
    pub template: TemplateId,
    /// The size of the sandbox that it is built in, and of those that will start from it.
    pub resources: Resources,
    /// What is built.
    pub recipe: Recipe,
    /// What it starts from, where that is a template's build.
    pub base: Option<BuildBase>,
}

/// What a build starts from, where that is not an image.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildBase {
    /// The build.
    pub build: BuildId,
    /// With what its commands run.
    pub context: Context,
    /// Its start command, which the new one has where its recipe names none.
    pub start: Option<StartCommand>,
}

/// What came of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// With what commands run in its sandboxes.
    pub context: Context,
    /// What runs in its sandboxes from the start on.
    pub start: Option<StartCommand>,
    /// Whether that runs already in what they start from.
    pub memory: Memory,
}

/// How a node looks up and keeps results of steps, and reads uploads: of one team.
#[async_trait]
pub trait BuildShelf: Send + Sync {
    /// See [`BuildStore::cached_step`]. A store that is away has none.
    async fn cached(&self, key: Key) -> Option<CachedStep>;
    /// See [`BuildStore::cache_step`]. A store that is away keeps none.
    async fn cache(&self, key: Key, step: CachedStep);
    /// What the client uploaded under a hash: a tar, gzipped or not.
    async fn upload(&self, files: &str) -> Result<crate::blobs::ByteStream, crate::blobs::BlobError>;
    /// Removes what [`BuildShelf::upload`] gave, because it is no archive that can be read: so that the client is asked for it
    /// again. What was uploaded in its place meanwhile stays.
    async fn discard_upload(&self, files: &str);
}

/// What goes on around a build.
pub struct BuildTalk {
    /// Takes its log.
    pub lines: mpsc::Sender<BuildLine>,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Keeps the results of its steps.
    pub shelf: std::sync::Arc<dyn BuildShelf>,
}

/// Why a node did not build it.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The recipe, or what it does: its owner is told.
    #[error("{}", .0.message)]
    Recipe(BuildFailure),
    /// What it needs from elsewhere is not to be had now: its owner is told what, and from where. Another try may succeed.
    #[error("{}", .0.message)]
    Away(BuildFailure),
    /// It was cancelled.
    #[error("the build was cancelled")]
    Cancelled,
    /// A fault of the node's. Another try may succeed.
    #[error("{step} failed")]
    Node {
        /// At what.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
