//! Rates of each team, as token buckets that all processes share.
//!
//! `limit:<what>:<team>` is a hash of the tokens and the time, by Redis' clock, at which they were counted; it goes by itself when
//! the bucket is full again. While Redis is away each process has buckets of its own, which have been drained by what this process
//! let through before: see [`ports::Limits`] for how much too much that is.
use std::time::Duration;

use async_trait::async_trait;
use model::TeamId;
use ports::limits::{Memory, Rate};
use redis::Script;

use super::link::Link;

/// Says how many microseconds to wait; 0 where one is taken.
const TAKE: &str = r"
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(bucket[1]) or burst
local at = tonumber(bucket[2]) or now
-- A clock that was set back gives nothing, and takes nothing.
local passed = math.max(now - at, 0)
tokens = math.min(tokens + passed * rate / 1000000, burst)
local wait = 0
if tokens >= 1 then
  tokens = tokens - 1
else
  wait = math.ceil((1 - tokens) * 1000000 / math.max(rate, 1))
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.0f', now))
local full = math.ceil((burst - tokens) * 1000 / math.max(rate, 0.001)) + 1000
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(full, 86400000)))
return wait
";

/// The longest wait that is told: nothing comes back of a rate of nothing.
const WAIT_MAX: Duration = Duration::from_secs(3600);

pub(super) struct Limits {
    link: Link,
    take: Script,
    own: Memory,
}

impl Limits {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            take: Script::new(TAKE),
            own: Memory::default(),
        }
    }
}

#[async_trait]
impl ports::Limits for Limits {
    async fn take(&self, team: TeamId, what: &'static str, rate: Rate) -> Result<(), Duration> {
        let mut take = self.take.prepare_invoke();
        take.key(self.link.key(&format!("limit:{what}:{team}")))
            .arg(rate.per_second)
            .arg(rate.burst);
        match self.link.call::<u64>(&take).await {
            Ok(0) => {
                // What this process lets through counts here too, so that it begins with less when it is alone.
                let _ = self.own.take_now(team, what, rate);
                Ok(())
            }
            Ok(wait) => Err(Duration::from_micros(wait).min(WAIT_MAX)),
            Err(error) => {
                metrics::counter!("atoll_redis_alone_total", "what" => "limits").increment(1);
                tracing::debug!(%error, %team, what, "a rate is counted by this process alone");
                self.own.take_now(team, what, rate)
            }
        }
    }
}
