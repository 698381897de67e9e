//! Sandboxes that are allocations of their own: the scheduler gives a block for one, and accounts for it.
//!
//! The block is named after the sandbox, and asked for before that is stored. What came to nothing, and what is left when a sandbox
//! is over, is given back by whoever looks, and a block that the scheduler takes back takes its sandbox along.
use std::collections::HashMap;
use std::time::Duration;

use model::{KillReason, NodeId, Phase, Sandbox, SandboxId, Team};
use ports::ManagerError;
use ports::scheduler::{
    Ask, Block, BlockChange, BlockId, BlockState, Blocks, Purpose, ResourceScheduler, Size,
};
use tokio::time::Instant;

use crate::bring_up::Flow;
use crate::create::Design;
use crate::orchestrator::Orchestrator;
use crate::reconcile::runs;

/// What the tokens of such blocks begin with.
const ALONE: &str = "alone-";
/// How long a client waits for a block to be there, and for its node to say so.
const THERE_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A block whose sandbox nobody has stored is nobody's: its client waited no longer than that before it was to be stored.
const UNSTORED_MAX: Duration = Duration::from_secs(180);

impl Orchestrator {
    /// Creates a sandbox in a block of its own.
    pub(crate) async fn create_alone(&self, team: &Team, design: Design) -> Result<Sandbox, ManagerError> {
        let Some(scheduler) = &self.parts.scheduler else {
            return Err(ManagerError::Invalid(
                "no scheduler gives out capacity here, so no sandbox can be an allocation of its own: leave X-Atoll-Allocation out, or \
                 have an operator set [cluster.nomad]"
                    .to_owned(),
            ));
        };
        if !design.volumes.is_empty() {
            return Err(ManagerError::Invalid(
                "a sandbox with volumes runs where these lie, and an allocation of its own where the scheduler puts it: leave \
                 X-Atoll-Allocation or volumeMounts out"
                    .to_owned(),
            ));
        }
        let id = design.id.unwrap_or_else(SandboxId::random);
        let design = Design {
            id: Some(id),
            ..design
        };
        let ask = Ask {
            token: format!("{ALONE}{id}"),
            size: Size {
                cpu: design.settings.resources.cpu,
                memory: design.settings.resources.memory,
            },
            zone: None,
            purpose: Purpose::Sandbox(id),
        };
        let asked = Flow::Create.stage("schedule", scheduler.schedule(ask)).await;
        let block = asked.map_err(|error| ManagerError::Failed {
            step: "asking for an allocation",
            kind: error.kind(),
            source: error.into(),
        })?;
        let made = self.create_in(&**scheduler, &block.id, team, &design).await;
        if made.is_err() {
            give_back(&**scheduler, &block.id).await;
        }
        made
    }

    async fn create_in(
        &self,
        scheduler: &dyn ResourceScheduler,
        block: &BlockId,
        team: &Team,
        design: &Design,
    ) -> Result<Sandbox, ManagerError> {
        let id = design.id.expect("it was drawn before its block was asked for");
        let there = Flow::Create.stage("allocation", self.until_there(scheduler, block, id));
        let home = there.await?;
        let node = self.node(home)?;
        let sandbox = self.create_on(Flow::Create, node.as_ref(), team, design).await;
        let sandbox = sandbox.map_err(|(id, error)| error.public(id))?;
        self.count_spawn(&sandbox);
        Ok(sandbox)
    }

