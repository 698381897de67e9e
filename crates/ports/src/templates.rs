//! What clients may do with templates, snapshots and volumes: the seam between the public API and the orchestrator.
use async_trait::async_trait;
use model::recipe::Recipe;
use model::{
    Build, BuildId, MiB, SandboxId, Secret, TeamId, Template, TemplateId, TemplateRef, Volume, VolumeId,
};

use crate::blobs::ByteStream;
use crate::builds::{BuildLine, LinesQuery};
use crate::manager::ManagerError;

/// A build to be registered. Sizes are within bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct RegisterBuild {
    /// The template's name; its tag, where it has one, is among `tags`.
    pub name: TemplateRef,
    /// What is to name the build when it is ready; `default` where none is given.
    pub tags: Vec<String>,
    /// vCPUs, where they are given.
    pub cpu: Option<u32>,
    /// Memory, where it is given.
    pub memory: Option<MiB>,
    /// Disk that is to be free in its sandboxes, where it is given.
    pub free_disk: Option<MiB>,
}

/// A snapshot, as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotInfo {
    /// The template that it is.
    pub template: Template,
    /// Which build of it.
    pub build: BuildId,
    /// The tag that names it.
    pub tag: String,
}

/// Which snapshots.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SnapshotQuery {
    /// Of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Of this name.
    pub name: Option<TemplateRef>,
}

