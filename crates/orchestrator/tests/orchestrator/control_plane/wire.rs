//! What lies between a process and what it stands on: delays, lost words, and the end of the process.
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{Sandbox, SandboxId, Seat, State, TeamId};
use ports::store::SandboxQuery;
use ports::{Catalog, CatalogError, Route, RouteChange, SandboxStore, StoreError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::broadcast;

/// The ends of a process's words. A dead process says and hears nothing any more: what it was at stops where it was.
pub(crate) struct Wire {
    dice: Mutex<SmallRng>,
    dead: AtomicBool,
    /// Nothing goes wrong any more.
    calm: Arc<AtomicBool>,
}

impl Wire {
    pub(crate) fn new(seed: u64, calm: &Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            dice: Mutex::new(SmallRng::seed_from_u64(seed)),
            dead: AtomicBool::new(false),
            calm: Arc::clone(calm),
        })
    }

    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Takes up to so many milliseconds; for ever, where the process is dead.
    pub(crate) async fn takes(&self, most: u64) {
        self.lives().await;
        let micros = self.dice.lock().unwrap().random_range(0..most * 1000);
        tokio::time::sleep(Duration::from_micros(micros)).await;
        self.lives().await;
    }

    async fn lives(&self) {
        if self.dead.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
    }

    pub(crate) fn per_mille(&self, chance: u32) -> bool {
        !self.calm.load(Ordering::SeqCst) && self.dice.lock().unwrap().random_ratio(chance, 1000)
    }
}

/// Something shared, at the other end of a process's wire.
pub(crate) struct Far<T: ?Sized> {
    pub(crate) there: Arc<T>,
    pub(crate) wire: Arc<Wire>,
}

impl<T: ?Sized> Far<T> {
    /// A word with a store: now and then it does not arrive, and now and then its answer does not.
    async fn ask<R>(&self, work: impl Future<Output = Result<R, StoreError>>) -> Result<R, StoreError> {
        self.wire.takes(4).await;
        if self.wire.per_mille(3) {
            return Err(StoreError::Away("the question was lost".into()));
        }
        let answer = work.await;
        self.wire.takes(4).await;
        if self.wire.per_mille(3) {
            return Err(StoreError::Away("the answer was lost".into()));
        }
        answer
    }
}

#[async_trait]
impl SandboxStore for Far<dyn SandboxStore> {
    async fn insert(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        self.ask(self.there.insert(sandbox)).await
    }
    async fn get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        self.ask(self.there.get(id)).await
    }
    async fn update(&self, sandbox: &Sandbox) -> Result<u64, StoreError> {
        self.ask(self.there.update(sandbox)).await
    }
    async fn list(&self, query: &SandboxQuery) -> Result<Vec<Sandbox>, StoreError> {
        self.ask(self.there.list(query)).await
    }
    async fn count(&self, team: TeamId, state: State) -> Result<u64, StoreError> {
        self.ask(self.there.count(team, state)).await
    }
    async fn live(&self) -> Result<Vec<Sandbox>, StoreError> {
        self.ask(self.there.live()).await
    }
    async fn forget_gone(&self, before: SystemTime) -> Result<u64, StoreError> {
        self.ask(self.there.forget_gone(before)).await
    }
}

impl Far<dyn Catalog> {
    async fn tell<R>(&self, work: impl Future<Output = Result<R, CatalogError>>) -> Result<R, CatalogError> {
        self.wire.takes(3).await;
        // More often than a store: nothing is lost by it, and much is to be made good.
        if self.wire.per_mille(30) {
            return Err(CatalogError("the word was lost".into()));
        }
        let answer = work.await;
        self.wire.takes(3).await;
        answer
    }
}

#[async_trait]
impl Catalog for Far<dyn Catalog> {
    async fn publish(&self, route: Route) -> Result<(), CatalogError> {
        self.tell(self.there.publish(route)).await
    }
    async fn withdraw(&self, sandbox: SandboxId, seat: Seat) -> Result<(), CatalogError> {
        self.tell(self.there.withdraw(sandbox, seat)).await
    }
    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, CatalogError> {
        self.tell(self.there.find(sandbox)).await
    }
    async fn all(&self) -> Result<Vec<Arc<Route>>, CatalogError> {
        self.tell(self.there.all()).await
    }
    fn changes(&self) -> broadcast::Receiver<RouteChange> {
        self.there.changes()
    }
}