    /// Waits until the block is on a node, which is returned.
    async fn until_there(
        &self,
        scheduler: &dyn ResourceScheduler,
        block: &BlockId,
        id: SandboxId,
    ) -> Result<NodeId, ManagerError> {
        let view = scheduler.watch();
        let deadline = Instant::now() + THERE_WITHIN;
        loop {
            let now = view.borrow().all.get(block).cloned();
            let state = now.as_ref().map(|block| block.state);
            if state.is_some_and(BlockState::is_over) {
                let reason = now.map(|block| block.reason).unwrap_or_default();
                return Err(ManagerError::NoCapacity(format!(
                    "its allocation ended before the sandbox was in it: {reason}"
                )));
            }
            if let Some(node) = self.placement.look(|view| {
                let has = |node: &NodeId| {
                    view.get(*node)
                        .and_then(|known| known.facts)
                        .is_some_and(|facts| facts.own.contains(&id))
                };
                view.nodes().find(has)
            }) {
                return Ok(node);
            }
            if Instant::now() >= deadline {
                return Err(ManagerError::NoCapacity(match state {
                    Some(BlockState::Running) => format!(
                        "its allocation runs, and no node has said within {THERE_WITHIN:?} that it is there"
                    ),
                    _ => format!(
                        "the scheduler has found no place for an allocation of its own within {THERE_WITHIN:?}"
                    ),
                }));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends sandboxes whose own blocks are taken back or gone, and gives back blocks whose sandboxes are over.
    pub(crate) async fn settle_alone(
        &self,
        scheduler: &dyn ResourceScheduler,
        before: &Blocks,
        now: &Blocks,
        unstored: &mut Unstored,
    ) {
        let changes = now.since(before);
        let gone = changes.iter().filter_map(|change| match change {
            BlockChange::Lost(block) | BlockChange::Ended(block) => Some(block),
            BlockChange::Came(_) | BlockChange::Draining(_) => None,
        });
        // Not when it begins alone: nobody may have looked then.
        let draining = |block: &&Block| block.state == BlockState::Draining;
        for block in now.all.values().filter(draining).chain(gone) {
            if let Purpose::Sandbox(id) = block.purpose {
                self.end_alone(id).await;
            }
        }
        let is_wanted = |block: &&Block| !block.state.is_over() && block.state != BlockState::Draining;
        let blocks: Vec<_> = now.all.values().filter(is_wanted).collect();
        unstored.0.retain(|id, _| now.all.contains_key(id));
        for block in blocks {
            let Purpose::Sandbox(id) = block.purpose else {
                continue;
            };
            let Ok(stored) = self.stored(id).await else { return };
            let is_left = match stored.map(|sandbox| sandbox.phase) {
                Some(Phase::Gone { .. }) => true,
                Some(_) => false,
                None => unstored.is_left(&block.id),
            };
            if is_left {
                give_back(scheduler, &block.id).await;
            }
        }
    }

    /// Ends a sandbox that runs; one that is paused uses nothing.
    async fn end_alone(&self, id: SandboxId) {
        let running = match self.stored(id).await {
            Ok(stored) => stored.filter(|sandbox| runs(sandbox.phase)),
            Err(_) => return,
        };
        let Some(sandbox) = running else { return };
        tracing::warn!(sandbox = %id, "its own allocation is taken back or lost: the sandbox is ended");
        match self.end(sandbox, KillReason::NodeLost).await {
            Ok(()) | Err(ManagerError::NotFound(_)) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(sandbox = %id, error, "a sandbox without its allocation was not ended; its node is emptied when it is short");
            }
        }
    }
}

/// Since when blocks are seen whose sandboxes are not stored.
#[derive(Default)]
pub(crate) struct Unstored(HashMap<BlockId, Instant>);

impl Unstored {
    fn is_left(&mut self, block: &BlockId) -> bool {
        let since = *self.0.entry(block.clone()).or_insert_with(Instant::now);
        since.elapsed() >= UNSTORED_MAX
    }
}

/// What cannot be given back now is found by whoever looks next.
async fn give_back(scheduler: &dyn ResourceScheduler, block: &BlockId) {
    match scheduler.stop(block).await {
        Ok(()) => tracing::info!(%block, "the allocation of a sandbox that is over is given back"),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(%block, error, "the allocation of a sandbox that is over was not given back; it is tried again");
        }
    }
}
