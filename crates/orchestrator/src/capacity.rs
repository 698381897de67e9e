//! Capacity that a scheduler gives out in blocks, asked for ahead of need.
//!
//! Every process that works in the background looks, and none has to: what is missing follows from what is stored and from the blocks
//! that there are, and a block is asked for by a token that follows from them too, so that two who see the same ask for one block.
//! Nothing is given back from here: a block that is taken away moves or ends what is in it, which is for an operator to want.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use model::{Memory, Phase, Sandbox};
use ports::ResourceScheduler;
use ports::discovery::Known;
use ports::scheduler::{Ask, Block, BlockState, Blocks, Purpose, Size};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::alone::Unstored;
use crate::orchestrator::Orchestrator;
use crate::placement::{Overcommit, Room};

/// How often it is looked whether there is enough.
const PERIOD: Duration = Duration::from_secs(5);
/// After blocks that failed it is asked more seldom, and at least this often.
const REST_MAX: Duration = Duration::from_secs(600);
/// Blocks that are asked for in one turn.
const AT_ONCE: usize = 16;
/// What the tokens of shared blocks begin with.
const SHARED: &str = "shared-";

const STATES: [(BlockState, &str); 8] = [
    (BlockState::Waiting, "waiting"),
    (BlockState::Starting, "starting"),
    (BlockState::Running, "running"),
    (BlockState::Unreachable, "unreachable"),
    (BlockState::Draining, "draining"),
    (BlockState::Stopped, "stopped"),
    (BlockState::Failed, "failed"),
    (BlockState::Lost, "lost"),
];

/// How much capacity there is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// A block.
    pub size: Size,
    /// Blocks beyond those that are needed now.
    pub spare: u32,
    /// Blocks at the most.
    pub most: u32,
    /// What may be promised of them.
    pub overcommit: Overcommit,
}

impl Capacity {
    /// How many blocks there are to be while so much is promised.
    fn wanted(&self, promised: Room) -> u64 {
        let blocks = |total: u64, of_one: u64| total.div_ceil(of_one.max(1));
        let cpu = blocks(self.overcommit.cpu.needs(promised.cpu), u64::from(self.size.cpu));
        let memory = blocks(
            self.overcommit.memory.needs(promised.memory),
            u64::from(self.size.memory.0),
        );
        let needed = cpu.max(memory).saturating_add(u64::from(self.spare));
        needed.min(u64::from(self.most))
    }

    /// What is to be asked for.
    fn missing(&self, promised: Room, blocks: &Blocks) -> Vec<Ask> {
        let have = blocks.all.values().filter(|block| counts(block)).count();
        let wanted = usize::try_from(self.wanted(promised)).unwrap_or(usize::MAX);
        // The token of one that is over is not free before the scheduler has forgotten it: it would answer with that.
        let taken: HashSet<&str> = blocks.all.values().map(|block| block.token.as_str()).collect();
        let tokens = (0_u64..).map(|number| format!("{SHARED}{number}"));
        tokens
            .filter(|token| !taken.contains(token.as_str()))
            .take(wanted.saturating_sub(have).min(AT_ONCE))
            .map(|token| Ask {
                token,
                size: self.size,
                zone: None,
                purpose: Purpose::Shared,
            })
            .collect()
    }
}

/// Whether a block is there for everybody, or comes.
fn counts(block: &Block) -> bool {
    let is_there = matches!(
        block.state,
        BlockState::Waiting | BlockState::Starting | BlockState::Running | BlockState::Unreachable
    );
    is_there && block.purpose == Purpose::Shared
}

/// How long nothing is asked for after the last ask, while so many blocks are remembered that failed.
fn rest(failed: usize) -> Duration {
    match u32::try_from(failed) {
        Ok(0) => Duration::ZERO,
        Ok(failed) => REST_MAX.min(PERIOD * 2_u32.pow(failed.min(10))),
        Err(_) => REST_MAX,
    }
}

/// What is promised to sandboxes, on whichever nodes they are. Disks are no part of blocks.
pub(crate) fn promised(live: &[Sandbox]) -> Room {
    live.iter().fold(Room::default(), |sum, sandbox| {
        let runs = sandbox.phase.seat().is_some();
        let keeps_memory = matches!(sandbox.phase, Phase::Paused { .. }) && sandbox.kept == Memory::Volatile;
        Room {
            cpu: sum.cpu + u64::from(sandbox.resources.cpu) * u64::from(runs),
            memory: sum.memory + u64::from(sandbox.resources.memory.0) * u64::from(runs || keeps_memory),
            disk: 0,
        }
    })
}

fn gauge(blocks: &Blocks) {
    for (state, name) in STATES {
        let count = blocks.all.values().filter(|block| block.state == state).count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        metrics::gauge!("atoll_blocks", "state" => name).set(f64::from(count));
    }
}

