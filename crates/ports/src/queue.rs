//! Work that somebody is to do later, once somebody does it.
//!
//! ```text
//!   push ──▶ waiting ──take──▶ in hand ──done──▶ gone
//!                ▲                │  │
//!                └──── retry ─────┘  └── too often ──▶ dead letters (bounded, with the reason)
//!                └── silence ─────┘
//! ```
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use model::Kind;
use tokio::sync::Notify;
use tokio::time::Instant;

pub mod contract;

/// A piece of work that waits is lost with what keeps it: so much is enough to notice that nobody takes it.
const WAITING_MAX: usize = 100_000;
/// A piece of work is a name and some words, no content.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// What consumers say of a failure, as it is kept.
pub const WHY_BYTES_MAX: usize = 1024;
/// How long an id is known after its push.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// A consumer says `retry` or `done` well before; one that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(60);
/// A piece of work that fails so often fails always.
const ATTEMPTS_MAX: u32 = 8;
/// Of each topic: enough to see what is wrong.
const DEAD_MAX: usize = 1000;
/// The first retry comes after this long, each further one after twice as long, none after more than the silence.
const BACKOFF: Duration = Duration::from_millis(500);

/// How a queue deals with what goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a consumer may say nothing before somebody else gets his work.
    pub silence: Duration,
    /// How long the first retry waits; each further one waits twice as long, and none longer than `silence`.
    pub backoff: Duration,
    /// How often a piece of work is tried.
    pub attempts_max: u32,
    /// How much may wait in one topic.
    pub waiting_max: usize,
    /// How many dead letters of one topic are kept, the newest ones.
    pub dead_max: usize,
    /// How long the id of a push is known.
    pub known_for: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            silence: SILENCE,
            backoff: BACKOFF,
            attempts_max: ATTEMPTS_MAX,
            waiting_max: WAITING_MAX,
            dead_max: DEAD_MAX,
            known_for: KNOWN_FOR,
        }
    }
}

impl Terms {
    /// How long work waits that failed at its `attempt`th attempt.
    #[must_use]
    pub fn pause_after(&self, attempt: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        self.backoff.saturating_mul(doubled).min(self.silence)
    }
}

/// A piece of work in somebody's hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// What it was pushed under: the same for every attempt. A consumer who has done this once does it no second time.
    pub id: String,
    /// What is to be done.
    pub body: Bytes,
    /// The number of this attempt, from one.
    pub attempt: u32,
    /// The adapter's name for it.
    pub receipt: String,
}

/// A piece of work that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// What it was pushed under.
    pub id: String,
    /// What was to be done.
    pub body: Bytes,
    /// How often it was tried.
    pub attempts: u32,
    /// What its last consumer said, or that none came to an end.
    pub why: String,
}

/// Why something is not queued, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// So much waits that no more is taken: the caller does it himself, or tries again later.
    #[error("{0} pieces of work wait in the queue already: nobody takes them")]
    Full(usize),
    /// No piece of work is so large.
    #[error("a piece of work has {0} bytes; the most are {BODY_BYTES_MAX}")]
    TooLarge(usize),
    /// The queue is away. What was asked of it may have happened, or may still happen.
    #[error("the queue is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl QueueError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            QueueError::Full(_) => Kind::Exhausted,
            QueueError::TooLarge(_) => Kind::Invalid,
            QueueError::Away(_) => Kind::Unavailable,
        }
    }
}

/// What its consumers say when none of them does.
pub const NO_WORD: &str = "its consumers ended without a word";

/// Work for whoever is there, at least once. Consumers are idempotent: they know by [`Delivery::id`] what they have done.
///
/// A queue is a cache: what waits in it is lost with it. Whoever pushes can tell from the database, on his next pass, what is still
/// to be done, and pushes it again.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Puts work into a topic; `false` where this id was pushed within [`Terms::known_for`]. It waits until it is done.
    async fn push(&self, topic: &str, id: &str, body: Bytes) -> Result<bool, QueueError>;
    /// Takes at most `most` pieces of work for a consumer, those first that were taken and of which nothing was heard. Waits until
    /// there is one, and at most for `wait`.
    async fn take(
        &self,
        topic: &str,
        consumer: &str,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError>;
    /// It is done, and is never taken again.
    async fn done(&self, topic: &str, delivery: &Delivery) -> Result<(), QueueError>;
    /// It failed: somebody tries again after a while, or, after the last attempt, it becomes a dead letter with this reason.
    async fn retry(&self, topic: &str, delivery: &Delivery, why: &str) -> Result<(), QueueError>;
    /// Still at it: the silence begins anew.
    async fn keep(&self, topic: &str, delivery: &Delivery) -> Result<(), QueueError>;
    /// The newest dead letters, the newest first.
    async fn dead(&self, topic: &str, most: usize) -> Result<Vec<DeadLetter>, QueueError>;
    /// How it deals with what goes wrong.
    fn terms(&self) -> Terms;
}

