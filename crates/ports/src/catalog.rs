//! Who serves which sandbox right now.
use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use model::{Kind, MaskHost, SandboxId, Seat, Secret};
use tokio::sync::broadcast;

/// Where a running sandbox is reached, and what its traffic must present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Where it runs.
    pub seat: Seat,
    /// envd's access token, for a secured sandbox: finds the sandbox of a signed URL (contract 1.1).
    pub envd_token: Option<Secret<String>>,
    /// The token that traffic to ports other than envd's must carry, for private ingress.
    pub traffic_token: Option<Secret<String>>,
    /// What services see as `Host`.
    pub mask_host: Option<MaskHost>,
}

/// A change of the catalog.
#[derive(Debug, Clone)]
pub enum RouteChange {
    /// A route is new, or replaced an older execution's.
    Published(Arc<Route>),
    /// A route is gone: streams of this execution are to be cut.
    Withdrawn(SandboxId, Seat),
}

/// The catalog could not be asked or told.
#[derive(Debug, thiserror::Error)]
#[error("the route catalog is away")]
pub struct CatalogError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl CatalogError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::Unavailable
    }
}

/// Who serves which sandbox right now.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Makes `route` visible to every edge, in place of any other route of the sandbox.
    async fn publish(&self, route: Route) -> Result<(), CatalogError>;
    /// Removes the route only while it still names `seat`, so a late withdraw cannot cut off a resumed sandbox.
    async fn withdraw(&self, sandbox: SandboxId, seat: Seat) -> Result<(), CatalogError>;
    /// The route of a sandbox. Read-your-writes within one process.
    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, CatalogError>;
    /// All routes, for the search by signature.
    async fn all(&self) -> Result<Vec<Arc<Route>>, CatalogError>;
    /// Changes from now on. A receiver that lags must read [`Catalog::all`] again.
    fn changes(&self) -> broadcast::Receiver<RouteChange>;
}

/// Changes kept for a slow reader: a thousand kills in one instant fit four times over; a reader that lags more
/// reads the whole catalog again.
const CHANGES_MAX: usize = 4096;

/// The catalog of one process.
pub struct Memory {
    routes: RwLock<HashMap<SandboxId, Arc<Route>>>,
    changes: broadcast::Sender<RouteChange>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            routes: RwLock::default(),
            changes: broadcast::channel(CHANGES_MAX).0,
        }
    }
}

const UNPOISONED: &str = "nothing panics while it holds the routes";

#[async_trait]
impl Catalog for Memory {
    async fn publish(&self, route: Route) -> Result<(), CatalogError> {
        let route = Arc::new(route);
        let old = self
            .routes
            .write()
            .expect(UNPOISONED)
            .insert(route.sandbox, Arc::clone(&route));
        if let Some(old) = old.filter(|old| old.seat != route.seat) {
            let _ = self.changes.send(RouteChange::Withdrawn(old.sandbox, old.seat));
        }
        let _ = self.changes.send(RouteChange::Published(route));
        Ok(())
    }

    async fn withdraw(&self, sandbox: SandboxId, seat: Seat) -> Result<(), CatalogError> {
        {
            let mut routes = self.routes.write().expect(UNPOISONED);
            if routes.get(&sandbox).is_none_or(|route| route.seat != seat) {
                return Ok(());
            }
            routes.remove(&sandbox);
        }
        let _ = self.changes.send(RouteChange::Withdrawn(sandbox, seat));
        Ok(())
    }

    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, CatalogError> {
        Ok(self.routes.read().expect(UNPOISONED).get(&sandbox).cloned())
    }

    async fn all(&self) -> Result<Vec<Arc<Route>>, CatalogError> {
        Ok(self.routes.read().expect(UNPOISONED).values().cloned().collect())
    }

    fn changes(&self) -> broadcast::Receiver<RouteChange> {
        self.changes.subscribe()
    }
}
