//! What teams hold of their quotas.
//!
//! `shares:<team>` is a hash: of each execution `<cpu> <memory> <since>`, and under `sandboxes`, `cpu` and `memory` the sums.
//! `shares` is the set of the teams that hold something.
//!
//! While Redis is away each process counts on from the last word that it had ([`ports::Shares`] says how much too much that may
//! grant), and tells Redis afterwards what it granted and gave back.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use model::{ExecutionId, Quota, TeamId};
use ports::shares::{Beyond, Held, Share};
use redis::Script;

use super::link::{Away, Link};
use super::tell::{Tell, Teller};

/// Executions that are looked up, and shares that are noted, at once.
const AT_ONCE: usize = 1000;
/// Teams of which the last word is remembered, for when Redis is away.
const TEAMS_MAX: usize = 65_536;

const SUMS: &str = r"
local function sums()
  local held = redis.call('HMGET', KEYS[1], 'sandboxes', 'cpu', 'memory')
  return tonumber(held[1]) or 0, tonumber(held[2]) or 0, tonumber(held[3]) or 0
end
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function add(execution, cpu, memory)
  redis.call('HSET', KEYS[1], execution, string.format('%.0f %.0f %.0f', cpu, memory, now()))
  redis.call('HINCRBY', KEYS[1], 'sandboxes', 1)
  redis.call('HINCRBY', KEYS[1], 'cpu', cpu)
  redis.call('HINCRBY', KEYS[1], 'memory', memory)
  redis.call('SADD', KEYS[2], ARGV[1])
end
local function drop(execution)
  local share = redis.call('HGET', KEYS[1], execution)
  if not share then return false end
  local cpu, memory = string.match(share, '^(%d+) (%d+)')
  redis.call('HDEL', KEYS[1], execution)
  if redis.call('HINCRBY', KEYS[1], 'sandboxes', -1) <= 0 then
    redis.call('DEL', KEYS[1])
    redis.call('SREM', KEYS[2], ARGV[1])
  else
    redis.call('HINCRBY', KEYS[1], 'cpu', -cpu)
    redis.call('HINCRBY', KEYS[1], 'memory', -memory)
  end
  return {cpu, memory}
end
local function told(what)
  local sandboxes, cpu, memory = sums()
  return {what, sandboxes, cpu, memory}
end
";

/// 0 where it is taken, else which limit is reached.
const CLAIM: &str = r"
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then return told(0) end
local sandboxes, cpu, memory = sums()
if sandboxes + 1 > tonumber(ARGV[5]) then return told(1) end
if cpu + ARGV[3] > tonumber(ARGV[6]) then return told(2) end
if memory + ARGV[4] > tonumber(ARGV[7]) then return told(3) end
add(ARGV[2], ARGV[3], ARGV[4])
return told(0)
";

/// 1 where it was not there.
const HOLD: &str = r"
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then return told(0) end
add(ARGV[2], ARGV[3], ARGV[4])
return told(1)
";

const RELEASE: &str = r"
drop(ARGV[2])
return told(0)
";

const HAND_ON: &str = r"
local share = drop(ARGV[2])
if share and redis.call('HEXISTS', KEYS[1], ARGV[3]) == 0 then add(ARGV[3], share[1], share[2]) end
return told(0)
";

/// Drops those of the executions that have held their share for longer than so many milliseconds.
const PRUNE: &str = r"
local before = now() - tonumber(ARGV[2])
for n = 3, #ARGV do
  local share = redis.call('HGET', KEYS[1], ARGV[n])
  local since = share and string.match(share, '(%d+)$')
  if since and tonumber(since) < before then drop(ARGV[n]) end
end
return told(0)
";

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let script = |code: &str| Script::new(&format!("{SUMS}{code}"));
    Scripts {
        claim: script(CLAIM),
        hold: script(HOLD),
        release: script(RELEASE),
        hand_on: script(HAND_ON),
        prune: script(PRUNE),
    }
});

