//! Who serves which sandbox right now.
use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use model::{Kind, MaskHost, SandboxId, Seat, Secret};
use tokio::sync::broadcast;

pub mod contract;

/// Where a running sandbox is reached, and what its traffic must present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Where it runs.
    pub seat: Seat,
    /// The version of the stored sandbox that says so. Of two routes of one sandbox the one with the greater version is the
    /// newer, whichever comes first.
    pub version: u64,
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

/// Who serves which sandbox right now. A cache: what is lost of it is published again by the reconcilers.
///
/// A catalog that is shared by processes gives each a copy, which follows the others' changes within some milliseconds. While
/// what is shared is away, a copy goes on answering what it knows, and whatever else is asked of it fails.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Makes `route` visible to every edge, in place of any older route of the sandbox: the newest version wins, and publishing
    /// an older one changes nothing. Fails where not everybody is told; then this process finds it no more than others do.
    async fn publish(&self, route: Route) -> Result<(), CatalogError>;
    /// Removes the route only while it still names `seat`, so a late withdraw cannot cut off a resumed sandbox. Where that
    /// fails, this process does not find it any more, and others are told as soon as they can be.
    async fn withdraw(&self, sandbox: SandboxId, seat: Seat) -> Result<(), CatalogError>;
    /// The route of a sandbox. Read-your-writes within one process. What another has published is found once its publish has
    /// returned, where no route of the sandbox was known before, and else as soon as this process has heard of it.
    async fn find(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, CatalogError>;
    /// The route of a sandbox as everybody finds it, for whoever keeps the catalog whole. A process may go on to serve, for a
    /// while, what the shared catalog has lost: [`Catalog::find`] tells of that, this does not.
    async fn published(&self, sandbox: SandboxId) -> Result<Option<Arc<Route>>, CatalogError> {
        self.find(sandbox).await
    }
    /// All routes that this process knows, for the search by signature.
    async fn all(&self) -> Result<Vec<Arc<Route>>, CatalogError>;
    /// Changes from now on, each once. A receiver that lags must read [`Catalog::all`] again.
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
        let old = {
            let mut routes = self.routes.write().expect(UNPOISONED);
            let old = routes.get(&route.sandbox);
            if old.is_some_and(|old| old.version > route.version || **old == *route) {
                return Ok(());
            }
            routes.insert(route.sandbox, Arc::clone(&route))
        };
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Memory;

    crate::catalog_contract!(async {
        let catalog = Arc::new(Memory::default());
        ((), Arc::clone(&catalog), catalog)
    });
}
