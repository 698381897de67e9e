//! Rates of each team, as token buckets that all processes share.
//!
//! `limit:<what>:<team>` is a hash of the tokens and the time, by Redis' clock, at which they were counted; it goes by itself when
//! the bucket is full again. Of a large bucket a process takes a few ahead, so that most of what it lets through asks nobody.
//! While Redis is away each process has buckets of its own, which have been drained by what this process let through before: see
//! [`ports::Limits`] for how much too much that is.
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use model::TeamId;
use ports::limits::{Memory, Rate};
use redis::Script;
use tokio::time::Instant;

use super::link::Link;

/// Says how many of so many are taken, or, below zero, how many microseconds to wait.
const TAKE: &str = r"
local rate, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(bucket[1]) or burst
local at = tonumber(bucket[2]) or now
-- A clock that was set back gives nothing, and takes nothing.
local passed = math.max(now - at, 0)
tokens = math.min(tokens + passed * rate / 1000000, burst)
local said
if tokens >= 1 then
  said = math.min(wanted, math.floor(tokens))
  tokens = tokens - said
else
  said = -math.max(math.ceil((1 - tokens) * 1000000 / math.max(rate, 1)), 1)
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.0f', now))
local full = math.ceil((burst - tokens) * 1000 / math.max(rate, 0.001)) + 1000
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.min(full, 86400000)))
return said
";

/// The longest wait that is told: nothing comes back of a rate of nothing.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// What is taken ahead is so small a part of a burst, rounded down: small bursts are counted one by one.
const AHEAD_OF_BURST: u32 = 1000;
/// What was taken ahead and not used by then is lost.
const AHEAD_FOR: Duration = Duration::from_secs(1);
/// Teams beyond which those that took nothing for a while are looked for and dropped.
const AHEAD_KEPT: usize = 1024;

pub(super) struct Limits {
    link: Link,
    take: Script,
    own: Memory,
    ahead: Mutex<TakenAhead>,
}

#[derive(Default)]
struct TakenAhead {
    all: HashMap<(TeamId, &'static str), Ahead>,
    /// How many there were after the last look.
    kept: usize,
}

impl TakenAhead {
    fn drop_over(&mut self, now: Instant) {
        if self.all.len() <= 2 * self.kept.max(AHEAD_KEPT) {
            return;
        }
        self.all.retain(|_, ahead| ahead.until > now);
        self.kept = self.all.len();
    }
}

/// What was taken ahead.
struct Ahead {
    left: u32,
    until: Instant,
    /// Whether somebody asks for more: of many that come at once one takes ahead.
    is_asking: bool,
}

impl Limits {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            take: Script::new(TAKE),
            own: Memory::default(),
            ahead: Mutex::default(),
        }
    }

    /// How many to ask for; none where one was taken ahead.
    fn wanted(&self, team: TeamId, what: &'static str, rate: Rate) -> u32 {
        let few = rate.burst / AHEAD_OF_BURST;
        if few < 2 {
            return 1;
        }
        let now = Instant::now();
        let mut taken = self.ahead.lock().expect(UNPOISONED);
        taken.drop_over(now);
        let ahead = taken.all.entry((team, what)).or_insert(Ahead {
            left: 0,
            until: now,
            is_asking: false,
        });
        if ahead.until <= now {
            // Whoever asked and did not come back is not waited for.
            (ahead.left, ahead.is_asking) = (0, false);
        }
        if ahead.left > 0 {
            ahead.left -= 1;
            return 0;
        }
        if ahead.is_asking {
            return 1;
        }
        (ahead.is_asking, ahead.until) = (true, now + AHEAD_FOR);
        few
    }

    /// Keeps what was given beyond the one that was needed.
    fn keep(&self, team: TeamId, what: &'static str, given: u32) {
        let mut taken = self.ahead.lock().expect(UNPOISONED);
        if let Some(ahead) = taken.all.get_mut(&(team, what)) {
            *ahead = Ahead {
                left: given.saturating_sub(1),
                until: Instant::now() + AHEAD_FOR,
                is_asking: false,
            };
        }
    }
}

#[async_trait]
impl ports::Limits for Limits {
    async fn take(&self, team: TeamId, what: &'static str, rate: Rate) -> Result<(), Duration> {
        let wanted = self.wanted(team, what, rate);
        if wanted > 0 {
            let mut take = self.take.prepare_invoke();
            take.key(self.link.key(&format!("limit:{what}:{team}")))
                .arg(rate.per_second)
                .arg(rate.burst)
                .arg(wanted);
            match self.link.call::<i64>(&take).await {
                Ok(given) if given > 0 => {
                    if wanted > 1 {
                        self.keep(team, what, u32::try_from(given).unwrap_or(1));
                    }
                }
                Ok(wait) => return Err(Duration::from_micros(wait.unsigned_abs()).min(WAIT_MAX)),
                Err(error) => {
                    metrics::counter!("atoll_redis_alone_total", "what" => "limits").increment(1);
                    tracing::debug!(%error, %team, what, "a rate is counted by this process alone");
                    return self.own.take_now(team, what, rate);
                }
            }
        }
        // What this process lets through counts here too, so that it begins with less when it is alone.
        let _ = self.own.take_now(team, what, rate);
        Ok(())
    }
}

const UNPOISONED: &str = "nothing panics while it holds what was taken ahead";