/// Templates and their builds, as their owners may steer them. Another team's private template is an unknown one.
#[async_trait]
pub trait TemplateManager: Send + Sync {
    /// Registers a build of a new or existing template.
    async fn register(
        &self,
        team: TeamId,
        request: RegisterBuild,
    ) -> Result<(Template, Build), TemplateError>;
    /// Whether a file was uploaded under a hash. `template`: whose build asks.
    async fn has_upload(
        &self,
        team: TeamId,
        template: TemplateId,
        files: &str,
    ) -> Result<bool, TemplateError>;
    /// Takes an upload.
    async fn upload(&self, team: TeamId, files: &str, bytes: ByteStream) -> Result<u64, TemplateError>;
    /// Starts a registered build. Other builds of the template that are under way are cancelled.
    async fn start(
        &self,
        team: TeamId,
        template: TemplateId,
        build: BuildId,
        recipe: Recipe,
    ) -> Result<(), TemplateError>;
    /// Cancels a build that is not over.
    async fn cancel(&self, team: TeamId, template: TemplateId, build: BuildId) -> Result<(), TemplateError>;
    /// A build.
    async fn build(&self, team: TeamId, template: TemplateId, build: BuildId)
    -> Result<Build, TemplateError>;
    /// Builds of a template, newest first.
    async fn builds(&self, team: TeamId, template: TemplateId) -> Result<Vec<Build>, TemplateError>;
    /// Lines of a build's log.
    async fn lines(&self, build: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, TemplateError>;
    /// Lets more tags name the build that `target` names.
    async fn tag(
        &self,
        team: TeamId,
        target: &TemplateRef,
        tags: Vec<String>,
    ) -> Result<BuildId, TemplateError>;
    /// Takes tags away.
    async fn untag(&self, team: TeamId, name: &TemplateRef, tags: Vec<String>) -> Result<(), TemplateError>;
    /// Makes a template public, or private again.
    async fn publish(
        &self,
        team: TeamId,
        name: &TemplateRef,
        public: bool,
    ) -> Result<Template, TemplateError>;
    /// Removes a template, or what one tag of a snapshot names, that no sandbox uses.
    async fn delete(&self, team: TeamId, name: &TemplateRef) -> Result<(), TemplateError>;
    /// Snapshots of a team, newest first.
    async fn snapshots(&self, team: TeamId, query: SnapshotQuery)
    -> Result<Vec<SnapshotInfo>, TemplateError>;
}

/// Volumes, as their owners may steer them.
#[async_trait]
pub trait VolumeManager: Send + Sync {
    /// Makes one.
    async fn create(&self, team: TeamId, name: &str) -> Result<Volume, VolumeError>;
    /// Those of a team.
    async fn list(&self, team: TeamId) -> Result<Vec<Volume>, VolumeError>;
    /// One.
    async fn get(&self, team: TeamId, id: VolumeId) -> Result<Volume, VolumeError>;
    /// Removes one that no sandbox uses.
    async fn delete(&self, team: TeamId, id: VolumeId) -> Result<(), VolumeError>;
    /// A token for the content of one.
    async fn token(&self, volume: &Volume) -> Result<Secret<String>, VolumeError>;
    /// Whether a token is for the content of one, now.
    async fn admits(&self, id: VolumeId, token: &str) -> Result<bool, VolumeError>;
}

/// Why a client's wish for a template was not fulfilled. `Display` is what the client is told.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// No such template for this team.
    #[error("template '{0}' not found")]
    NotFound(String),
    /// The template is there, the tag is not.
    #[error("tag '{tag}' does not exist for template '{template}'")]
    NoTag {
        /// The template, as asked for.
        template: String,
        /// The tag.
        tag: String,
    },
    /// It is somebody else's.
    #[error("you don't have access to template '{0}'")]
    Forbidden(String),
    /// No such build of this template.
    #[error("build '{0}' not found")]
    NoBuild(BuildId),
    /// The build was started before.
    #[error("build is not in waiting state")]
    NotWaiting,
    /// The namespace is another team's.
    #[error("namespace '{namespace}' must match your team '{team}'")]
    Namespace {
        /// As asked for.
        namespace: String,
        /// The team's own.
        team: String,
    },
    /// Sandboxes need it.
    #[error("cannot delete template '{template}' because there are {state} sandboxes using it")]
    InUse {
        /// Which.
        template: String,
        /// `running` or `paused`.
        state: &'static str,
    },
    /// The request is wrong in itself.
    #[error("{0}")]
    Invalid(String),
    /// A limit of the team.
    #[error("{0}")]
    Exhausted(String),
    /// Anything else.
    #[error(transparent)]
    Manager(#[from] ManagerError),
}

impl TemplateError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> model::Kind {
        use model::Kind;
        match self {
            TemplateError::NotFound(_) | TemplateError::NoTag { .. } | TemplateError::NoBuild(_) => {
                Kind::NotFound
            }
            TemplateError::Forbidden(_) => Kind::Forbidden,
            TemplateError::NotWaiting
            | TemplateError::Namespace { .. }
            | TemplateError::InUse { .. }
            | TemplateError::Invalid(_) => Kind::Invalid,
            TemplateError::Exhausted(_) => Kind::Exhausted,
            TemplateError::Manager(error) => error.kind(),
        }
    }
}

/// Why a client's wish for a volume was not fulfilled. `Display` is what the client is told.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such volume for this team.
    #[error("Volume not found")]
    NotFound,
    /// The name is taken.
    #[error("Volume with name '{0}' already exists")]
    Exists(String),
    /// Sandboxes have it.
    #[error("Volume '{name}' is mounted in sandbox {sandbox}; end it first")]
    InUse {
        /// Its name.
        name: String,
        /// One of those that have it.
        sandbox: SandboxId,
    },
    /// The request is wrong in itself.
    #[error("{0}")]
    Invalid(String),
    /// A limit of the team.
    #[error("{0}")]
    Exhausted(String),
    /// Anything else.
    #[error(transparent)]
    Manager(#[from] ManagerError),
}

impl VolumeError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> model::Kind {
        use model::Kind;
        match self {
            VolumeError::NotFound => Kind::NotFound,
            VolumeError::Exists(_) | VolumeError::Invalid(_) => Kind::Invalid,
            VolumeError::InUse { .. } => Kind::Conflict,
            VolumeError::Exhausted(_) => Kind::Exhausted,
            VolumeError::Manager(error) => error.kind(),
        }
    }
}
