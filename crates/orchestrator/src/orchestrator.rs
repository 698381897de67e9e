use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use model::Kind;
use ports::{Bus, Catalog, Clock, Fleet, Limits, ManagerError, SandboxStore, TeamStore, TemplateStore};
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::idempotency::Replies;
use crate::locks::Locks;
use crate::placement::Turn;
use crate::quota::Ledger;
use crate::tokens::Tokens;

/// What the orchestrator stands on.
pub struct Parts {
    /// Sandboxes.
    pub sandboxes: Arc<dyn SandboxStore>,
    /// Templates.
    pub templates: Arc<dyn TemplateStore>,
    /// Teams, and the seed of tokens.
    pub teams: Arc<dyn TeamStore>,
    /// Routes.
    pub catalog: Arc<dyn Catalog>,
    /// Rates.
    pub limits: Arc<dyn Limits>,
    /// Who wants to know.
    pub bus: Arc<dyn Bus>,
    /// The nodes.
    pub fleet: Arc<dyn Fleet>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

/// The life of sandboxes. See the crate's documentation.
pub struct Orchestrator {
    pub(crate) parts: Parts,
    /// One operation at a time on one sandbox.
    pub(crate) locks: Locks,
    /// What teams hold.
    pub(crate) ledger: Arc<Ledger>,
    /// Whose turn it is to be asked first.
    pub(crate) turn: Turn,
    /// What was answered to which idempotency key.
    pub(crate) replies: Arc<Replies>,
    /// Moves with every write of a sandbox, for those who wait for one.
    pub(crate) writes: watch::Sender<u64>,
    /// Wakes the reconciler before its tick.
    pub(crate) nudge: Notify,
    /// Which sandboxes the reconciler missed on their nodes, and how often in a row.
    pub(crate) absent: crate::reconcile::Absent,
    /// Operations under way.
    pub(crate) tasks: TaskTracker,
    /// What every start takes one of; closed when nothing is to be started any more.
    pub(crate) starts: Arc<Semaphore>,
    /// When the reconciler's last pass came to its end.
    pub(crate) passed: Mutex<Option<Instant>>,
    tokens: OnceCell<Tokens>,
    me: Weak<Orchestrator>,
}

impl Orchestrator {
    /// Puts the parts together. Nothing happens until it is used; see [`Orchestrator::settle_now`] and
    /// [`Orchestrator::run`].
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            parts,
            locks: Locks::default(),
            ledger: Arc::default(),
            turn: Turn::default(),
            replies: Arc::default(),
            writes: watch::Sender::new(0),
            nudge: Notify::new(),
            absent: Default::default(),
            tasks: TaskTracker::new(),
            starts: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            passed: Mutex::default(),
            tokens: OnceCell::new(),
            me: me.clone(),
        })
    }

    /// Runs an operation to its end, whether or not the caller waits for it: a client that hangs up in the middle of a
    /// create must not leave half a sandbox.
    pub(crate) async fn detached<T, F>(
        &self,
        operation: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, ManagerError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ManagerError>> + Send + 'static,
    {
        let me = self
            .me
            .upgrade()
            .expect("it is only ever made inside of an Arc, and its caller holds that");
        let task = self.tasks.spawn(operation(me).in_current_span());
        task.await.unwrap_or_else(|ended| {
            Err(ManagerError::Failed {
                step: "the operation",
                kind: Kind::Internal,
                source: ended.into(),
            })
        })
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
