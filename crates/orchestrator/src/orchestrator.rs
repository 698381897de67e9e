use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use model::{Kind, ProcessId, TeamId, TemplateId};
use ports::{
    Blobs, BuildStore, Bus, Catalog, Clock, Fleet, Idempotency, Limits, ManagerError, ResourceScheduler,
    SandboxStore, Shares, TeamStore, TemplateStore, VolumeNodes, VolumeStore,
};
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, RwLock, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::collect::Unnamed;
use crate::config::Config;
use crate::locks::Locks;
use crate::placement::{Placement, Room};
use crate::template::building::Building;
use crate::tokens::Tokens;
use crate::uses::Uses;
use crate::volume::mounts::Mounts;

/// What the orchestrator stands on.
pub struct Parts {
    /// Sandboxes.
    pub sandboxes: Arc<dyn SandboxStore>,
    /// Templates.
    pub templates: Arc<dyn TemplateStore>,
    /// Builds of templates, their logs, and the results of their steps.
    pub builds: Arc<dyn BuildStore>,
    /// Volumes.
    pub volumes: Arc<dyn VolumeStore>,
    /// The nodes that have the files of volumes.
    pub volume_nodes: Arc<dyn VolumeNodes>,
    /// Uploads.
    pub blobs: Arc<dyn Blobs>,
    /// Teams, and the seed of tokens.
    pub teams: Arc<dyn TeamStore>,
    /// Routes.
    pub catalog: Arc<dyn Catalog>,
    /// Rates.
    pub limits: Arc<dyn Limits>,
    /// What teams hold of their quotas.
    pub shares: Arc<dyn Shares>,
    /// What was answered to which idempotency key.
    pub idempotency: Arc<dyn Idempotency>,
    /// Who wants to know.
    pub bus: Arc<dyn Bus>,
    /// The nodes.
    pub fleet: Arc<dyn Fleet>,
    /// Who gives capacity out, where somebody does: asked for sandboxes that are to be allocations of their own.
    pub scheduler: Option<Arc<dyn ResourceScheduler>>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What the operator has set.
    pub config: Config,
}

/// The life of sandboxes. See the crate's documentation.
pub struct Orchestrator {
    pub(crate) parts: Parts,
    /// One operation at a time on one sandbox.
    pub(crate) locks: Locks,
    /// One change at a time of one template's builds.
    pub(crate) template_locks: Locks<TemplateId>,
    /// One claim at a time of what a team may store.
    pub(crate) team_locks: Locks<TeamId>,
    /// Builds that this process has under way.
    pub(crate) building: Arc<Building>,
    /// Builds that other processes have under way, as far as they were heard.
    pub(crate) heard: crate::template::claim::Heard,
    /// This life of this process.
    pub(crate) process: ProcessId,
    /// Which node is asked to take what.
    pub(crate) placement: Arc<Placement>,
    /// Operations that have builds in hand.
    pub(crate) uses: Arc<Uses>,
    /// What nothing names, as the last collection found it.
    pub(crate) unnamed: Unnamed,
    /// What is brought to the blobs.
    pub(crate) stowing: crate::stow::Stowing,
    /// Read by uploads under way, written by what removes old ones.
    pub(crate) uploading: RwLock<()>,
    /// Volumes that sandboxes are about to have.
    pub(crate) mounts: Arc<Mounts>,
    /// Volumes in transition, as this process saw them.
    pub(crate) seen_volumes: crate::volume::settle::Seen,
    /// One pass over them at a time.
    pub(crate) settling_volumes: tokio::sync::Mutex<()>,
    /// What nodes hold of volumes, and is not as it is stored.
    pub(crate) homes: crate::volume::homes::Homes,
    /// Moves with every write of a sandbox, for those who wait for one.
    pub(crate) writes: watch::Sender<u64>,
    /// Wakes the reconciler before its tick.
    pub(crate) nudge: Notify,
    /// Which sandboxes the reconciler missed on their nodes, and how often in a row.
    pub(crate) absent: crate::reconcile::Absent,
    /// What other processes may be at.
    pub(crate) others: crate::reconcile::Others,
    /// Nodes that are to be emptied.
    pub(crate) drains: Arc<crate::drain::Drains>,
    /// Nodes that are gone from the fleet.
    pub(crate) away: crate::reconcile::Away,
    /// Operations under way.
    pub(crate) tasks: TaskTracker,
    /// What every start takes one of; closed when nothing is to be started any more.
    pub(crate) starts: Arc<Semaphore>,
    /// When the reconciler's last pass came to its end.
    pub(crate) passed: Mutex<Option<Instant>>,
    /// What was promised to sandboxes when it began.
    pub(crate) promised: Mutex<Option<Room>>,
    tokens: OnceCell<Tokens>,
    me: Weak<Orchestrator>,
}

impl Orchestrator {
    /// Puts the parts together. Nothing happens until it is used; see [`Orchestrator::settle_now`] and
    /// [`Orchestrator::run`].
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let placement = Placement::new(crate::sight::policy(&parts.config), rand::random());
        let orchestrator = Arc::new_cyclic(|me| Self {
            placement,
            parts,
            locks: Locks::default(),
            template_locks: Locks::default(),
            building: Arc::default(),
            heard: Default::default(),
            process: ProcessId::random(),
            uses: Arc::default(),
            unnamed: Unnamed::default(),
            stowing: Default::default(),
            uploading: RwLock::default(),
            mounts: Arc::default(),
            seen_volumes: Default::default(),
            settling_volumes: Default::default(),
            homes: Default::default(),
            team_locks: Locks::default(),
            writes: watch::Sender::new(0),
            nudge: Notify::new(),
            absent: Default::default(),
            others: Default::default(),
            drains: Default::default(),
            away: Default::default(),
            tasks: TaskTracker::new(),
            starts: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            passed: Mutex::default(),
            promised: Mutex::default(),
            tokens: OnceCell::new(),
            me: me.clone(),
        });
        orchestrator.see_fleet();
        orchestrator
    }

    /// Runs an operation to its end, whether or not the caller waits for it: a client that hangs up in the middle of a
    /// create must not leave half a sandbox.
    pub(crate) async fn detached<T, E, F>(&self, operation: impl FnOnce(Arc<Self>) -> F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ManagerError> + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let task = self.tasks.spawn(operation(self.arc()).in_current_span());
        task.await.unwrap_or_else(|ended| {
            let error = ManagerError::Failed {
                step: "the operation",
                kind: Kind::Internal,
                source: ended.into(),
            };
            Err(error.into())
        })
    }

    /// Itself, for what outlives the caller.
    pub(crate) fn arc(&self) -> Arc<Self> {
        self.me
            .upgrade()
            .expect("it is only ever made inside of an Arc, and its caller holds that")
    }

    /// Begins to start something; held until it is up or undone.
    pub(crate) fn begin_start(&self) -> Result<OwnedSemaphorePermit, ManagerError> {
        let permit = Arc::clone(&self.starts).try_acquire_owned();
        permit.map_err(|_| ManagerError::ShuttingDown)
    }

    pub(crate) async fn tokens(&self) -> Result<&Tokens, ManagerError> {
        let load = async || self.parts.teams.seed().await.map(Tokens::new);
        self.tokens
            .get_or_try_init(load)
            .await
            .map_err(crate::failure::store("reading the seed of tokens"))
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.parts.clock.now()
    }
}
