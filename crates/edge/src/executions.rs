//! The lines into every execution that anybody talks to, cut when its route is withdrawn.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use model::ExecutionId;
use ports::{Catalog, CatalogError, Route, RouteChange};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::lines::Lines;
use crate::meters::Meters;

/// How often idle lines are looked over, and the catalog is read for withdrawals that were not heard of.
const SWEEP: Duration = Duration::from_secs(10);

/// Lines by execution, not by sandbox: those of a resumed sandbox are others than those of its last life.
pub(crate) struct Executions {
    catalog: Arc<dyn Catalog>,
    lines: RwLock<HashMap<ExecutionId, Arc<Lines>>>,
    meters: Arc<Meters>,
}

const UNPOISONED: &str = "nothing panics while it holds the lines";

impl Executions {
    pub(crate) fn new(catalog: Arc<dyn Catalog>, meters: Arc<Meters>) -> Self {
        Self {
            catalog,
            lines: RwLock::default(),
            meters,
        }
    }

    /// The lines into the execution that `route` names; `None` where the catalog has since withdrawn it.
    pub(crate) async fn lines(&self, route: &Route) -> Result<Option<Arc<Lines>>, CatalogError> {
        let execution = route.seat.execution;
        if let Some(lines) = self.lines.read().expect(UNPOISONED).get(&execution) {
            return Ok(Some(Arc::clone(lines)));
        }
        let lines = Arc::clone(
            self.lines
                .write()
                .expect(UNPOISONED)
                .entry(execution)
                .or_default(),
        );
        // The route may have been withdrawn, and nobody told, before there was an entry to find. From here on the
        // withdrawal is either seen below or finds the entry.
        let current = self.catalog.find(route.sandbox).await?;
        if current.is_some_and(|current| current.seat == route.seat) {
            return Ok(Some(lines));
        }
        self.withdraw(execution);
        Ok(None)
    }

    /// Follows the catalog until `stop`.
    pub(crate) async fn follow(&self, mut changes: Receiver<RouteChange>, stop: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = sweep.tick() => {
                    self.sweep();
                    // What slipped through is found here: a lost change costs one period, never a leak.
                    self.reread().await;
                }
                change = changes.recv() => match change {
                    Ok(RouteChange::Published(_)) => {}
                    Ok(RouteChange::Withdrawn(_, seat)) => self.withdraw(seat.execution),
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "route changes were missed; reading the whole catalog");
                        self.reread().await;
                    }
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    /// Withdraws what the catalog does not hold any more.
    async fn reread(&self) {
        // Listed first: what is inserted from now on is younger than the answer.
        let known: Vec<_> = self.lines.read().expect(UNPOISONED).keys().copied().collect();
        match self.catalog.all().await {
            Ok(routes) => {
                let live: HashSet<_> = routes.iter().map(|route| route.seat.execution).collect();
                for execution in known.into_iter().filter(|known| !live.contains(known)) {
                    self.withdraw(execution);
                }
            }
            Err(error) => tracing::error!(?error, "withdrawn routes are unknown: their streams go on"),
        }
    }

    fn withdraw(&self, execution: ExecutionId) {
        let lines = self.lines.write().expect(UNPOISONED).remove(&execution);
        if let Some(lines) = lines {
            let cut = lines.withdraw();
            self.meters.cut.increment(cut as u64);
            tracing::debug!(%execution, cut, "route withdrawn");
        }
    }

    fn sweep(&self) {
        let all: Vec<_> = self.lines.read().expect(UNPOISONED).values().cloned().collect();
        for lines in all {
            lines.sweep();
        }
    }
}