struct Scripts {
    claim: Script,
    hold: Script,
    release: Script,
    hand_on: Script,
    prune: Script,
}

/// What a script says: a word of its own, and the sums.
type Told = (u32, u32, u32, u64);

pub(super) struct Shares {
    link: Link,
    known: Arc<Known>,
    teller: Teller<News>,
}

/// What this process knows of the sums, to go on with while Redis is away.
#[derive(Default)]
struct Known(Mutex<Words>);

#[derive(Default)]
struct Words {
    /// The last word of Redis, and what was granted and given back since.
    sums: HashMap<TeamId, Held>,
    /// What was granted and given back while Redis is away: neither counts twice.
    granted: HashSet<ExecutionId>,
    released: HashSet<ExecutionId>,
}

impl Known {
    fn words(&self) -> MutexGuard<'_, Words> {
        self.0.lock().expect("nothing panics while it holds the words")
    }

    fn heard(&self, team: TeamId, &(_, sandboxes, cpu, memory_mib): &Told) {
        let held = Held {
            sandboxes,
            cpu,
            memory_mib,
        };
        let mut words = self.words();
        if held == Held::default() {
            words.sums.remove(&team);
        } else if words.sums.len() < TEAMS_MAX || words.sums.contains_key(&team) {
            words.sums.insert(team, held);
        }
    }

    /// Redis has been told all: what was counted meanwhile is in its words.
    fn is_told(&self) {
        let mut words = self.words();
        if !words.granted.is_empty() || !words.released.is_empty() {
            words.granted.clear();
            words.released.clear();
        }
    }
}

impl Words {
    fn claim(&mut self, share: Share, quota: &Quota) -> Result<(), Beyond> {
        if self.granted.contains(&share.execution) {
            return Ok(());
        }
        let held = self.sums.get(&share.team).copied().unwrap_or_default();
        let held = held.with(share.resources);
        if let Some(limit) = held.beyond(quota) {
            return Err(limit);
        }
        self.sums.insert(share.team, held);
        self.granted.insert(share.execution);
        self.released.remove(&share.execution);
        Ok(())
    }

    fn release(&mut self, share: Share) {
        self.granted.remove(&share.execution);
        if self.released.insert(share.execution)
            && let Some(held) = self.sums.get_mut(&share.team)
        {
            *held = held.without(share.resources);
        }
    }
}

/// What Redis is to be told.
#[derive(Clone)]
struct News {
    known: Arc<Known>,
    share: Share,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Hold,
    Release,
    HandOn(ExecutionId),
}

fn script<'a>(script: &'a Script, link: &Link, share: Share) -> redis::ScriptInvocation<'a> {
    let mut call = script.prepare_invoke();
    call.key(link.key(&format!("shares:{}", share.team)))
        .key(link.key("shares"))
        .arg(share.team.to_string())
        .arg(share.execution.to_string());
    call
}