/// Cuts a reason to what is kept of it.
#[must_use]
pub fn short(why: &str) -> &str {
    &why[..why.floor_char_boundary(WHY_BYTES_MAX)]
}

/// The queue of one process.
#[derive(Default)]
pub struct Memory {
    terms: Terms,
    topics: Mutex<HashMap<String, Topic>>,
    pushed: Notify,
}

#[derive(Default)]
struct Topic {
    next: u64,
    waiting: VecDeque<u64>,
    work: HashMap<u64, Work>,
    /// In the order of their pushes.
    known: VecDeque<(Instant, String)>,
    ids: HashSet<String>,
    dead: VecDeque<DeadLetter>,
}

struct Work {
    id: String,
    body: Bytes,
    attempts: u32,
    /// Until when it is in somebody's hand, and waits for nobody.
    until: Option<Instant>,
}

impl Topic {
    fn forget_ids(&mut self, known_for: Duration) {
        while self.known.front().is_some_and(|(at, _)| at.elapsed() > known_for) {
            if let Some((_, id)) = self.known.pop_front() {
                self.ids.remove(&id);
            }
        }
    }

    fn bury(&mut self, number: u64, why: &str, dead_max: usize) {
        let Some(work) = self.work.remove(&number) else {
            return;
        };
        self.dead.push_front(DeadLetter {
            id: work.id,
            body: work.body,
            attempts: work.attempts,
            why: short(why).to_owned(),
        });
        self.dead.truncate(dead_max);
    }

    /// What was taken and is in nobody's hand any more comes first, in its order; what was tried too often is buried.
    fn take(&mut self, most: usize, terms: &Terms) -> Vec<Delivery> {
        let now = Instant::now();
        let silent = |work: &Work| work.until.is_some_and(|until| until <= now);
        let mut numbers: Vec<u64> = self
            .work
            .iter()
            .filter_map(|(number, work)| silent(work).then_some(*number))
            .collect();
        numbers.sort_unstable();
        let over: Vec<u64> = numbers
            .extract_if(.., |number| self.work[number].attempts >= terms.attempts_max)
            .collect();
        for number in over {
            self.bury(number, NO_WORD, terms.dead_max);
        }
        numbers.truncate(most);
        while numbers.len() < most
            && let Some(number) = self.waiting.pop_front()
        {
            numbers.push(number);
        }
        let mut taken = Vec::new();
        for number in numbers {
            let Some(work) = self.work.get_mut(&number) else {
                continue;
            };
            work.attempts += 1;
            work.until = Some(now + terms.silence);
            taken.push(Delivery {
                id: work.id.clone(),
                body: work.body.clone(),
                attempt: work.attempts,
                receipt: number.to_string(),
            });
        }
        taken
    }

    /// What a delivery is of, while it is in the hand that got it.
    fn in_hand(&mut self, delivery: &Delivery) -> Option<(u64, &mut Work)> {
        let number = delivery.receipt.parse().ok()?;
        let work = self.work.get_mut(&number)?;
        (work.attempts == delivery.attempt).then_some((number, work))
    }

    fn next_end(&self) -> Option<Instant> {
        self.work.values().filter_map(|work| work.until).min()
    }
}

