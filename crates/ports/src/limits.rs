//! Rates of each team.
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use model::TeamId;
use tokio::time::Instant;

pub mod contract;

/// A rate: so many per second sustained, so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Sustained.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// Counts what teams do, and says when it is too much.
///
/// Limits that are shared by processes count together. While what is shared is away, each process counts by itself: of `n`
/// processes at most `n` times the burst, and `n` times the rate from then on, is let through in all.
///
/// A process may take a part of a large burst ahead, a hundredth of it in all at most, and lose what it does not use: then less
/// is let through, never more.
#[async_trait]
pub trait Limits: Send + Sync {
    /// Takes one of `what` from the team's share. `Err` says how long to wait until one is there again; nothing is taken.
    async fn take(&self, team: TeamId, what: &'static str, rate: Rate) -> Result<(), Duration>;
}

/// Buckets beyond which full ones, which are as good as none, are looked for and dropped.
const BUCKETS_KEPT: usize = 1024;

/// Token buckets of one process.
#[derive(Default)]
pub struct Memory(Mutex<Buckets>);

#[derive(Default)]
struct Buckets {
    all: HashMap<(TeamId, &'static str), Bucket>,
    /// How many there were after the last look.
    kept: usize,
}

struct Bucket {
    tokens: f64,
    at: Instant,
    rate: Rate,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let refilled = now.duration_since(self.at).as_secs_f64() * f64::from(self.rate.per_second);
        self.tokens = (self.tokens + refilled).min(f64::from(self.rate.burst));
        self.at = now;
    }
}

impl Buckets {
    fn drop_full(&mut self, now: Instant) {
        if self.all.len() <= 2 * self.kept.max(BUCKETS_KEPT) {
            return;
        }
        self.all.retain(|_, bucket| {
            bucket.fill(now);
            bucket.tokens < f64::from(bucket.rate.burst)
        });
        self.kept = self.all.len();
    }
}

impl Memory {
    /// Like [`Limits::take`], which waits for nobody here.
    ///
    /// # Errors
    /// How long to wait until one is there again.
    pub fn take_now(&self, team: TeamId, what: &'static str, rate: Rate) -> Result<(), Duration> {
        let now = Instant::now();
        let mut buckets = self.0.lock().expect("nothing panics while it holds the buckets");
        buckets.drop_full(now);
        let bucket = buckets.all.entry((team, what)).or_insert(Bucket {
            tokens: f64::from(rate.burst),
            at: now,
            rate,
        });
        bucket.rate = rate;
        bucket.fill(now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64(
                (1.0 - bucket.tokens) / f64::from(rate.per_second.max(1)),
            ))
        }
    }
}

#[async_trait]
impl Limits for Memory {
    async fn take(&self, team: TeamId, what: &'static str, rate: Rate) -> Result<(), Duration> {
        self.take_now(team, what, rate)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    crate::limit_contract!(async {
        let limits = Arc::new(Memory::default());
        ((), Arc::clone(&limits), limits)
    });

    #[tokio::test(start_paused = true)]
    async fn buckets_that_are_full_again_are_not_kept() {
        let limits = Memory::default();
        let rate = Rate {
            per_second: 10,
            burst: 2,
        };
        for _ in 0..20 {
            for _ in 0..BUCKETS_KEPT {
                limits.take_now(TeamId::random(), "starts", rate).unwrap();
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(limits.0.lock().unwrap().all.len() <= 2 * BUCKETS_KEPT + 1);
    }
}
