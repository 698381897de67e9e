//! Work, as a stream for each topic that one group reads.
//!
//! `queue:<topic>` is the stream: of each piece of work its id (`i`) and what is to be done (`b`). It is in the stream until it is
//! done or given up; what was taken is pending in the group `work`, with its number of attempts. `queue:<topic>:id:<id>` is there
//! while an id is known. `queue:<topic>:dead` is the stream of the newest dead letters.
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ports::QueueError;
use ports::queue::{BODY_BYTES_MAX, DeadLetter, Delivery, NO_WORD, Terms, short};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use redis::{RedisResult, Script};
use tokio::time::Instant;

use super::link::{Away, Link, failed, within_more};

/// Lines that wait for a next consumer.
const LINES_KEPT: usize = 8;
/// How long Redis may wait for work; then it is looked whether a consumer went silent.
const WAIT_MAX: Duration = Duration::from_millis(500);
const GROUP: &str = "work";
/// Pending entries that are looked through at once, for such as are in nobody's hand.
const LOOK_AT_ONCE: usize = 100;

const GROUP_THERE: &str = r"
local function group()
  if redis.call('EXISTS', KEYS[1]) == 0 or #redis.call('XINFO', 'GROUPS', KEYS[1]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[1], 'work', '0', 'MKSTREAM')
  end
end
";

/// 1 where it is there now, 0 where the id is known, -<n> where so much waits already.
const PUSH: &str = r"
group()
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local waiting = redis.call('XLEN', KEYS[1])
if waiting >= tonumber(ARGV[3]) then return -waiting end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[4])
redis.call('XADD', KEYS[1], '*', 'i', ARGV[1], 'b', ARGV[2])
return 1
";

const BURY: &str = r"
local function bury(id, attempts, why, most)
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    redis.call('XADD', KEYS[2], 'MAXLEN', most, '*', 'i', entry[2][2], 'b', entry[2][4], 'n', attempts, 'w', why)
  end
  redis.call('XACK', KEYS[1], 'work', id)
  redis.call('XDEL', KEYS[1], id)
end
";

/// What was taken and has been silent for too long goes to this consumer, or is buried: {id, work's id, body, attempt} of each.
const TAKE: &str = r"
group()
local consumer, most, silence = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local taken = {}
local from = '-'
while #taken < most do
  local pending = redis.call('XPENDING', KEYS[1], 'work', 'IDLE', silence, from, '+', ARGV[7])
  if #pending == 0 then break end
  for _, entry in ipairs(pending) do
    from = '(' .. entry[1]
    if entry[4] >= tonumber(ARGV[4]) then
      bury(entry[1], entry[4], ARGV[5], ARGV[6])
    elseif #taken < most then
      local claimed = redis.call('XCLAIM', KEYS[1], 'work', consumer, silence, entry[1])[1]
      if claimed then
        table.insert(taken, {claimed[1], claimed[2][2], claimed[2][4], entry[4] + 1})
      else
        redis.call('XACK', KEYS[1], 'work', entry[1])
      end
    end
  end
end
return taken
";

/// Whether it is in the hand that got it.
const IN_HAND: &str = r"
local function in_hand(id, attempt)
  local entry = redis.pcall('XPENDING', KEYS[1], 'work', id, id, 1)[1]
  return entry and type(entry) == 'table' and entry[4] == tonumber(attempt) and entry[2]
end
";

/// Waits for so long, or is buried.
const RETRY: &str = r"
local consumer = in_hand(ARGV[1], ARGV[2])
if not consumer then return 0 end
if tonumber(ARGV[2]) >= tonumber(ARGV[4]) then
  bury(ARGV[1], ARGV[2], ARGV[5], ARGV[6])
else
  redis.call('XCLAIM', KEYS[1], 'work', consumer, 0, ARGV[1], 'IDLE', ARGV[3], 'RETRYCOUNT', ARGV[2], 'JUSTID')
end
return 1
";

