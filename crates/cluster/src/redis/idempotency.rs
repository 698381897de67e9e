//! What was answered to which idempotency key.
//!
//! `key:<team>:<key>` says `L <digest> <hand>` while a request is under way, for as long as its lease, and `A <digest> <sandbox>`
//! when it is answered, for as long as answers are kept. `keys:<team>` orders the answered keys by time, so that the oldest go
//! where there are too many.
use async_trait::async_trait;
use model::{SandboxId, TeamId};
use ports::IdempotencyError;
use ports::idempotency::{Begun, Lease, Terms, fresh_hand};
use redis::Script;

use super::link::{Away, Link};
use super::tell::{Tell, Teller};

/// What stands under the key; nothing where it is ours now.
const BEGIN: &str = r"
local stands = redis.call('GET', KEYS[1])
if stands then return stands end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
";

const KEEP: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
";

const ABANDON: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
";

/// Where somebody else has the key by now, nothing is answered.
const ANSWER: &str = r"
local stands = redis.call('GET', KEYS[1])
if stands and stands ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[2], string.format('%.0f', now), ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - ARGV[3]))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[4])
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], over)
  for n = 1, #oldest, 2 do redis.call('DEL', ARGV[6] .. oldest[n]) end
end
return 1
";

pub(super) struct Idempotency {
    link: Link,
    terms: Terms,
    begin: Script,
    keep: Script,
    teller: Teller<News>,
}

/// What became of a request.
#[derive(Clone)]
struct News {
    team: TeamId,
    key: String,
    leased: String,
    /// `None` where it made nothing.
    answer: Option<(String, Terms)>,
}

/// Of both: a script is its text, and its digest is made once.
struct Scripts {
    answer: Script,
    abandon: Script,
}

static SCRIPTS: std::sync::LazyLock<Scripts> = std::sync::LazyLock::new(|| Scripts {
    answer: Script::new(ANSWER),
    abandon: Script::new(ABANDON),
});

fn place(link: &Link, team: TeamId, key: &str) -> String {
    link.key(&format!("key:{team}:{key}"))
}

fn leased(digest: &[u8; 32], hand: u128) -> String {
    format!("L {} {hand:032x}", hex(digest))
}

fn hex(digest: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[async_trait]
impl Tell for News {
    async fn tell(&self, link: &Link) -> Result<(), Away> {
        let place = place(link, self.team, &self.key);
        let Some((answer, terms)) = &self.answer else {
            let mut abandon = SCRIPTS.abandon.prepare_invoke();
            abandon.key(place).arg(&self.leased);
            return link.call(&abandon).await;
        };
        let mut tell = SCRIPTS.answer.prepare_invoke();
        tell.key(place)
            .key(link.key(&format!("keys:{}", self.team)))
            .arg(&self.leased)
            .arg(answer)
            .arg(millis(terms.kept))
            .arg(terms.answers_max)
            .arg(&self.key)
            .arg(link.key(&format!("key:{}:", self.team)));
        link.call(&tell).await
    }
}

impl Idempotency {
    pub(super) fn new(link: Link, terms: Terms) -> Self {
        Self {
            teller: Teller::new(link.clone(), "idempotency"),
            link,
            terms,
            begin: Script::new(BEGIN),
            keep: Script::new(KEEP),
        }
    }
}

fn away(error: Away) -> IdempotencyError {
    IdempotencyError::Away(error.into())
}

#[async_trait]
impl ports::Idempotency for Idempotency {
    async fn begin(&self, team: TeamId, key: &str, digest: [u8; 32]) -> Result<Begun, IdempotencyError> {
        self.teller.all().await.map_err(away)?;
        let hand = fresh_hand();
        let mut begin = self.begin.prepare_invoke();
        begin
            .key(place(&self.link, team, key))
            .arg(leased(&digest, hand))
            .arg(millis(self.terms.lease));
        let stands: Result<Option<String>, Away> = self.link.call(&begin).await;
        let stands = stands.map_err(|error| {
            // It may have been taken all the same, by a hand that nobody has.
            self.teller.soon(News {
                team,
                key: key.to_owned(),
                leased: leased(&digest, hand),
                answer: None,
            });
            away(error)
        })?;
        let Some(stands) = stands else {
            return Ok(Begun::Go(Lease {
                team,
                key: key.to_owned(),
                digest,
                hand,
            }));
        };
        let mut parts = stands.split(' ');
        let (state, known, rest) = (parts.next(), parts.next(), parts.next());
        if known != Some(hex(&digest).as_str()) {
            return Err(IdempotencyError::Mismatch);
        }
        match (state, rest.and_then(|sandbox| sandbox.parse().ok())) {
            (Some("A"), Some(sandbox)) => Ok(Begun::Done(sandbox)),
            (Some("L"), _) => Err(IdempotencyError::InProgress),
            _ => Err(away(Away::Foreign("an idempotency key"))),
        }
    }

    async fn keep(&self, lease: &Lease) {
        let mut keep = self.keep.prepare_invoke();
        keep.key(place(&self.link, lease.team, &lease.key))
            .arg(leased(&lease.digest, lease.hand))
            .arg(millis(self.terms.lease));
        if let Err(error) = self.link.call::<()>(&keep).await {
            tracing::debug!(%error, team = %lease.team, "a lease was not kept; it is tried again");
        }
    }

    async fn answer(&self, lease: Lease, sandbox: SandboxId) {
        let answer = format!("A {} {sandbox}", hex(&lease.digest));
        let news = News {
            team: lease.team,
            leased: leased(&lease.digest, lease.hand),
            key: lease.key,
            answer: Some((answer, self.terms)),
        };
        if let Err(error) = self.teller.now(news).await {
            tracing::warn!(%error, team = %lease.team, "an answer was not noted; it is noted when Redis is there");
        }
    }

    fn abandon(&self, lease: Lease) {
        self.teller.soon(News {
            team: lease.team,
            leased: leased(&lease.digest, lease.hand),
            key: lease.key,
            answer: None,
        });
    }

    fn terms(&self) -> Terms {
        self.terms
    }
}
