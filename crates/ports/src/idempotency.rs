//! What was answered to which `Idempotency-Key` (contract 3.4): a create that is sent twice makes one sandbox.
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use model::{Kind, SandboxId, TeamId};
use tokio::time::Instant;

pub mod contract;

/// Clients repeat within minutes; a day covers a laptop that slept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Of one team. Some 200 bytes each: 0.8 MiB. Beyond that the team's oldest are forgotten early; other teams' are not.
const REPLIES_MAX: usize = 4096;
/// A process that carries out a request says so three times in this long. The key of one that died is free after it.
const LEASE: Duration = Duration::from_secs(30);

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a key is its holder's without a word from him.
    pub lease: Duration,
    /// How long an answer is kept.
    pub kept: Duration,
    /// How many answers of one team are kept; the oldest are forgotten first.
    pub answers_max: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lease: LEASE,
            kept: KEPT,
            answers_max: REPLIES_MAX,
        }
    }
}

/// A key under which a request is carried out, in the hand of whoever does.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub team: TeamId,
    /// The key.
    pub key: String,
    /// What the request was.
    pub digest: [u8; 32],
    /// Tells this hand from another one, that took the key when this one was silent for too long.
    pub hand: u128,
}

/// What a request with a key is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Begun {
    /// Carry it out, and say how it went.
    Go(Lease),
    /// It was carried out and made this sandbox.
    Done(SandboxId),
}

/// Why a request with a key is not to be carried out.
#[derive(Debug, thiserror::Error)]
pub enum IdempotencyError {
    /// The key came before with another request.
    #[error("the key was used with a different request")]
    Mismatch,
    /// The first request with this key is under way.
    #[error("a request with this key is in progress")]
    InProgress,
    /// Nobody knows whether it came before.
    #[error("what keeps the keys is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl IdempotencyError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            IdempotencyError::Mismatch => Kind::Invalid,
            IdempotencyError::InProgress => Kind::Conflict,
            IdempotencyError::Away(_) => Kind::Unavailable,
        }
    }
}

/// What was answered to which key. A cache: a client that repeats a request after all of it is lost gets a second sandbox, which
/// ends at its time.
///
/// While what is shared by processes is away, no request with a key is begun: that it happens once is what the key was sent for.
#[async_trait]
pub trait Idempotency: Send + Sync {
    /// Begins a request, or says what became of it.
    async fn begin(&self, team: TeamId, key: &str, digest: [u8; 32]) -> Result<Begun, IdempotencyError>;
    /// Still at it. A lease that is not kept so for [`Terms::lease`] is free for the next who asks.
    async fn keep(&self, lease: &Lease);
    /// The request made this sandbox. Where that cannot be told, it is told as soon as it can be. Where somebody else took the key
    /// meanwhile, nothing is.
    async fn answer(&self, lease: Lease, sandbox: SandboxId);
    /// The request made nothing: its key is free, and what failed may be tried again. For whoever cannot wait, so it is done
    /// behind the caller's back, but before anything that this process begins with the key.
    fn abandon(&self, lease: Lease);
    /// How long what is kept.
    fn terms(&self) -> Terms;
}

/// The answers of one process.
#[derive(Default)]
pub struct Memory {
    terms: Terms,
    tables: Mutex<HashMap<TeamId, Table>>,
}

/// Of one team. There are only as many as have answers that are kept, or requests under way.
#[derive(Default)]
struct Table {
    replies: HashMap<String, Reply>,
    /// Answered keys, oldest first.
    answered: VecDeque<(Instant, String)>,
}

struct Reply {
    digest: [u8; 32],
    state: State,
}

enum State {
    /// The first request is under way, in this hand until then.
    Leased(u128, Instant),
    Answered(SandboxId),
}

impl Table {
    fn forget_old(&mut self, terms: &Terms) {
        while let Some((at, _)) = self.answered.front() {
            if at.elapsed() <= terms.kept && self.answered.len() < terms.answers_max {
                break;
            }
            if let Some((_, key)) = self.answered.pop_front() {
                self.replies.remove(&key);
            }
        }
        let now = Instant::now();
        self.replies
            .retain(|_, reply| !matches!(reply.state, State::Leased(_, until) if until <= now));
    }

