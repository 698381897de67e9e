//! Who gets which resources where: blocks of capacity, into which sandboxes are placed.
//!
//! ```text
//!            schedule                    stop, or the scheduler wants it back
//! nothing ──────────▶ Waiting ─▶ Starting ─▶ Running ─▶ Draining ─▶ Stopped
//!                        └──────────┴──────────┴────▶ Failed, Lost (with its machine)
//! ```
//!
//! A block is asked for ahead of need: a scheduler of a fleet takes seconds, and sandboxes are placed inside blocks in memory. A
//! sandbox that wants to be accounted for alone gets a block of its own size, and waits for it.
//!
//! [`Embedded`] is the machine itself; `cluster::nomad` is Nomad.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use model::{Kind, MiB, SandboxId};
use tokio::sync::watch;

pub mod contract;
mod embedded;

pub use embedded::Embedded;

/// Bytes of an idempotency token.
pub const TOKEN_BYTES_MAX: usize = 64;
/// Blocks that one page lists.
pub const PAGE_MAX: usize = 1_000;
/// Blocks that a view holds: a fleet of ten thousand machines has a handful each.
pub const BLOCKS_MAX: usize = 50_000;

/// What a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Sandboxes of all teams are placed in it.
    Shared,
    /// One sandbox is, and nothing else: its use is accounted for by the scheduler itself.
    Sandbox(SandboxId),
}

/// A size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size {
    /// CPUs.
    pub cpu: u32,
    /// Memory.
    pub memory: MiB,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs and {}", self.cpu, self.memory)
    }
}

/// An ask for a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// By which a repeated ask is known: one token is one block. Letters in lower case, digits and `-`.
    pub token: String,
    /// How large. Neither part is 0.
    pub size: Size,
    /// Where: a zone (a datacentre of Nomad's), or anywhere.
    pub zone: Option<String>,
    /// What for.
    pub purpose: Purpose,
}

impl Ask {
    /// Whether every adapter can carry it.
    ///
    /// # Errors
    /// [`ScheduleError::Invalid`] with the first thing that is wrong.
    pub fn check(&self) -> Result<(), ScheduleError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name =
            |text: &str| !text.is_empty() && text.len() <= TOKEN_BYTES_MAX && text.bytes().all(plain);
        if !is_name(&self.token) {
            return Err(ScheduleError::Invalid(format!("{:?} is not a token", self.token)));
        }
        if let Some(zone) = self.zone.as_deref().filter(|zone| !is_name(zone)) {
            return Err(ScheduleError::Invalid(format!(
                "{zone:?} is not the name of a zone"
            )));
        }
        if self.size.cpu == 0 || self.size.memory.0 == 0 {
            return Err(ScheduleError::Invalid(format!(
                "a block of {} holds nothing",
                self.size
            )));
        }
        Ok(())
    }
}

/// Which block: the scheduler's own name of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub String);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is true of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockState {
    /// Asked for, and there is no place for it yet.
    Waiting,
    /// It has a place, and begins.
    Starting,
    /// To be used.
    Running,
    /// Its machine does not answer the scheduler: what is in it may live. It is not placed into.
    Unreachable,
    /// It is to be given back: nothing more is placed into it, and what is in it is moved or ended.
    Draining,
    /// It was given back.
    Stopped,
    /// It ended by itself, or never began.
    Failed,
    /// It is gone, with its machine and with all that was in it.
    Lost,
}

impl BlockState {
    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed | Self::Lost)
    }
}

/// Where a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The scheduler's name of this allocation of the block. One that was replaced has another: what was in the former is
    /// lost.
    pub allocation: String,
    /// The machine, as the scheduler calls it.
    pub machine: String,
}

/// A block of capacity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Which.
    pub id: BlockId,
    /// By which token it was asked for.
    pub token: String,
    /// How large.
    pub size: Size,
    /// Where it was to be.
    pub zone: Option<String>,
    /// What for.
    pub purpose: Purpose,
    /// What is true of it.
    pub state: BlockState,
    /// Where it is, once it has a place.
    pub place: Option<Place>,
    /// Why it is so, in the scheduler's words. Bounded by the adapter.
    pub reason: String,
}

/// Which blocks are listed: those that agree with all that is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// In one of these states; in any, where none is named.
    pub states: Vec<BlockState>,
    /// On this machine.
    pub machine: Option<String>,
    /// In this zone.
    pub zone: Option<String>,
    /// Asked for by this token.
    pub token: Option<String>,
}

impl Filter {
    /// Whether it lets a block pass.
    #[must_use]
    pub fn matches(&self, block: &Block) -> bool {
        let machine = block.place.as_ref().map(|place| place.machine.as_str());
        (self.states.is_empty() || self.states.contains(&block.state))
            && self
                .machine
                .as_deref()
                .is_none_or(|wanted| machine == Some(wanted))
            && self
                .zone
                .as_deref()
                .is_none_or(|wanted| block.zone.as_deref() == Some(wanted))
            && self.token.as_deref().is_none_or(|wanted| block.token == wanted)
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The blocks, by their ids.
    pub blocks: Vec<Block>,
    /// After which the next page begins; `None`: there is none.
    pub next: Option<BlockId>,
}

impl Page {
    /// Cuts a page out of all blocks, which are by their ids.
    #[must_use]
    pub fn cut(
        all: &BTreeMap<BlockId, Block>,
        filter: &Filter,
        after: Option<&BlockId>,
        limit: usize,
    ) -> Self {
        let limit = limit.clamp(1, PAGE_MAX);
        let rest = all
            .values()
            .filter(|block| after.is_none_or(|after| block.id > *after));
        let mut blocks: Vec<Block> = rest
            .filter(|block| filter.matches(block))
            .take(limit + 1)
            .cloned()
            .collect();
        let is_more = blocks.len() > limit;
        blocks.truncate(limit);
        let next = blocks.last().filter(|_| is_more).map(|block| block.id.clone());
        Self { blocks, next }
    }
}

/// All blocks, and how much that is worth.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks {
    /// They, also those that are over and not forgotten yet.
    pub all: BTreeMap<BlockId, Block>,
    /// How much this is worth.
    pub known: crate::discovery::Known,
}

