//! Whether it is worth asking a peer: after some failures in a row nobody waits for it, and one asks for all.
//!
//! ```text
//! closed ──FAILURES_MAX in a row──▶ open ──its time is over──▶ half open: one probe
//!    ▲                                ▲                              │
//!    │                                └───it fails: twice the time───┤
//!    └──────────────────────────────────────it is answered───────────┘
//! ```
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// One lost connection is an accident, and a node that starts again is away for a moment.
pub(crate) const FAILURES_MAX: u32 = 5;
/// The first time.
pub(crate) const OPEN_FIRST: Duration = Duration::from_millis(250);
/// The longest: a node that is back is used again within it.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(5);

/// Counts what becomes of calls to one peer.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Of an open one: until when, and for how long in all.
    open: Option<(Instant, Duration)>,
    is_probing: bool,
}

/// The peer is not asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it did not answer {failures} times in a row, and is asked again in {} ms", retry_after.as_millis())]
pub struct Open {
    /// How often it did not answer.
    pub failures: u32,
    /// When it may be worth another try.
    pub retry_after: Duration,
}

/// A call that may go out.
pub(crate) struct Pass<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

impl Breaker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call out, or says when another may be worth it.
    pub(crate) fn enter(&self) -> Result<Pass<'_>, Open> {
        let mut state = self.state();
        let is_probe = match state.open {
            None => false,
            Some((until, _)) => {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() || state.is_probing {
                    return Err(Open {
                        failures: state.failures,
                        retry_after: left.max(OPEN_FIRST),
                    });
                }
                state.is_probing = true;
                true
            }
        };
        Ok(Pass {
            breaker: self,
            is_probe,
        })
    }
}

impl Pass<'_> {
    /// The peer answered, whatever it said.
    pub(crate) fn answered(self) {
        *self.breaker.state() = State::default();
    }

    /// The peer did not answer.
    pub(crate) fn failed(self) {
        let mut state = self.breaker.state();
        state.failures = state.failures.saturating_add(1);
        if state.failures < FAILURES_MAX {
            return;
        }
        let now = Instant::now();
        let wait = match state.open {
            // Those that went out before it opened say nothing new.
            Some(_) if !self.is_probe => return,
            Some((_, wait)) => (wait * 2).min(OPEN_MAX),
            None => OPEN_FIRST,
        };
        state.open = Some((now + wait, wait));
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.state().is_probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.enter().unwrap().failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_fails_again_and_again_is_left_alone_for_longer_and_longer() {
        let breaker = Breaker::default();
        fail(&breaker, FAILURES_MAX);
        let mut wait = OPEN_FIRST;
        for _ in 0..8 {
            assert!(breaker.enter().is_err());
            tokio::time::advance(wait - Duration::from_millis(1)).await;
            assert!(breaker.enter().is_err());
            tokio::time::advance(Duration::from_millis(1)).await;
            breaker.enter().unwrap().failed();
            wait = (wait * 2).min(OPEN_MAX);
        }
        assert_eq!(wait, OPEN_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_goes_out_and_its_answer_lets_all_others_out() {
        let breaker = Breaker::default();
        fail(&breaker, FAILURES_MAX);
        tokio::time::advance(OPEN_FIRST).await;
        let probe = breaker.enter().unwrap();
        assert!(breaker.enter().is_err());
        probe.answered();
        drop((breaker.enter().unwrap(), breaker.enter().unwrap()));
        fail(&breaker, FAILURES_MAX - 1);
        breaker.enter().unwrap().answered();
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_makes_room_for_another() {
        let breaker = Breaker::default();
        fail(&breaker, FAILURES_MAX);
        tokio::time::advance(OPEN_FIRST).await;
        drop(breaker.enter().unwrap());
        drop(breaker.enter().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_between_forgives_failures() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            fail(&breaker, FAILURES_MAX - 1);
            breaker.enter().unwrap().answered();
        }
    }
}