fn claim_of(link: &Link, share: Share, with: &'static Script) -> redis::ScriptInvocation<'static> {
    let mut call = script(with, link, share);
    call.arg(share.resources.cpu).arg(share.resources.memory.0);
    call
}

#[async_trait]
impl Tell for News {
    async fn tell(&self, link: &Link) -> Result<(), Away> {
        let call = match self.what {
            What::Hold => claim_of(link, self.share, &SCRIPTS.hold),
            What::Release => script(&SCRIPTS.release, link, self.share),
            What::HandOn(to) => {
                let mut call = script(&SCRIPTS.hand_on, link, self.share);
                call.arg(to.to_string());
                call
            }
        };
        let told: Told = link.call(&call).await?;
        self.known.heard(self.share.team, &told);
        Ok(())
    }
}

impl Shares {
    pub(super) fn new(link: Link) -> Self {
        Self {
            teller: Teller::new(link.clone(), "shares"),
            known: Arc::default(),
            link,
        }
    }

    fn news(&self, share: Share, what: What) -> News {
        News {
            known: Arc::clone(&self.known),
            share,
            what,
        }
    }

    async fn claim_there(&self, share: Share, quota: &Quota) -> Result<Told, Away> {
        self.teller.all().await?;
        self.known.is_told();
        let mut claim = claim_of(&self.link, share, &SCRIPTS.claim);
        claim.arg(quota.sandboxes).arg(quota.cpu).arg(quota.memory.0);
        self.link.call(&claim).await
    }

    /// Those of the shares that Redis does not have, each once.
    async fn missing(&self, shares: &[Share]) -> Result<Vec<Share>, Away> {
        let mut teams: HashMap<TeamId, Vec<Share>> = HashMap::new();
        let mut seen = HashSet::new();
        for share in shares.iter().filter(|share| seen.insert(share.execution)) {
            teams.entry(share.team).or_default().push(*share);
        }
        let mut missing = Vec::new();
        for (team, shares) in teams {
            for shares in shares.chunks(AT_ONCE) {
                let mut ask = redis::cmd("HMGET");
                ask.arg(self.link.key(&format!("shares:{team}")));
                for share in shares {
                    ask.arg(share.execution.to_string());
                }
                let there: Vec<Option<String>> = self.link.query(&ask).await?;
                let absent = shares.iter().zip(there).filter(|(_, there)| there.is_none());
                missing.extend(absent.map(|(share, _)| *share));
            }
        }
        Ok(missing)
    }

    async fn hold_there(&self, shares: &[Share]) -> Result<Vec<Share>, Away> {
        self.teller.all().await?;
        self.known.is_told();
        let mut new = Vec::new();
        for share in self.missing(shares).await? {
            let told: Told = self
                .link
                .call(&claim_of(&self.link, share, &SCRIPTS.hold))
                .await?;
            self.known.heard(share.team, &told);
            if told.0 == 1 {
                new.push(share);
            }
        }
        // In the order in which they were asked for.
        let is_new: HashSet<ExecutionId> = new.iter().map(|share| share.execution).collect();
        let mut once = HashSet::new();
        let is_first = |share: &&Share| is_new.contains(&share.execution) && once.insert(share.execution);
        Ok(shares.iter().filter(is_first).copied().collect())
    }

    async fn prune_there(&self, live: &HashSet<ExecutionId>, unstored: Duration) -> Result<(), Away> {
        self.teller.all().await?;
        let mut ask = redis::cmd("SMEMBERS");
        ask.arg(self.link.key("shares"));
        let teams: Vec<String> = self.link.query(&ask).await?;
        for team in teams {
            let Ok(team) = team.parse::<TeamId>() else {
                continue;
            };
            let place = self.link.key(&format!("shares:{team}"));
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("HSCAN");
                scan.arg(&place).arg(cursor).arg("COUNT").arg(AT_ONCE);
                let (next, page): (u64, Vec<(String, String)>) = self.link.query(&scan).await?;
                let is_stray = |name: &str| {
                    let execution = name.parse::<ExecutionId>();
                    execution.is_ok_and(|execution| !live.contains(&execution))
                };
                let strays: Vec<_> = page
                    .into_iter()
                    .map(|(name, _)| name)
                    .filter(|name| is_stray(name))
                    .collect();
                if !strays.is_empty() {
                    let mut prune = SCRIPTS.prune.prepare_invoke();
                    prune
                        .key(&place)
                        .key(self.link.key("shares"))
                        .arg(team.to_string())
                        .arg(u64::try_from(unstored.as_millis()).unwrap_or(u64::MAX));
                    for stray in &strays {
                        prune.arg(stray);
                    }
                    let told: Told = self.link.call(&prune).await?;
                    self.known.heard(team, &told);
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Tells now, or later.
    async fn tell(&self, share: Share, what: What) {
        let told = self.teller.now(self.news(share, what)).await;
        if let Err(error) = told {
            tracing::debug!(%error, execution = %share.execution, "a share is told of when Redis is there");
            if let What::Release = what {
                self.known.words().release(share);
            }
        }
    }
}

#[async_trait]
impl ports::Shares for Shares {
    async fn claim(&self, share: Share, quota: &Quota) -> Result<(), Beyond> {
        match self.claim_there(share, quota).await {
            Ok(told) => {
                self.known.heard(share.team, &told);
                match told.0 {
                    1 => Err(Beyond::Sandboxes(quota.sandboxes)),
                    2 => Err(Beyond::Cpu(quota.cpu)),
                    3 => Err(Beyond::MemoryMib(quota.memory.0)),
                    _ => Ok(()),
                }
            }
            Err(error) => {
                metrics::counter!("atoll_redis_alone_total", "what" => "shares").increment(1);
                tracing::debug!(%error, team = %share.team, "a share is granted by this process alone");
                self.known.words().claim(share, quota)?;
                self.teller.soon(self.news(share, What::Hold));
                Ok(())
            }
        }
    }

    async fn hold(&self, shares: &[Share]) -> Vec<Share> {
        self.hold_there(shares).await.unwrap_or_else(|error| {
            // The next pass of the reconciler holds them.
            tracing::warn!(%error, shares = shares.len(), "what is there could not be noted");
            Vec::new()
        })
    }

    async fn release(&self, share: Share) {
        self.tell(share, What::Release).await;
    }

    fn release_soon(&self, share: Share) {
        if !self.link.is_up() {
            self.known.words().release(share);
        }
        self.teller.soon(self.news(share, What::Release));
    }

    async fn hand_on(&self, share: Share, to: ExecutionId) {
        self.tell(share, What::HandOn(to)).await;
    }

    async fn prune(&self, live: &HashSet<ExecutionId>, unstored: Duration) {
        if let Err(error) = self.prune_there(live, unstored).await {
            tracing::warn!(%error, "leaked shares were not looked for");
        }
    }

    async fn held(&self, team: TeamId) -> Held {
        let mut ask = redis::cmd("HMGET");
        ask.arg(self.link.key(&format!("shares:{team}")))
            .arg("sandboxes")
            .arg("cpu")
            .arg("memory");
        let told = self
            .link
            .query::<(Option<u32>, Option<u32>, Option<u64>)>(&ask)
            .await;
        match told {
            Ok((sandboxes, cpu, memory_mib)) => Held {
                sandboxes: sandboxes.unwrap_or_default(),
                cpu: cpu.unwrap_or_default(),
                memory_mib: memory_mib.unwrap_or_default(),
            },
            Err(_) => self.known.words().sums.get(&team).copied().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::Resources;

    use super::*;

    fn share(team: TeamId) -> Share {
        Share {
            team,
            execution: ExecutionId::random(),
            resources: Resources::default(),
        }
    }

    #[test]
    fn alone_it_goes_on_from_the_last_word_and_counts_nothing_twice() {
        let (known, team) = (Known::default(), TeamId::random());
        let quota = Quota {
            sandboxes: 3,
            ..Quota::default()
        };
        let Resources { cpu, memory, .. } = Resources::default();
        known.heard(team, &(0, 1, cpu, u64::from(memory.0)));
        let mut words = known.words();
        let (first, second) = (share(team), share(team));
        assert_eq!(words.claim(first, &quota), Ok(()));
        assert_eq!(words.claim(second, &quota), Ok(()));
        assert_eq!(words.claim(second, &quota), Ok(()));
        assert_eq!(words.claim(share(team), &quota), Err(Beyond::Sandboxes(3)));
        words.release(first);
        words.release(first);
        assert_eq!(words.sums[&team].sandboxes, 2);
        assert_eq!(words.claim(share(team), &quota), Ok(()));
        // Of a team that it never heard of it knows nothing.
        assert_eq!(words.claim(share(TeamId::random()), &quota), Ok(()));
    }
}
