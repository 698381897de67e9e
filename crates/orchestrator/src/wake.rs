use std::time::Duration;

use async_trait::async_trait;
use model::{PauseMode, Phase, Quota, Sandbox, SandboxId, Secret};
use ports::guest::ENVD_PORT;
use ports::{ManagerError, Presented, Wake, WakeRefused};
use tokio::time::Instant;

use crate::orchestrator::Orchestrator;
use crate::quota::life_max;
use crate::resume::{Wish, WithoutHome};
use crate::tokens::Tokens;

/// How long traffic is held while a sandbox is on its way into or out of a pause (contract 1.6).
const PATIENCE: Duration = Duration::from_secs(60);
/// A sandbox that traffic wakes lives at least this long (contract 1.6).
const LIFE_MIN: Duration = Duration::from_secs(300);
/// Routes may be published by another process: look again this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What traffic to a sandbox without a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// To nothing.
    Nowhere,
    /// It is on its way.
    Soon,
    /// To a resume.
    Resume,
}

fn lead(sandbox: &Sandbox) -> Lead {
    let wakes = |mode| sandbox.lifecycle.auto_resume && mode == PauseMode::Full;
    match sandbox.phase {
        // It goes on on another node, in a moment.
        Phase::Paused { .. } | Phase::Pausing { .. } if sandbox.is_moving() => Lead::Soon,
        Phase::Paused { mode, .. } if wakes(mode) => Lead::Resume,
        Phase::Pausing { mode, .. } if wakes(mode) => Lead::Soon,
        Phase::Paused { .. } | Phase::Pausing { .. } => Lead::Nowhere,
        Phase::Running { .. } | Phase::Snapshotting { .. } => Lead::Soon,
        // A resume or a restart under way; a fresh one is nobody's yet.
        Phase::Starting { .. } if sandbox.phase.state().is_some() => Lead::Soon,
        Phase::Starting { .. } | Phase::Killing { .. } | Phase::Gone { .. } => Lead::Nowhere,
    }
}

/// Whether what was presented opens what is asked for. The edge asks again once there is a route; this is so that
/// strangers wake nothing.
fn may_wake(sandbox: &Sandbox, presented: &Presented, tokens: &Tokens) -> bool {
    let (needed, given) = match presented.port {
        ENVD_PORT => (tokens.envd(sandbox), &presented.envd_token),
        _ => (tokens.traffic(sandbox), &presented.traffic_token),
    };
    let right = |needed: Secret<String>| {
        given
            .as_ref()
            .is_some_and(|given| needed.matches(given.as_bytes()))
    };
    needed.is_none_or(right)
}

/// How long a woken sandbox lives: as long as it was created or last connected for, within bounds.
fn life(timeout_seconds: u32, quota: &Quota) -> Duration {
    Duration::from_secs(u64::from(timeout_seconds))
        .max(LIFE_MIN)
        .min(life_max(quota))
}

fn refusal(error: ManagerError) -> WakeRefused {
    match error {
        ManagerError::NotFound(_) => WakeRefused::NotFound,
        ManagerError::Busy { .. } => WakeRefused::Transitioning,
        ManagerError::Exhausted { message, .. } => WakeRefused::Exhausted(message),
        error => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a sandbox was not woken"
            );
            WakeRefused::Failed
        }
    }
}

impl Orchestrator {
    async fn has_route(&self, id: SandboxId) -> bool {
        matches!(self.parts.catalog.find(id).await, Ok(Some(_)))
    }

    #[tracing::instrument(name = "sandbox.wake", skip_all, fields(sandbox = %id, port = presented.port))]
    async fn wake_sandbox(&self, id: SandboxId, presented: &Presented) -> Result<(), WakeRefused> {
        let deadline = Instant::now() + PATIENCE;
        let mut writes = self.writes.subscribe();
        loop {
            writes.borrow_and_update();
            if self.has_route(id).await {
                return Ok(());
            }
            let sandbox = self
                .stored(id)
                .await
                .map_err(refusal)?
                .ok_or(WakeRefused::NotFound)?;
            match lead(&sandbox) {
                Lead::Nowhere => return Err(WakeRefused::NotFound),
                Lead::Resume => {
                    let tokens = self.tokens().await.map_err(refusal)?;
                    if !may_wake(&sandbox, presented, tokens) {
                        return Err(WakeRefused::Denied);
                    }
                    return self.resume_for_traffic(sandbox, deadline).await.map_err(refusal);
                }
                Lead::Soon if Instant::now() >= deadline => return Err(WakeRefused::Transitioning),
                Lead::Soon => {}
            }
            let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
            let _ = tokio::time::timeout_at(look_again, writes.changed()).await;
        }
    }

