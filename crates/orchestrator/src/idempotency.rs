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
/// Of one team. Some 200 bytes each: 0.8 MiB. Beyond that the team's oldest are forgotten early; other teams' are not.
const REPLIES_MAX: usize = 4096;

#[derive(Default)]
pub(crate) struct Replies(Mutex<HashMap<TeamId, Table>>);

/// Of one team. There are only as many as have answers that are kept, or requests under way.
#[derive(Default)]
struct Table {
    replies: HashMap<String, Reply>,
    /// Answered keys, oldest first.
    answered: VecDeque<(Instant, String)>,
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
    fn tables(&self) -> MutexGuard<'_, HashMap<TeamId, Table>> {
        self.0.lock().expect("nothing panics while it holds the tables")
    }

    /// Begins a request, or says what became of it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        team: TeamId,
        key: String,
        digest: [u8; 32],
    ) -> Result<First, ManagerError> {
        let mut tables = self.tables();
        tables.retain(|_, table| {
            table.forget_old();
            !table.replies.is_empty()
        });
        let replies = &mut tables.entry(team).or_default().replies;
        match replies.get(&key) {
            Some(reply) if reply.digest != digest => Err(ManagerError::IdempotencyMismatch),
            Some(Reply { sandbox: None, .. }) => Err(ManagerError::IdempotencyInProgress),
            Some(Reply {
                sandbox: Some(id), ..
            }) => Ok(First::Done(*id)),
            None => {
                let reply = Reply {
                    digest,
                    sandbox: None,
                };
                replies.insert(key.clone(), reply);
                Ok(First::Go(Ticket {
                    replies: Arc::clone(self),
                    team,
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
    team: TeamId,
    key: String,
}

impl Ticket {
    /// The request made this sandbox.
    pub(crate) fn answer(self, sandbox: SandboxId) {
        let mut tables = self.replies.tables();
        let Some(table) = tables.get_mut(&self.team) else {
            return;
        };
        if let Some(reply) = table.replies.get_mut(&self.key) {
            reply.sandbox = Some(sandbox);
            table.answered.push_back((Instant::now(), self.key.clone()));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut tables = self.replies.tables();
        let Some(table) = tables.get_mut(&self.team) else {
            return;
        };
        let is_free = |reply: &Reply| reply.sandbox.is_none();
        if table.replies.get(&self.key).is_some_and(is_free) {
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
    async fn a_flood_of_keys_is_bounded_and_pushes_out_no_other_teams() {
        let replies = Arc::new(Replies::default());
        let (quiet, loud) = (TeamId::random(), TeamId::random());
        let go = |team, key: String| {
            let Ok(First::Go(ticket)) = replies.begin(team, key.clone(), [1; 32]) else {
                panic!("key {key}")
            };
            ticket.answer(SandboxId::random());
        };
        go(quiet, "key".to_owned());
        for n in 0..REPLIES_MAX + 10 {
            go(loud, n.to_string());
        }
        assert!(matches!(begin(&replies, quiet, 1), Ok(First::Done(_))));
        let tables = replies.tables();
        let table = &tables[&loud];
        assert!(table.replies.len() <= REPLIES_MAX && table.answered.len() <= REPLIES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_of_a_team_whose_answers_are_forgotten() {
        let replies = Arc::new(Replies::default());
        for _ in 0..2 {
            let Ok(First::Go(ticket)) = begin(&replies, TeamId::random(), 1) else {
                panic!("a fresh key was refused")
            };
            ticket.answer(SandboxId::random());
            tokio::time::advance(KEPT + Duration::from_secs(1)).await;
        }
        assert_eq!(replies.tables().len(), 1);
    }
}
