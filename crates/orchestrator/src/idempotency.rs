//! What was answered to which `Idempotency-Key` (contract 3.4): a create that is sent twice makes one sandbox.
//!
//! Kept in memory: a client that repeats a create over a restart of the daemon may get a second sandbox, which ends at
//! its time.
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{SandboxId, TeamId};
use ports::ManagerError;
use tokio::time::Instant;

/// Clients repeat within minutes; a day covers a laptop that slept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Some 200 bytes each: 3 MiB at most. Beyond that the oldest are forgotten early.
const REPLIES_MAX: usize = 16_384;

type Key = (TeamId, String);

#[derive(Default)]
pub(crate) struct Replies(Mutex<Table>);

#[derive(Default)]
struct Table {
    replies: HashMap<Key, Reply>,
    /// Answered keys, oldest first.
    answered: VecDeque<(Instant, Key)>,
}

struct Reply {
    digest: [u8; 32],
    /// `None` while the first request is under way.
    sandbox: Option<SandboxId>,
}

/// What a request with a key is to do.
pub(crate) enum First {
    /// Carry it out, and say how it went.
    Go(Ticket),
    /// It was carried out and made this sandbox.
    Done(SandboxId),
}

impl Replies {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("nothing panics while it holds the table")
    }

    /// Begins a request, or says what became of it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        team: TeamId,
        key: String,
        digest: [u8; 32],
    ) -> Result<First, ManagerError> {
        let key = (team, key);
        let mut table = self.table();
        table.forget_old();
        match table.replies.get(&key) {
            Some(reply) if reply.digest != digest => Err(ManagerError::IdempotencyMismatch),
            Some(Reply { sandbox: None, .. }) => Err(ManagerError::IdempotencyInProgress),
            Some(Reply {
                sandbox: Some(id), ..
            }) => Ok(First::Done(*id)),
            None => {
                table.replies.insert(
                    key.clone(),
                    Reply {
                        digest,
                        sandbox: None,
                    },
                );
                Ok(First::Go(Ticket {
                    replies: Arc::clone(self),
                    key,
                }))
            }
        }
    }
}

impl Table {
    fn forget_old(&mut self) {
        while let Some((at, _)) = self.answered.front() {
            if at.elapsed() <= KEPT && self.answered.len() < REPLIES_MAX {
                break;
            }
            if let Some((_, key)) = self.answered.pop_front() {
                self.replies.remove(&key);
            }
        }
    }
}

/// A request under way. Dropped without an answer, its key is free again: what failed may be tried again.
pub(crate) struct Ticket {
    replies: Arc<Replies>,
    key: Key,
}

impl Ticket {
    /// The request made this sandbox.
    pub(crate) fn answer(self, sandbox: SandboxId) {
        let mut table = self.replies.table();
        if let Some(reply) = table.replies.get_mut(&self.key) {
            reply.sandbox = Some(sandbox);
        }
        table.answered.push_back((Instant::now(), self.key.clone()));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.replies.table();
        if table
            .replies
            .get(&self.key)
            .is_some_and(|reply| reply.sandbox.is_none())
        {
            table.replies.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(replies: &Arc<Replies>, team: TeamId, digest: u8) -> Result<First, ManagerError> {
        replies.begin(team, "key".to_owned(), [digest; 32])
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_answers_as_it_did_for_a_day() {
        let replies = Arc::new(Replies::default());
        let (team, id) = (TeamId::random(), SandboxId::random());
        let Ok(First::Go(ticket)) = begin(&replies, team, 1) else {
            panic!("a fresh key was refused")
        };
        assert!(matches!(
            begin(&replies, team, 1),
            Err(ManagerError::IdempotencyInProgress)
        ));
        assert!(matches!(
            begin(&replies, team, 2),
            Err(ManagerError::IdempotencyMismatch)
        ));
        ticket.answer(id);
        assert!(matches!(begin(&replies, team, 1), Ok(First::Done(done)) if done == id));
        assert!(matches!(
            begin(&replies, team, 2),
            Err(ManagerError::IdempotencyMismatch)
        ));
        assert!(matches!(begin(&replies, TeamId::random(), 2), Ok(First::Go(_))));
        tokio::time::advance(KEPT + Duration::from_secs(1)).await;
        assert!(matches!(begin(&replies, team, 2), Ok(First::Go(_))));
    }

    #[test]
    fn a_key_whose_request_failed_is_free() {
        let replies = Arc::new(Replies::default());
        let team = TeamId::random();
        drop(begin(&replies, team, 1));
        assert!(matches!(begin(&replies, team, 2), Ok(First::Go(_))));
    }

    #[tokio::test]
    async fn a_flood_of_keys_is_bounded() {
        let replies = Arc::new(Replies::default());
        let team = TeamId::random();
        for n in 0..REPLIES_MAX + 10 {
            let Ok(First::Go(ticket)) = replies.begin(team, n.to_string(), [0; 32]) else {
                panic!("key {n}")
            };
            ticket.answer(SandboxId::random());
        }
        let table = replies.table();
        assert!(table.replies.len() <= REPLIES_MAX && table.answered.len() <= REPLIES_MAX);
    }
}