    /// Resumes it, if nobody else does in this moment.
    async fn resume_for_traffic(&self, sandbox: Sandbox, deadline: Instant) -> Result<(), ManagerError> {
        let quota = self.team(sandbox.team).await?.quota;
        let (_locked, sandbox) = self.settled_by(sandbox.team, sandbox.id, deadline).await?;
        match lead(&sandbox) {
            Lead::Resume => {}
            Lead::Soon => return Ok(()),
            Lead::Nowhere => return Err(ManagerError::NotFound(sandbox.id)),
        }
        let timeout = life(sandbox.timeout_seconds, &quota);
        let wish = Wish {
            timeout,
            mode: PauseMode::Full,
            remember: false,
            auto_pause: None,
            // Nobody is there to be asked: a page that is served by what boots is worth more than one that is not.
            without_home: WithoutHome::Boot,
            is_move: false,
        };
        self.bring_back(sandbox, wish).await?;
        Ok(())
    }
}

#[async_trait]
impl Wake for Orchestrator {
    async fn wake(&self, sandbox: SandboxId, presented: Presented) -> Result<(), WakeRefused> {
        if self.has_route(sandbox).await {
            return Ok(());
        }
        let woken = self.detached(move |me| async move { Ok(me.wake_sandbox(sandbox, &presented).await) });
        woken.await.unwrap_or_else(|error| Err(refusal(error)))
    }
}

#[cfg(test)]
mod tests {
    use model::{BuildId, ExecutionId, KillReason, Lifecycle, NodeId, OnTimeout, Origin, Seat, TeamId};
    use ports::store::contract;

    use super::*;

    fn check(auto_resume: bool, phase: Phase, expected: Lead) {
        let on_timeout = OnTimeout::Pause(PauseMode::Full);
        let lifecycle = Lifecycle {
            on_timeout,
            auto_resume,
        };
        let sandbox = Sandbox {
            phase,
            lifecycle,
            ..contract::sandbox(TeamId::random())
        };
        assert_eq!(lead(&sandbox), expected, "{phase:?}");
    }

    #[test]
    fn traffic_wakes_what_may_be_woken_and_has_memory() {
        let at = Seat {
            node: NodeId::random(),
            execution: ExecutionId::random(),
        };
        let build = BuildId::random();
        let (home, why) = (at.node, KillReason::Requested);
        let paused = |mode| Phase::Paused {
            snapshot: build,
            mode,
            home,
        };
        let pausing = |mode| Phase::Pausing {
            at,
            into: build,
            mode,
        };
        let resuming = Phase::Starting {
            at,
            from: Origin::Snapshot {
                build,
                mode: PauseMode::Full,
                home,
            },
        };
        check(true, paused(PauseMode::Full), Lead::Resume);
        check(false, paused(PauseMode::Full), Lead::Nowhere);
        check(true, paused(PauseMode::Filesystem), Lead::Nowhere);
        check(true, pausing(PauseMode::Full), Lead::Soon);
        check(false, pausing(PauseMode::Full), Lead::Nowhere);
        check(false, resuming, Lead::Soon);
        check(false, Phase::Running { at }, Lead::Soon);
        check(
            true,
            Phase::Starting {
                at,
                from: Origin::Template(build),
            },
            Lead::Nowhere,
        );
        check(true, Phase::Killing { at, why }, Lead::Nowhere);
        check(true, Phase::Gone { why }, Lead::Nowhere);
    }

    #[test]
    fn only_the_right_token_of_the_right_kind_wakes() {
        let tokens = Tokens::new(Secret::new(vec![1; 32]));
        let mut sandbox = contract::sandbox(TeamId::random());
        sandbox.network.public_traffic = Some(false);
        let envd = tokens.envd(&sandbox).map(|token| token.expose().clone());
        let traffic = tokens.traffic(&sandbox).map(|token| token.expose().clone());
        let with = |port, envd_token: &Option<String>, traffic_token: &Option<String>| {
            let presented = Presented {
                port,
                envd_token: envd_token.clone(),
                traffic_token: traffic_token.clone(),
            };
            may_wake(&sandbox, &presented, &tokens)
        };
        assert!(with(ENVD_PORT, &envd, &None) && with(8080, &None, &traffic));
        assert!(!with(ENVD_PORT, &None, &traffic) && !with(8080, &envd, &None));
        assert!(!with(ENVD_PORT, &traffic, &envd) && !with(8080, &traffic, &envd));
        let open = Sandbox {
            secure: false,
            network: Default::default(),
            ..sandbox.clone()
        };
        assert!(may_wake(
            &open,
            &Presented {
                port: 80,
                ..Presented::default()
            },
            &tokens
        ));
        assert!(may_wake(
            &open,
            &Presented {
                port: ENVD_PORT,
                ..Presented::default()
            },
            &tokens
        ));
    }

    #[test]
    fn a_woken_sandbox_lives_as_long_as_it_was_asked_to_within_bounds() {
        let quota = Quota {
            life_hours: 1,
            ..Quota::default()
        };
        assert_eq!(life(15, &quota), LIFE_MIN);
        assert_eq!(life(900, &quota), Duration::from_secs(900));
        assert_eq!(life(9000, &quota), Duration::from_secs(3600));
    }
}
