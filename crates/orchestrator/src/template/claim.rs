//! Who carries a build through, where several processes share the store ([`Config::shared`]): the one that the record names,
//! for as long as its beats count on. One whose beats stand still is followed by another.
//!
//! ```text
//!  nobody ──claim──▶ one ──beat, beat …──▶ over
//!     ▲               │ stands still for a minute, as seen by another
//!     └───released────┴──────claim──────▶ another: the first finds out at its next beat
//! ```
//!
//! [`Config::shared`]: crate::Config::shared
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use model::{Build, BuildId, BuildStatus, Runner};
use ports::ManagerError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::orchestrator::Orchestrator;

/// How often a process says that it lives. A build that is cancelled elsewhere ends within this time.
const BEAT: Duration = Duration::from_secs(5);
/// Whoever was not heard for so long is dead.
const LEASE: Duration = Duration::from_secs(60);
/// Whoever could not say so for this long stops, before another begins.
const SILENT_MAX: Duration = Duration::from_secs(40);

/// The beats of others, and when they were heard first.
#[derive(Default)]
pub(crate) struct Heard(Mutex<HashMap<BuildId, (Runner, Instant)>>);

impl Heard {
    /// Whether a build's runner lives, as far as was heard.
    pub(super) fn lives(&self, build: BuildId, runner: Runner, now: Instant) -> bool {
        let mut heard = self.0.lock().expect("nothing panics while it holds the beats");
        let (last, since) = heard.entry(build).or_insert((runner, now));
        if *last != runner {
            (*last, *since) = (runner, now);
        }
        now.duration_since(*since) < LEASE
    }

    /// Forgets builds that are over.
    pub(super) fn keep(&self, unfinished: &[Build]) {
        let mut heard = self.0.lock().expect("nothing panics while it holds the beats");
        heard.retain(|id, _| unfinished.iter().any(|build| build.id == *id));
    }
}

impl Orchestrator {
    /// Whether another process carries a build through.
    pub(super) fn is_anothers(&self, build: &Build) -> bool {
        self.parts.config.shared
            && build.runner.is_some_and(|runner| {
                runner.process != self.process && self.heard.lives(build.id, runner, Instant::now())
            })
    }

    /// Takes a build that nobody has, or whose runner, `before`, is dead; whether it is this process's now.
    pub(super) async fn claim_build(
        &self,
        id: BuildId,
        before: Option<Runner>,
    ) -> Result<bool, ManagerError> {
        if !self.parts.config.shared {
            return Ok(true);
        }
        let mine = Runner {
            process: self.process,
            beat: 0,
        };
        let take = |build: &mut Build| {
            if build.status == BuildStatus::Building && build.runner == before {
                build.runner = Some(mine);
            }
            Ok::<_, ManagerError>(())
        };
        let claimed = self.edit_build(id, take).await?;
        Ok(claimed.is_some_and(|build| build.runner == Some(mine)))
    }

    /// Says that this process is at a build until it is not any more: then it returns. A build that is over is cancelled, and
    /// nothing returns: whoever carries it through notes its end.
    pub(super) async fn keep_build(&self, id: BuildId, cancel: &CancellationToken) {
        if !self.parts.config.shared {
            return std::future::pending().await;
        }
        let mut said = Instant::now();
        loop {
            tokio::time::sleep(BEAT).await;
            let beat = |build: &mut Build| {
                if let Some(runner) = &mut build.runner
                    && runner.process == self.process
                    && build.status == BuildStatus::Building
                {
                    runner.beat += 1;
                }
                Ok::<_, ManagerError>(())
            };
            match self.edit_build(id, beat).await {
                Ok(Some(build)) if build.status == BuildStatus::Building => {
                    if build.runner.is_none_or(|runner| runner.process != self.process) {
                        tracing::warn!(build = %id, "a build was taken over by another process");
                        return;
                    }
                    said = Instant::now();
                }
                Ok(_) => {
                    cancel.cancel();
                    return std::future::pending().await;
                }
                Err(_) if said.elapsed() < SILENT_MAX => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(build = %id, error, "a build is left to other processes, for the store is away");
                    return;
                }
            }
        }
    }

    /// Leaves a build to the other processes.
    pub(super) async fn release_build(&self, id: BuildId) {
        if !self.parts.config.shared {
            return;
        }
        let release = |build: &mut Build| {
            if build.runner.is_some_and(|runner| runner.process == self.process) {
                build.runner = None;
            }
            Ok::<_, ManagerError>(())
        };
        if let Err(error) = self.edit_build(id, release).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(build = %id, error, "a build was not released; others wait for a minute");
        }
    }
}

#[cfg(test)]
mod tests {
    use model::{ProcessId, TemplateId};
    use ports::store::contract;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_runner_is_dead_when_its_beats_stand_still_for_a_minute() {
        let heard = Heard::default();
        let build = contract::build(TemplateId::random());
        let mut runner = Runner {
            process: ProcessId::random(),
            beat: 0,
        };
        let lives = |runner| heard.lives(build.id, runner, Instant::now());
        assert!(lives(runner));
        tokio::time::advance(LEASE / 2).await;
        runner.beat += 1;
        assert!(lives(runner));
        tokio::time::advance(LEASE - Duration::from_secs(1)).await;
        assert!(lives(runner));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!lives(runner));
        heard.keep(&[]);
        assert!(lives(runner), "who is seen for the first time lives");
    }
}
