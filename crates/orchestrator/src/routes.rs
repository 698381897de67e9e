//! Routes follow phases. A catalog that is away stops no operation: the reconciler publishes and withdraws what was
//! missed.
use model::{Sandbox, SandboxId, Seat};
use ports::{ManagerError, Route};

use crate::orchestrator::Orchestrator;

/// Whether a route to `seat` is what the sandbox is to have.
fn is_reachable(sandbox: &Sandbox, seat: Seat) -> bool {
    sandbox.phase.is_routable() && sandbox.phase.seat() == Some(seat)
}

impl Orchestrator {
    /// Makes a sandbox reachable at `seat`. The caller then writes what makes that true, or withdraws.
    pub(crate) async fn publish(&self, sandbox: &Sandbox, seat: Seat) -> Result<(), ManagerError> {
        let tokens = self.tokens().await?;
        let route = Route {
            sandbox: sandbox.id,
            seat,
            version: sandbox.version,
            envd_token: tokens.envd(sandbox),
            traffic_token: tokens.traffic(sandbox),
            mask_host: sandbox.network.mask_host.clone(),
        };
        if let Err(error) = self.parts.catalog.publish(route).await {
            tracing::error!(%error, sandbox = %sandbox.id, "a route was not published; the reconciler tries again");
            self.nudge.notify_one();
        }
        Ok(())
    }

    /// Publishes the route of a running sandbox again, after the fact. A kill may have withdrawn it since the caller
    /// read: that is looked up afterwards.
    pub(crate) async fn publish_again(&self, sandbox: &Sandbox) -> Result<(), ManagerError> {
        let Some(seat) = sandbox.phase.seat().filter(|_| sandbox.phase.is_routable()) else {
            return Ok(());
        };
        self.publish(sandbox, seat).await?;
        if !self
            .stored(sandbox.id)
            .await?
            .is_some_and(|now| is_reachable(&now, seat))
        {
            self.withdraw(sandbox.id, seat).await;
        }
        Ok(())
    }

    /// Takes back a route that was published for a write that was refused. Where somebody else's write made it true, it
    /// stays: taking it away would cut that one's streams.
    pub(crate) async fn unpublish(&self, id: SandboxId, seat: Seat) {
        let stored = self.stored(id).await;
        if !stored.is_ok_and(|now| now.is_some_and(|now| is_reachable(&now, seat))) {
            self.withdraw(id, seat).await;
        }
    }

    /// Makes a sandbox unreachable at `seat`, and cuts its streams. Whether it is: where it is not, the reconciler tries again.
    pub(crate) async fn withdraw(&self, id: SandboxId, seat: Seat) -> bool {
        let withdrawn = self.parts.catalog.withdraw(id, seat).await;
        if let Err(error) = &withdrawn {
            tracing::error!(%error, sandbox = %id, "a route was not withdrawn; the reconciler tries again");
            self.nudge.notify_one();
        }
        withdrawn.is_ok()
    }
}
