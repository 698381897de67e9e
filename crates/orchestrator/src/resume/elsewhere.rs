//! Resumes on another node than the one that holds the pause: where that is away, or has lost it, and the blobs hold its disk.
//!
//! What its home holds stays there, under the execution that it was paused by. When the home is there again, the sandbox is
//! somewhere else, and the reconciler ends what is not where it belongs. Until it runs elsewhere, and where that fails, it is
//! paused at home as before.
use std::sync::Arc;
use std::time::Duration;

use model::{NodeId, PauseMode, Sandbox, SandboxId, Team};
use ports::{Level, ManagerError, Node};

use super::{Left, Source, Wish, WithoutHome};
use crate::bring_up::NotUp;
use crate::nodes::{WORD_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::placement;

/// Discovery loses sight of a node now and then, for a moment: memory is worth this wait. Clients and edges wait longer.
const SIGHT_LOST_MAX: Duration = Duration::from_secs(5);

/// Why it is not resumed, where its node is away and it cannot be elsewhere.
const AWAY: &str = "the node that it is paused on is away, and other nodes do not have its disk; try again when that node is back";
/// Why memory is not used.
const MEMORY_AWAY: &str = "the node that has it is away";

impl Orchestrator {
    /// A node, if it is there, or soon is again where that is worth a wait.
    pub(super) async fn sight_of(&self, id: NodeId, is_worth_a_wait: bool) -> Option<Arc<dyn Node>> {
        let mut fleet = self.parts.fleet.nodes();
        let appears = async {
            loop {
                fleet.borrow_and_update();
                if let Some(node) = self.parts.fleet.node(id) {
                    return Some(node);
                }
                if !is_worth_a_wait || !self.stows_pauses() {
                    return None;
                }
                fleet.changed().await.ok()?;
            }
        };
        tokio::time::timeout(SIGHT_LOST_MAX, appears)
            .await
            .unwrap_or_default()
    }

    /// Refuses what is not resumed elsewhere.
    pub(super) async fn check_elsewhere(
        &self,
        paused: &Sandbox,
        left: Left,
        wish: Wish,
    ) -> Result<(), ManagerError> {
        if !paused.volumes.is_empty() {
            let why = "is away; try again when it is back";
            return Err(self.not_at_home(&paused.volumes, left.home, why));
        }
        if !self.is_stowed(left.snapshot).await? {
            return Err(ManagerError::NoCapacity(AWAY.to_owned()));
        }
        let with_memory = left.kept == PauseMode::Full && wish.mode == PauseMode::Full;
        if with_memory && wish.without_home == WithoutHome::Refuse {
            return Err(ManagerError::MemoryUnusable {
                id: paused.id,
                why: MEMORY_AWAY,
            });
        }
        Ok(())
    }

    /// Boots it from the copy of its disk, on the first of a few nodes that takes it.
    pub(super) async fn bring_back_elsewhere(
        &self,
        mut paused: Sandbox,
        left: Left,
        team: &Team,
        wish: Wish,
    ) -> Result<Sandbox, ManagerError> {
        let id = paused.id;
        let mut last = ManagerError::NoCapacity("no node is there that could".to_owned());
        let mut search = self.placement.search(placement::Wish {
            build: Some(left.snapshot),
            ..placement::Wish::new(team.id, paused.resources)
        });
        while let Some(place) = search.next_node() {
            let Some(node) = self.parts.fleet.node(place.node()) else {
                search.failed(place);
                continue;
            };
            if !self.is_clear_of(node.as_ref(), id).await {
                search.refused(place, "what it held of this sandbox before");
                continue;
            }
            match self
                .bring_back_on(node.as_ref(), paused, team, wish, Source::Copy)
                .await
            {
                Ok(running) => {
                    place.keep();
                    tracing::info!(sandbox = %id, node = %node.id(), home = %left.home, "a sandbox is resumed on another node than it was paused on");
                    self.tell_owner(node.as_ref(), &running, left).await;
                    return Ok(running);
                }
                Err(error @ NotUp::Manager(_)) => return Err(error.public(id)),
                Err(NotUp::Node(error)) => {
                    tracing::warn!(sandbox = %id, node = %node.id(), error = &error as &dyn std::error::Error, "a sandbox was not resumed on another node");
                    last = NotUp::Node(error).public(id);
                    search.failed(place);
                }
            }
            // Where it is not, the answer did not say what is true, and the node is at it still.
            let Ok(still) = self.still_paused(id, left).await else {
                return Err(last);
            };
            paused = still;
        }
        Err(last)
    }

    /// Boots on another node what was paused for that, to live for so long. The caller holds its lock. Where no node takes it, it is
    /// paused as before.
    pub(crate) async fn go_on_elsewhere(
        &self,
        paused: Sandbox,
        timeout: Duration,
    ) -> Result<Sandbox, ManagerError> {
        let left = Left::of(&paused)?;
        let wish = Wish {
            timeout,
            mode: PauseMode::Full,
            remember: false,
            auto_pause: None,
            without_home: WithoutHome::Boot,
            is_move: true,
        };
        let _start = self.begin_start()?;
        self.check_elsewhere(&paused, left, wish).await?;
        let team = self.team(paused.team).await?;
        self.bring_back_elsewhere(paused, left, &team, wish).await
    }

    /// Whether a node holds nothing of a sandbox. One that has an older pause of it is not asked before that is ended: it must
    /// not be taken for the newer one.
    async fn is_clear_of(&self, node: &dyn Node, id: SandboxId) -> bool {
        match within(WORD_MAX, "the report", node.report()).await {
            Ok(report) => !report.held.iter().any(|held| held.order.sandbox == id),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(node = %node.id(), error, "a node does not report, and is not asked to resume");
                false
            }
        }
    }

    /// Says in its log what was left behind.
    async fn tell_owner(&self, node: &dyn Node, running: &Sandbox, left: Left) {
        let Some(at) = running.phase.seat() else { return };
        let why = match self.parts.fleet.node(left.home) {
            Some(_) => "is to be emptied",
            None => "is away",
        };
        let (level, line) = match left.kept {
            PauseMode::Full => (
                Level::Warn,
                format!(
                    "it booted from its disk, and ran its start command, on another node: its memory stayed on the node that it was paused on, which {why}"
                ),
            ),
            PauseMode::Filesystem => (
                Level::Info,
                format!("it booted on another node: the one that it was paused on {why}"),
            ),
        };
        let said = node.say(running.id, at.execution, level, &line);
        if let Err(error) = within(WORD_MAX, "a word", said).await {
            tracing::debug!(sandbox = %running.id, error = &error as &dyn std::error::Error, "a sandbox's log does not say that it moved");
        }
    }
}
