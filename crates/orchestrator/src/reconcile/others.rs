//! What other processes may be at. They share the store with this one, and nothing else: an operation of theirs shows in a
//! sandbox that is in transition, and its end in a write. Whoever is at it for long writes the record anew meanwhile, so that one
//! that was written by nobody for a while has nobody at it any more.
//!
//! Time is measured here, from when a version was seen first: the clocks of two machines are no measure. Whoever is taken for
//! dead too early loses nothing but its work: its next write is refused.
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Mutex;
use std::time::Duration;

use model::{Phase, Sandbox, SandboxId};
use tokio::time::Instant;

use super::Known;
use crate::orchestrator::Orchestrator;

/// Whoever is at a sandbox writes its record anew this often.
const TOUCH: Duration = Duration::from_secs(5);
/// Nobody is at it who has written nothing for so long: some writes may fail, or wait for the store.
const SILENCE: Duration = Duration::from_secs(20);
/// A node that pauses says so, and a kill may be carried out by many: this is for the words before.
const SHORT: Duration = Duration::from_secs(15);

/// Sandboxes in transition: the version that was seen, and since when.
#[derive(Default)]
pub(crate) struct Others(Mutex<HashMap<SandboxId, (u64, Instant)>>);

/// For how long an operation may leave a sandbox in a phase without a write; none where nobody is at it.
fn lasts(phase: Phase) -> Option<Duration> {
    match phase {
        Phase::Starting { .. } | Phase::Snapshotting { .. } => Some(SILENCE),
        Phase::Pausing { .. } | Phase::Killing { .. } => Some(SHORT),
        Phase::Running { .. } | Phase::Paused { .. } | Phase::Gone { .. } => None,
    }
}

impl Orchestrator {
    /// Carries out what may take long, and writes the record anew meanwhile, so that no other process takes this one for
    /// dead.
    pub(crate) async fn touching<T>(&self, id: SandboxId, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(TOUCH, work.as_mut()).await {
                Ok(done) => return done,
                Err(_) if !self.parts.config.shared => {}
                Err(_) => self.touch(id).await,
            }
        }
    }

    async fn touch(&self, id: SandboxId) {
        if let Ok(Some(sandbox)) = self.stored(id).await
            && lasts(sandbox.phase).is_some()
        {
            // Whoever wrote in between has touched it as well.
            let _ = self.parts.sandboxes.update(&sandbox).await;
        }
    }
}

impl Others {
    /// Whether somebody else may be at it.
    pub(super) fn may_be_at(&self, sandbox: &Sandbox, now: Instant) -> bool {
        let Some(lasts) = lasts(sandbox.phase) else {
            return false;
        };
        let mut seen = self
            .0
            .lock()
            .expect("nothing panics while it holds what was seen");
        let (version, since) = seen.entry(sandbox.id).or_insert((sandbox.version, now));
        if *version != sandbox.version {
            (*version, *since) = (sandbox.version, now);
        }
        now.duration_since(*since) < lasts
    }

    /// Forgets what is in no transition any more.
    pub(super) fn keep(&self, known: &Known) {
        let mut seen = self
            .0
            .lock()
            .expect("nothing panics while it holds what was seen");
        seen.retain(|id, _| known.get(id).is_some_and(|phase| lasts(*phase).is_some()));
    }
}

#[cfg(test)]
mod tests {
    use model::{BuildId, ExecutionId, NodeId, Origin, Seat, TeamId};
    use ports::store::contract;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_operation_is_left_alone_for_as_long_as_it_lasts_from_its_last_write() {
        let others = Others::default();
        let at = Seat {
            node: NodeId::random(),
            execution: ExecutionId::random(),
        };
        let mut sandbox = contract::sandbox(TeamId::random());
        sandbox.phase = Phase::Starting {
            at,
            from: Origin::Template(BuildId::random()),
        };
        assert!(others.may_be_at(&sandbox, Instant::now()));
        tokio::time::advance(SILENCE * 3 / 4).await;
        assert!(others.may_be_at(&sandbox, Instant::now()));
        sandbox.version += 1;
        tokio::time::advance(SILENCE / 2).await;
        assert!(
            others.may_be_at(&sandbox, Instant::now()),
            "it was written meanwhile"
        );
        tokio::time::advance(SILENCE / 2).await;
        assert!(others.may_be_at(&sandbox, Instant::now()));
        tokio::time::advance(SILENCE / 2).await;
        assert!(!others.may_be_at(&sandbox, Instant::now()));
        sandbox.phase = Phase::Running { at };
        assert!(!others.may_be_at(&sandbox, Instant::now()));
        others.keep(&Known::from([(sandbox.id, sandbox.phase)]));
        assert!(others.0.lock().unwrap().is_empty());
    }
}
