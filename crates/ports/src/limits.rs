//! Rates of each team.
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use model::TeamId;
use tokio::time::Instant;

/// A rate: so many per second sustained, so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Sustained.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// Counts what teams do, and says when it is too much.
#[async_trait]
pub trait Limits: Send + Sync {
    /// Takes one of `what` from the team's share. `Err` says how long to wait until one is there again; nothing is taken.
    async fn take(&self, team: TeamId, what: &'static str, rate: Rate) -> Result<(), Duration>;
}

/// Token buckets of one process.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<(TeamId, &'static str), Bucket>>);

struct Bucket {
    tokens: f64,
    at: Instant,
}

#[async_trait]
impl Limits for Memory {
    async fn take(&self, team: TeamId, what: &'static str, rate: Rate) -> Result<(), Duration> {
        let now = Instant::now();
        let mut buckets = self.0.lock().expect("nothing panics while it holds the buckets");
        let bucket = buckets.entry((team, what)).or_insert(Bucket {
            tokens: f64::from(rate.burst),
            at: now,
        });
        let refilled = now.duration_since(bucket.at).as_secs_f64() * f64::from(rate.per_second);
        bucket.tokens = (bucket.tokens + refilled).min(f64::from(rate.burst));
        bucket.at = now;
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