    /// The reply of a key that is still in this hand.
    fn in_hand(&mut self, lease: &Lease) -> Option<&mut Reply> {
        let reply = self.replies.get_mut(&lease.key)?;
        matches!(reply.state, State::Leased(hand, _) if hand == lease.hand).then_some(reply)
    }
}

impl Memory {
    /// An empty one with other terms.
    #[must_use]
    pub fn with_terms(terms: Terms) -> Self {
        Self {
            terms,
            tables: Mutex::default(),
        }
    }

    fn tables(&self) -> MutexGuard<'_, HashMap<TeamId, Table>> {
        self.tables
            .lock()
            .expect("nothing panics while it holds the tables")
    }
}

/// A hand that nobody else has.
#[must_use]
pub fn fresh_hand() -> u128 {
    model::ExecutionId::random().0.as_u128()
}

#[async_trait]
impl Idempotency for Memory {
    async fn begin(&self, team: TeamId, key: &str, digest: [u8; 32]) -> Result<Begun, IdempotencyError> {
        let mut tables = self.tables();
        tables.retain(|_, table| {
            table.forget_old(&self.terms);
            !table.replies.is_empty()
        });
        let replies = &mut tables.entry(team).or_default().replies;
        match replies.get(key) {
            Some(reply) if reply.digest != digest => Err(IdempotencyError::Mismatch),
            Some(Reply {
                state: State::Leased(..),
                ..
            }) => Err(IdempotencyError::InProgress),
            Some(Reply {
                state: State::Answered(sandbox),
                ..
            }) => Ok(Begun::Done(*sandbox)),
            None => {
                let hand = fresh_hand();
                let state = State::Leased(hand, Instant::now() + self.terms.lease);
                replies.insert(key.to_owned(), Reply { digest, state });
                Ok(Begun::Go(Lease {
                    team,
                    key: key.to_owned(),
                    digest,
                    hand,
                }))
            }
        }
    }

    async fn keep(&self, lease: &Lease) {
        let mut tables = self.tables();
        if let Some(reply) = tables.get_mut(&lease.team).and_then(|table| table.in_hand(lease)) {
            reply.state = State::Leased(lease.hand, Instant::now() + self.terms.lease);
        }
    }

    async fn answer(&self, lease: Lease, sandbox: SandboxId) {
        let mut tables = self.tables();
        let table = tables.entry(lease.team).or_default();
        // Where the lease is over and nobody else took the key, it is answered all the same.
        if table.replies.contains_key(&lease.key) && table.in_hand(&lease).is_none() {
            return;
        }
        let reply = Reply {
            digest: lease.digest,
            state: State::Answered(sandbox),
        };
        table.replies.insert(lease.key.clone(), reply);
        table.answered.push_back((Instant::now(), lease.key));
    }

    fn abandon(&self, lease: Lease) {
        let mut tables = self.tables();
        if let Some(table) = tables.get_mut(&lease.team)
            && table.in_hand(&lease).is_some()
        {
            table.replies.remove(&lease.key);
        }
    }

    fn terms(&self) -> Terms {
        self.terms
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    crate::idempotency_contract!(async {
        let kept = Arc::new(Memory::with_terms(contract::terms()));
        ((), Arc::clone(&kept), kept)
    });

    async fn answered(kept: &Memory, team: TeamId) {
        let Ok(Begun::Go(lease)) = kept.begin(team, "key", [1; 32]).await else {
            panic!("a fresh key was refused")
        };
        kept.answer(lease, SandboxId::random()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_a_day() {
        let (kept, team) = (Memory::default(), TeamId::random());
        answered(&kept, team).await;
        tokio::time::advance(KEPT).await;
        assert!(matches!(
            kept.begin(team, "key", [1; 32]).await,
            Ok(Begun::Done(_))
        ));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(matches!(kept.begin(team, "key", [2; 32]).await, Ok(Begun::Go(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_of_a_team_whose_answers_are_forgotten() {
        let kept = Memory::default();
        for _ in 0..2 {
            answered(&kept, TeamId::random()).await;
            tokio::time::advance(KEPT + Duration::from_secs(1)).await;
        }
        assert_eq!(kept.tables().len(), 1);
    }
}
