//! A create that is sent twice with the same `Idempotency-Key` makes one sandbox (contract 3.4).
use std::pin::pin;
use std::sync::Arc;

use model::{Kind, SandboxId, TeamId};
use ports::idempotency::{Begun, Lease};
use ports::{Idempotency, IdempotencyError, ManagerError};

use crate::orchestrator::Orchestrator;

/// What a request with a key is to do.
pub(crate) enum First {
    /// Carry it out, and say how it went.
    Go(Ticket),
    /// It was carried out and made this sandbox.
    Done(SandboxId),
}

/// A request under way. Dropped without an answer, its key is free again: what failed may be tried again.
pub(crate) struct Ticket {
    kept: Arc<dyn Idempotency>,
    lease: Option<Lease>,
}

impl Ticket {
    /// The request made this sandbox.
    pub(crate) async fn answer(mut self, sandbox: SandboxId) {
        if let Some(lease) = self.lease.take() {
            self.kept.answer(lease, sandbox).await;
        }
    }

    /// Carries a request out, and says meanwhile that somebody does.
    pub(crate) async fn keep_during<T>(ticket: Option<&Self>, work: impl Future<Output = T>) -> T {
        let Some(Self {
            kept,
            lease: Some(lease),
        }) = ticket
        else {
            return work.await;
        };
        let period = kept.terms().lease / 3;
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(period, work.as_mut()).await {
                Ok(done) => return done,
                Err(_) => kept.keep(lease).await,
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.kept.abandon(lease);
        }
    }
}

impl Orchestrator {
    /// Begins a request with a key, or says what became of it.
    pub(crate) async fn begin_once(
        &self,
        team: TeamId,
        key: &str,
        digest: [u8; 32],
    ) -> Result<First, ManagerError> {
        let kept = &self.parts.idempotency;
        match kept.begin(team, key, digest).await {
            Ok(Begun::Done(sandbox)) => Ok(First::Done(sandbox)),
            Ok(Begun::Go(lease)) => Ok(First::Go(Ticket {
                kept: Arc::clone(kept),
                lease: Some(lease),
            })),
            Err(IdempotencyError::Mismatch) => Err(ManagerError::IdempotencyMismatch),
            Err(IdempotencyError::InProgress) => Err(ManagerError::IdempotencyInProgress),
            Err(IdempotencyError::Away(source)) => Err(ManagerError::Failed {
                step: "looking up the Idempotency-Key",
                kind: Kind::Unavailable,
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ports::idempotency::Memory;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_long_keeps_its_key() {
        let kept: Arc<dyn Idempotency> = Arc::new(Memory::default());
        let team = TeamId::random();
        let Ok(Begun::Go(lease)) = kept.begin(team, "key", [1; 32]).await else {
            panic!("a fresh key was refused")
        };
        let ticket = Ticket {
            kept: Arc::clone(&kept),
            lease: Some(lease),
        };
        let long = tokio::time::sleep(Duration::from_secs(600));
        Ticket::keep_during(Some(&ticket), long).await;
        let again = kept.begin(team, "key", [1; 32]).await;
        assert!(matches!(again, Err(IdempotencyError::InProgress)));
        drop(ticket);
        let again = kept.begin(team, "key", [2; 32]).await;
        assert!(matches!(again, Ok(Begun::Go(_))));
    }
}