/// What happened to a block between two views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockChange {
    /// It can be used from now on.
    Came(Block),
    /// It is to be emptied.
    Draining(Block),
    /// What was in it is gone, or is to be held so: it is lost, or failed, or was replaced, or forgotten while in use.
    Lost(Block),
    /// It is over, as it was to be.
    Ended(Block),
}

impl Blocks {
    /// What happened since `before`. A block that came and went between two views was nobody's: it is not told. While this view
    /// is stale nothing happens.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<BlockChange> {
        if self.known != crate::discovery::Known::Current {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for (id, block) in &self.all {
            let former = before.all.get(id);
            let was = former.map(|former| former.state);
            let held = was.is_some_and(holds);
            let is_same = former
                .and_then(|former| former.place.as_ref())
                .map(|place| &place.allocation)
                == block.place.as_ref().map(|place| &place.allocation);
            if held && !is_same {
                changes.extend(former.cloned().map(BlockChange::Lost));
            }
            let held = held && is_same;
            match block.state {
                BlockState::Running if !held => changes.push(BlockChange::Came(block.clone())),
                BlockState::Draining if held && was != Some(BlockState::Draining) => {
                    changes.push(BlockChange::Draining(block.clone()));
                }
                BlockState::Stopped if held => changes.push(BlockChange::Ended(block.clone())),
                BlockState::Failed | BlockState::Lost if held => {
                    changes.push(BlockChange::Lost(block.clone()));
                }
                _ => {}
            }
        }
        let forgotten = before
            .all
            .iter()
            .filter(|(id, block)| holds(block.state) && !self.all.contains_key(id));
        changes.extend(forgotten.map(|(_, block)| BlockChange::Lost(block.clone())));
        changes
    }
}

/// Whether something may be in a block of this state.
const fn holds(state: BlockState) -> bool {
    matches!(
        state,
        BlockState::Running | BlockState::Unreachable | BlockState::Draining
    )
}

/// A block could not be asked for, told of, or given back.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// It makes no sense, whoever is asked.
    #[error("{0}")]
    Invalid(String),
    /// There is no room, and there will not be by waiting.
    #[error("no room for {asked}: {free} are free of {total}")]
    NoRoom {
        /// What was asked for.
        asked: Size,
        /// What is free.
        free: Size,
        /// What there is.
        total: Size,
    },
    /// The scheduler refuses: a token that is wrong or may not do this, or a rule of its own.
    #[error("{service} refuses to {what}: {why}")]
    Refused {
        /// Which scheduler, and where.
        service: String,
        /// What was asked of it.
        what: String,
        /// What it said.
        why: String,
    },
    /// The scheduler did not answer, or could not.
    #[error("{service} is away, asked to {what}")]
    Away {
        /// Which scheduler, and where.
        service: String,
        /// What was asked of it.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its answer is not understood, or longer than is read.
    #[error("{service} answers strangely, asked to {what}: {why}")]
    Strange {
        /// Which scheduler, and where.
        service: String,
        /// What was asked of it.
        what: String,
        /// What is strange.
        why: String,
    },
}

impl ScheduleError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) => Kind::Invalid,
            Self::NoRoom { .. } | Self::Away { .. } => Kind::Unavailable,
            Self::Refused { .. } => Kind::Forbidden,
            Self::Strange { .. } => Kind::Internal,
        }
    }
}

/// Who gets which resources where.
#[async_trait]
pub trait ResourceScheduler: Send + Sync {
    /// Asks for a block; returns as soon as the ask is held, whether or not the block has a place yet. The same token again
    /// answers with the block that there is, whatever else the ask says, while it is not forgotten.
    async fn schedule(&self, ask: Ask) -> Result<Block, ScheduleError>;
    /// One block; `None` where there is none, or it is forgotten.
    async fn get(&self, id: &BlockId) -> Result<Option<Block>, ScheduleError>;
    /// Gives a block back: it drains, then stops. One that is over, or not there, is no error.
    async fn stop(&self, id: &BlockId) -> Result<(), ScheduleError>;
    /// Blocks by their ids, at most `limit` of those after one. `limit` is cut to [`PAGE_MAX`].
    async fn list(
        &self,
        filter: &Filter,
        after: Option<&BlockId>,
        limit: usize,
    ) -> Result<Page, ScheduleError>;
    /// All blocks, as a watched value. While the scheduler is away the last view stays, marked as stale.
    fn watch(&self) -> watch::Receiver<Arc<Blocks>>;
}

#[cfg(test)]
mod tests;