impl Orchestrator {
    /// Sees to it that the scheduler gives enough, until `shutdown`. While it is away what there is stays.
    pub async fn keep_capacity(
        self: Arc<Self>,
        scheduler: Arc<dyn ResourceScheduler>,
        capacity: Capacity,
        shutdown: CancellationToken,
    ) {
        let view = scheduler.watch();
        let mut asked: Option<Instant> = None;
        let (mut before, mut unstored) = (Arc::clone(&view.borrow()), Unstored::default());
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            let blocks = Arc::clone(&view.borrow());
            gauge(&blocks);
            // Before the first pass of the reconciler nobody knows what is needed.
            let promised = *self.promised.lock().expect("nothing panics while it holds a sum");
            let (Known::Current, Some(promised)) = (&blocks.known, promised) else {
                continue;
            };
            self.settle_alone(&*scheduler, &before, &blocks, &mut unstored)
                .await;
            before = Arc::clone(&blocks);
            let failed = blocks
                .all
                .values()
                .filter(|block| block.state == BlockState::Failed);
            let rest = rest(failed.count());
            if asked.is_some_and(|at| at.elapsed() < rest) {
                continue;
            }
            for ask in capacity.missing(promised, &blocks) {
                asked = Some(Instant::now());
                let (token, size) = (ask.token.clone(), ask.size);
                match scheduler.schedule(ask).await {
                    Ok(block) => {
                        tracing::info!(block = %block.id, token, %size, "a block of capacity is asked for")
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, token, %size, "a block of capacity was not asked for");
                        break;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use model::MiB;
    use ports::scheduler::{BlockId, Place};

    use super::*;

    const CAPACITY: Capacity = Capacity {
        size: Size {
            cpu: 4,
            memory: MiB(8192),
        },
        spare: 1,
        most: 5,
        overcommit: Overcommit {
            cpu: crate::placement::Ratio::ONE,
            memory: crate::placement::Ratio::ONE,
            disk: crate::placement::Ratio::UNBOUNDED,
        },
    };

    fn room(cpu: u64, memory: u64) -> Room {
        Room { cpu, memory, disk: 0 }
    }

    fn blocks(states: &[(&str, BlockState)]) -> Blocks {
        let block = |(token, state): &(&str, BlockState)| {
            let id = BlockId(format!("id-of-{token}"));
            let block = Block {
                id: id.clone(),
                token: (*token).to_owned(),
                size: CAPACITY.size,
                zone: None,
                purpose: Purpose::Shared,
                state: *state,
                place: Some(Place {
                    allocation: "a".to_owned(),
                    machine: "m".to_owned(),
                }),
                reason: String::new(),
            };
            (id, block)
        };
        Blocks {
            all: states.iter().map(block).collect(),
            known: Known::Current,
        }
    }

    fn missing(promised: Room, states: &[(&str, BlockState)]) -> Vec<String> {
        let asks = CAPACITY.missing(promised, &blocks(states));
        asks.into_iter().map(|ask| ask.token).collect()
    }

    #[test]
    fn what_is_needed_and_some_more_is_asked_for_and_never_more_than_the_most() {
        assert_eq!(missing(room(0, 0), &[]), ["shared-0"]);
        assert_eq!(missing(room(1, 512), &[]), ["shared-0", "shared-1"]);
        assert_eq!(CAPACITY.wanted(room(4, 8192)), 2);
        assert_eq!(CAPACITY.wanted(room(4, 8193)), 3);
        assert_eq!(CAPACITY.wanted(room(400, 0)), 5);
        let twice = Overcommit {
            cpu: crate::placement::Ratio::new(2.0).unwrap(),
            ..CAPACITY.overcommit
        };
        let twice = Capacity {
            overcommit: twice,
            ..CAPACITY
        };
        assert_eq!((twice.wanted(room(8, 0)), twice.wanted(room(9, 0))), (2, 3));
    }

    #[test]
    fn what_comes_counts_and_what_goes_is_replaced_under_another_token() {
        use BlockState::{Draining, Failed, Lost, Running, Starting, Stopped, Unreachable, Waiting};
        let there = [
            ("shared-0", Running),
            ("shared-1", Waiting),
            ("shared-2", Starting),
            ("shared-3", Unreachable),
        ];
        assert!(missing(room(12, 0), &there).is_empty());
        let gone = [
            ("shared-0", Lost),
            ("shared-1", Failed),
            ("shared-3", Draining),
            ("shared-4", Stopped),
        ];
        assert_eq!(missing(room(4, 0), &gone), ["shared-2", "shared-5"]);
        let mut own = blocks(&[("shared-0", Running)]);
        for block in own.all.values_mut() {
            block.purpose = Purpose::Sandbox(model::SandboxId::random());
        }
        assert_eq!(
            CAPACITY.missing(room(0, 0), &own).len(),
            1,
            "that one is not for others"
        );
    }

    #[test]
    fn blocks_that_fail_are_not_asked_for_in_a_loop() {
        assert_eq!(rest(0), Duration::ZERO);
        assert_eq!(rest(1), Duration::from_secs(10));
        assert_eq!(rest(3), Duration::from_secs(40));
        assert_eq!(rest(1000), REST_MAX);
    }
}
