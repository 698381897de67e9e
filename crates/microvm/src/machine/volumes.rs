//! The volumes of a machine, over its line.
use std::io;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use guest::Line;
use guest::volumes::{Lent, Lines};
use ports::RuntimeError;
use ports::step::{At as _, Step};

use super::Vm;
use crate::vmm::Vmm;
use crate::work::{in_time, panicked};

/// The way to a machine that may be gone by then.
struct Way<V: Vmm>(Weak<Vm<V>>);

#[async_trait]
impl<V: Vmm> Lines for Way<V> {
    async fn line(&self) -> io::Result<Line> {
        let vm = self.0.upgrade().ok_or(io::ErrorKind::NotFound)?;
        let agent = vm.link.agent().await?;
        agent.line().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

impl<V: Vmm> Vm<V> {
    fn way(self: &Arc<Self>) -> Arc<dyn Lines> {
        Arc::new(Way(Arc::downgrade(self)))
    }

    /// Has its volumes mounted on the host.
    async fn hold_volumes(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let spec = self.record().spec;
        let Some(store) = self.house.volumes.clone().filter(|_| !spec.volumes.is_empty()) else {
            return Ok(());
        };
        let holder = self.execution.to_string();
        let lent = tokio::task::spawn_blocking(move || Lent::of(&store, &spec.volumes, &holder)).await;
        self.lent.take(&lent.map_err(panicked)??);
        Ok(())
    }

    /// Gives it its volumes, before anybody is served. One that cannot have them is ended.
    pub(crate) async fn give_volumes(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let restored = self.record().restored;
        let given = in_time(self.house.vmm.boots_within(), async {
            Ok(match self.hold_volumes().await {
                Ok(()) => {
                    let given = self.lent.give(&self.way(), restored).await;
                    given.map_err(|error| error.told_by(V::NAME))
                }
                failed => failed,
            })
        });
        let given = given.await.at("giving a machine its volumes");
        let given = given.map_err(RuntimeError::from).flatten();
        if given.is_err() {
            self.end_unheld().await;
        }
        given
    }

    /// Serves what a machine has whose daemon ended. What cannot be served is waited for in the machine.
    pub(crate) async fn serve_volumes_again(self: &Arc<Self>) {
        match self.hold_volumes().await {
            Ok(()) => self.serve_volumes(),
            Err(error) => tracing::error!(
                execution = %self.execution,
                error = &error as &dyn std::error::Error,
                "a machine that lives is not served its volumes"
            ),
        }
    }

    /// Has it stand to be written down, if it does not already: its memory waits for nothing then that was done.
    pub(super) async fn stand(self: &Arc<Self>, stood: bool) -> Result<(), Step> {
        if !stood {
            self.lent.quiet().await;
        }
        let stands = V::pause(self).await;
        if stands.is_err() && !stood {
            self.serve_volumes();
        }
        stands
    }

    /// Lets it go on that stood to be written down, and serves its volumes again.
    pub(super) async fn go_on(self: &Arc<Self>) -> Result<(), Step> {
        V::go_on(self).await?;
        self.serve_volumes();
        Ok(())
    }

    fn serve_volumes(self: &Arc<Self>) {
        self.lent.serve(&self.way());
    }
}