impl Memory {
    /// An empty one with other terms.
    #[must_use]
    pub fn with_terms(terms: Terms) -> Self {
        Self {
            terms,
            ..Self::default()
        }
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<String, Topic>> {
        self.topics
            .lock()
            .expect("nothing panics while it holds the topics")
    }

    fn with_topic<T>(&self, topic: &str, act: impl FnOnce(&mut Topic) -> T) -> T {
        act(self.topics().entry(topic.to_owned()).or_default())
    }
}

#[async_trait]
impl Queue for Memory {
    async fn push(&self, topic: &str, id: &str, body: Bytes) -> Result<bool, QueueError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(QueueError::TooLarge(body.len()));
        }
        let Terms {
            waiting_max,
            known_for,
            ..
        } = self.terms;
        let pushed = self.with_topic(topic, |topic| {
            topic.forget_ids(known_for);
            if topic.ids.contains(id) {
                return Ok(false);
            }
            if topic.work.len() >= waiting_max {
                return Err(QueueError::Full(topic.work.len()));
            }
            topic.next += 1;
            topic.ids.insert(id.to_owned());
            topic.known.push_back((Instant::now(), id.to_owned()));
            let work = Work {
                id: id.to_owned(),
                body,
                attempts: 0,
                until: None,
            };
            topic.work.insert(topic.next, work);
            topic.waiting.push_back(topic.next);
            Ok(true)
        });
        self.pushed.notify_waiters();
        pushed
    }

    async fn take(
        &self,
        topic: &str,
        _consumer: &str,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>, QueueError> {
        let deadline = Instant::now() + wait;
        loop {
            let pushed = self.pushed.notified();
            tokio::pin!(pushed);
            // From here on a push wakes us, also one before the first poll.
            pushed.as_mut().enable();
            let (taken, next_end) =
                self.with_topic(topic, |topic| (topic.take(most, &self.terms), topic.next_end()));
            if !taken.is_empty() || Instant::now() >= deadline {
                return Ok(taken);
            }
            let until = next_end.unwrap_or(deadline).min(deadline);
            let _ = tokio::time::timeout_at(until, pushed).await;
        }
    }

    async fn done(&self, topic: &str, delivery: &Delivery) -> Result<(), QueueError> {
        self.with_topic(topic, |topic| {
            // Whoever has it now does it for nothing: it is done.
            if let Ok(number) = delivery.receipt.parse::<u64>() {
                topic.work.remove(&number);
            }
        });
        Ok(())
    }

    async fn retry(&self, topic: &str, delivery: &Delivery, why: &str) -> Result<(), QueueError> {
        let Terms {
            attempts_max,
            dead_max,
            ..
        } = self.terms;
        let pause = self.terms.pause_after(delivery.attempt);
        self.with_topic(topic, |topic| {
            let Some((number, work)) = topic.in_hand(delivery) else {
                return;
            };
            work.until = Some(Instant::now() + pause);
            if work.attempts >= attempts_max {
                topic.bury(number, why, dead_max);
            }
        });
        self.pushed.notify_waiters();
        Ok(())
    }

    async fn keep(&self, topic: &str, delivery: &Delivery) -> Result<(), QueueError> {
        let silence = self.terms.silence;
        self.with_topic(topic, |topic| {
            if let Some((_, work)) = topic.in_hand(delivery) {
                work.until = Some(Instant::now() + silence);
            }
        });
        Ok(())
    }

    async fn dead(&self, topic: &str, most: usize) -> Result<Vec<DeadLetter>, QueueError> {
        Ok(self.with_topic(topic, |topic| topic.dead.iter().take(most).cloned().collect()))
    }

    fn terms(&self) -> Terms {
        self.terms
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    crate::queue_contract!(async {
        let queue = Arc::new(Memory::with_terms(contract::terms()));
        ((), Arc::clone(&queue), queue)
    });

    #[test]
    fn a_retry_waits_twice_as_long_as_the_last_one_and_never_longer_than_a_silence() {
        let terms = Terms::default();
        let pauses: Vec<_> = [1, 2, 3, 20, 40]
            .map(|attempt| terms.pause_after(attempt).as_millis())
            .into();
        assert_eq!(pauses, [500, 1000, 2000, 60_000, 60_000]);
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let why = "§".repeat(WHY_BYTES_MAX);
        assert_eq!(short(&why).len(), WHY_BYTES_MAX);
        assert_eq!(short(&format!("x{why}")).len(), WHY_BYTES_MAX - 1);
        assert_eq!(short("short"), "short");
    }
}