const KEEP: &str = r"
local consumer = in_hand(ARGV[1], ARGV[2])
if consumer then
  redis.call('XCLAIM', KEYS[1], 'work', consumer, 0, ARGV[1], 'IDLE', 0, 'RETRYCOUNT', ARGV[2], 'JUSTID')
end
return 0
";

const DONE: &str = r"
redis.pcall('XACK', KEYS[1], 'work', ARGV[1])
return redis.call('XDEL', KEYS[1], ARGV[1])
";

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    push: Script::new(&format!("{GROUP_THERE}{PUSH}")),
    take: Script::new(&format!("{GROUP_THERE}{BURY}{TAKE}")),
    retry: Script::new(&format!("{BURY}{IN_HAND}{RETRY}")),
    keep: Script::new(&format!("{IN_HAND}{KEEP}")),
    done: Script::new(DONE),
});

struct Scripts {
    push: Script,
    take: Script,
    retry: Script,
    keep: Script,
    done: Script,
}

pub(super) struct Queue {
    link: Link,
    terms: Terms,
    /// Lines for those who wait.
    lines: Mutex<Vec<MultiplexedConnection>>,
}

fn away(error: Away) -> QueueError {
    QueueError::Away(error.into())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn work(entry: StreamId) -> Option<Delivery> {
    Some(Delivery {
        id: entry.get("i")?,
        body: Bytes::from(entry.get::<Vec<u8>>("b")?),
        attempt: 1,
        receipt: entry.id,
    })
}

impl Queue {
    pub(super) fn new(link: Link, terms: Terms) -> Self {
        Self {
            link,
            terms,
            lines: Mutex::default(),
        }
    }

    fn place(&self, topic: &str) -> String {
        self.link.key(&format!("queue:{topic}"))
    }

    fn dead_place(&self, topic: &str) -> String {
        self.link.key(&format!("queue:{topic}:dead"))
    }

    /// What was taken before and is in nobody's hand any more.
    async fn take_over(&self, topic: &str, consumer: &str, most: usize) -> Result<Vec<Delivery>, Away> {
        let mut take = SCRIPTS.take.prepare_invoke();
        take.key(self.place(topic))
            .key(self.dead_place(topic))
            .arg(consumer)
            .arg(most)
            .arg(millis(self.terms.silence))
            .arg(self.terms.attempts_max)
            .arg(NO_WORD)
            .arg(self.terms.dead_max)
            .arg(LOOK_AT_ONCE);
        let taken: Vec<(String, String, Vec<u8>, u32)> = self.link.call(&take).await?;
        let delivery = |(receipt, id, body, attempt)| Delivery {
            id,
            body: Bytes::from(body),
            attempt,
            receipt,
        };
        Ok(taken.into_iter().map(delivery).collect())
    }

    /// What nobody has taken yet; waits for it.
    async fn take_new(
        &self,
        topic: &str,
        consumer: &str,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, Away> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(most);
        if wait > Duration::ZERO {
            // Zero would be for ever.
            read.arg("BLOCK").arg(millis(wait).max(1));
        }
        read.arg("STREAMS").arg(self.place(topic)).arg(">");
        let said: StreamReadReply = if wait > Duration::ZERO {
            let kept = self.lines.lock().expect(UNPOISONED).pop();
            let mut line = match kept {
                Some(line) => line,
                None => self.link.own().await?,
            };
            let said: RedisResult<_> = within_more(wait, read.query_async(&mut line)).await;
            let said = said.map_err(|error| failed(&error))?;
            let mut lines = self.lines.lock().expect(UNPOISONED);
            if lines.len() < LINES_KEPT {
                lines.push(line);
            }
            said
        } else {
            self.link.query(&read).await?
        };
        let entries = said.keys.into_iter().flat_map(|stream| stream.ids);
        Ok(entries.filter_map(work).collect())
    }

    async fn take_there(
        &self,
        topic: &str,
        consumer: &str,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, Away> {
        let deadline = Instant::now() + wait;
        loop {
            let mut taken = self.take_over(topic, consumer, most).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if taken.len() < most {
                // What failed is tried again after a while, of which Redis tells nobody who waits for something new.
                let wait = if taken.is_empty() {
                    left.min(WAIT_MAX).min(self.terms.backoff)
                } else {
                    Duration::ZERO
                };
                taken.extend(self.take_new(topic, consumer, most - taken.len(), wait).await?);
            }
            if !taken.is_empty() || left.is_zero() {
                return Ok(taken);
            }
        }
    }
}

const UNPOISONED: &str = "nothing panics while it holds the lines";

#[async_trait]
impl ports::Queue for Queue {
    async fn push(&self, topic: &str, id: &str, body: Bytes) -> Result<bool, QueueError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(QueueError::TooLarge(body.len()));
        }
        let mut push = SCRIPTS.push.prepare_invoke();
        push.key(self.place(topic))
            .key(self.link.key(&format!("queue:{topic}:id:{id}")))
            .arg(id)
            .arg(&body[..])
            .arg(self.terms.waiting_max)
            .arg(millis(self.terms.known_for));
        match self.link.call::<i64>(&push).await.map_err(away)? {
            1 => Ok(true),
            0 => Ok(false),
            waiting => Err(QueueError::Full(
                usize::try_from(waiting.unsigned_abs()).unwrap_or(usize::MAX),
            )),
        }
    }

    async fn take(
        &self,
        topic: &str,
        consumer: &str,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        let mut taken = self.take_there(topic, consumer, most, wait).await;
        // Redis lost its data while it waited for us, and the group with it.
        if matches!(&taken, Err(Away::Failed(why)) if why.contains("NOGROUP")) {
            taken = self.take_there(topic, consumer, most, wait).await;
        }
        // A line that was kept may have broken meanwhile.
        if taken.is_err() {
            self.lines.lock().expect(UNPOISONED).clear();
        }
        taken.map_err(away)
    }

    async fn done(&self, topic: &str, delivery: &Delivery) -> Result<(), QueueError> {
        let mut done = SCRIPTS.done.prepare_invoke();
        done.key(self.place(topic)).arg(&delivery.receipt);
        self.link.call::<()>(&done).await.map_err(away)
    }

    async fn retry(&self, topic: &str, delivery: &Delivery, why: &str) -> Result<(), QueueError> {
        // Silent for so long already, as if: then it is in nobody's hand after the pause.
        let pause = self.terms.pause_after(delivery.attempt);
        let idle = self.terms.silence.saturating_sub(pause);
        let mut retry = SCRIPTS.retry.prepare_invoke();
        retry
            .key(self.place(topic))
            .key(self.dead_place(topic))
            .arg(&delivery.receipt)
            .arg(delivery.attempt)
            .arg(millis(idle))
            .arg(self.terms.attempts_max)
            .arg(short(why))
            .arg(self.terms.dead_max);
        self.link.call::<()>(&retry).await.map_err(away)
    }

    async fn keep(&self, topic: &str, delivery: &Delivery) -> Result<(), QueueError> {
        let mut keep = SCRIPTS.keep.prepare_invoke();
        keep.key(self.place(topic))
            .arg(&delivery.receipt)
            .arg(delivery.attempt);
        self.link.call::<()>(&keep).await.map_err(away)
    }

    async fn dead(&self, topic: &str, most: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let mut ask = redis::cmd("XREVRANGE");
        ask.arg(self.dead_place(topic))
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(most);
        let dead: StreamRangeReply = self.link.query(&ask).await.map_err(away)?;
        let letter = |entry: StreamId| {
            Some(DeadLetter {
                id: entry.get("i")?,
                body: Bytes::from(entry.get::<Vec<u8>>("b")?),
                attempts: entry.get("n")?,
                why: entry.get("w")?,
            })
        };
        Ok(dead.ids.into_iter().filter_map(letter).collect())
    }

    fn terms(&self) -> Terms {
        self.terms
    }
}
