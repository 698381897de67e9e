//! Emptying nodes: what [`placement::drain`] plans is carried out, by whichever process looks first.
//!
//! ```text
//! operator ─▶ node: takes nothing new, and says in its reports that it is to be emptied
//!                                 │ every process that works in the background looks, again and again
//!                                 ▼
//!  Running ─▶ Pausing ─▶ Paused, moving ─▶ its disk in the blobs ─▶ Starting elsewhere ─▶ Running
//!              what a client paused ─▶ its disk in the blobs: carried
//! ```
//!
//! The wish is the node's own, so that every process sees it and none has to remember it. A sandbox that is paused to be moved
//! says so where it is stored ([`model::Sandbox::moving`]), so that another process goes on with it where this one dies; until it
//! runs again it is an ordinary pause, and whoever connects has it. All writes are by compare-and-set: two who empty one node do
//! nothing twice but copying, which is harmless.
//!
//! [`placement::drain`]: crate::placement::drain
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream;
use model::{BuildId, KillReason, Kind, NodeId, OnTimeout, PauseMode, Phase, Resources, Sandbox, SandboxId};
use ports::manager::{Drained, NodeWish};
use ports::node::{Draining, Report};
use ports::{ManagerError, Node, NodeError};
use tokio::time::Instant;

use crate::failure;
use crate::nodes::{WORD_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::placement::State;
use crate::placement::drain::{Doing, Drain, Plan, Resident, Step, plan};
use crate::timeout::whole_micros;

/// Sandboxes of one node that are moved at a time: each is read from its disk, and written to the blobs.
const AT_ONCE: usize = 4;
/// A step that failed is tried again after this, and after twice as long each further time.
const REST: Duration = Duration::from_secs(5);
/// And after this at most.
const REST_MAX: Duration = Duration::from_secs(60);
/// A running sandbox that was not moved so often in a row counts as one that cannot be.
const FAILURES_MAX: u32 = 3;
/// Until so long after its last failure.
const FAILED_FOR: Duration = Duration::from_secs(600);
/// What was moved lives at least this long, where moving it took the rest of its time.
const LIFE_MIN: Duration = Duration::from_secs(60);

/// What this process knows of nodes that are to be emptied, and is at.
#[derive(Default)]
pub(crate) struct Drains(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// As they said last.
    nodes: HashMap<NodeId, Draining>,
    /// Sandboxes that this process has in hand.
    at: HashSet<SandboxId>,
    /// Steps that failed.
    failing: HashMap<SandboxId, Failing>,
}

/// A step that failed, once or several times in a row.
#[derive(Debug, Clone, Copy)]
struct Failing {
    times: u32,
    last: Instant,
}

impl Failing {
    fn rests(self, now: Instant) -> bool {
        let doubled = 1 << (self.times - 1).min(16);
        now.duration_since(self.last) < REST_MAX.min(REST * doubled)
    }
}

impl Drains {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0
            .lock()
            .expect("nothing panics while it holds what is to be emptied")
    }

    /// Notes what a node says.
    pub(crate) fn note(&self, node: NodeId, draining: Option<Draining>) {
        let mut known = self.known();
        match draining {
            Some(how) => known.nodes.insert(node, how),
            None => known.nodes.remove(&node),
        };
    }

    /// How a node is to be emptied, by what it said last.
    pub(crate) fn of(&self, node: NodeId) -> Option<Draining> {
        self.known().nodes.get(&node).copied()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.known().nodes.keys().copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// Takes a sandbox in hand; `None` where it is already, or rests.
    fn take(self: &Arc<Self>, id: SandboxId) -> Option<InHand> {
        let mut known = self.known();
        let rests = |failing: &Failing| failing.rests(Instant::now());
        if known.failing.get(&id).is_some_and(rests) || !known.at.insert(id) {
            return None;
        }
        drop(known);
        Some(InHand(Arc::clone(self), id))
    }

    fn is_in_hand(&self, id: SandboxId) -> bool {
        self.known().at.contains(&id)
    }

    /// Whether it failed so often that it counts as one that cannot be moved.
    fn is_stuck(&self, id: SandboxId) -> bool {
        let known = self.known();
        let failing = known.failing.get(&id);
        failing.is_some_and(|failing| failing.times >= FAILURES_MAX && failing.last.elapsed() < FAILED_FOR)
    }

    /// Notes how a step went; whether it is the first failure.
    fn went(&self, id: SandboxId, well: bool) -> bool {
        let mut known = self.known();
        let now = Instant::now();
        known
            .failing
            .retain(|_, failing| now.duration_since(failing.last) < FAILED_FOR);
        if well {
            known.failing.remove(&id);
            return false;
        }
        let failing = known.failing.entry(id).or_insert(Failing { times: 0, last: now });
        (failing.times, failing.last) = (failing.times.saturating_add(1), now);
        failing.times == 1
    }
}

/// A sandbox that this process has in hand.
struct InHand(Arc<Drains>, SandboxId);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.known().at.remove(&self.1);
    }
}

/// A step that is to be taken now, at which nobody else of this process is.
struct Due {
    node: Arc<dyn Node>,
    step: Step,
    in_hand: InHand,
}

/// The node that has a sandbox.
fn home(sandbox: &Sandbox) -> Option<NodeId> {
    match sandbox.phase {
        Phase::Paused { home, .. } => Some(home),
        phase => phase.seat().map(|seat| seat.node),
    }
}

fn doing(sandbox: &Sandbox, stowed: &BTreeMap<BuildId, String>) -> Doing {
    match sandbox.phase {
        Phase::Running { .. } => Doing::Running,
        Phase::Paused { snapshot, .. } if !stowed.contains_key(&snapshot) => Doing::Paused,
        Phase::Paused { .. } if sandbox.is_moving() => Doing::Moving,
        Phase::Paused { .. } => Doing::Carried,
        _ => Doing::Changing,
    }
}

/// How it is paused to be moved: as at its end, where that is without memory; else with all of it, which stays where it was in
/// case that no other node takes the sandbox.
fn pause_mode(sandbox: &Sandbox) -> PauseMode {
    match sandbox.lifecycle.on_timeout {
        OnTimeout::Pause(PauseMode::Filesystem) => PauseMode::Filesystem,
        OnTimeout::Pause(PauseMode::Full) | OnTimeout::Kill => PauseMode::Full,
    }
}

impl Orchestrator {
    /// Looks at the nodes that are to be emptied, and begins what is to be done now.
    pub(crate) async fn drain_in_background(self: Arc<Self>) {
        match self.due().await {
            Ok(due) => {
                for due in due {
                    let me = Arc::clone(&self);
                    self.tasks.spawn(async move { me.take_step(due).await });
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "nodes were not emptied further; it is tried again");
            }
        }
    }

    /// Does what is to be done now to empty nodes; how many steps were taken.
    ///
    /// # Errors
    /// Where a store cannot be read. A step that fails is tried again by a later call, after a rest.
    pub async fn drain_now(&self) -> Result<usize, ManagerError> {
        let due = self.due().await?;
        let steps = due.len();
        let work = due.into_iter().map(|due| self.take_step(due));
        stream::iter(work.collect::<Vec<_>>())
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
        Ok(steps)
    }

    /// What is to be begun now.
    async fn due(&self) -> Result<Vec<Due>, ManagerError> {
        let nodes = self.drains.nodes();
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut reports = Vec::new();
        for id in nodes {
            let Some(node) = self.parts.fleet.node(id) else {
                continue;
            };
            // What was noted may be old, and an operator may have thought better of it.
            match within(WORD_MAX, "the report", node.report()).await {
                Ok(report) => {
                    self.drains.note(id, report.draining);
                    reports.extend(report.draining.map(|how| (node, report, how)));
                }
                Err(error) => {
                    tracing::debug!(node = %id, %error, "a node that is to be emptied did not report")
                }
            }
        }
        if reports.is_empty() {
            return Ok(Vec::new());
        }
        let (live, stowed) = self.stored_and_stowed().await?;
        let mut due = Vec::new();
        for (node, report, how) in reports {
            let (_, plan) = self.plan_of(&report, how, &live, &stowed);
            for step in plan.steps {
                let Some(in_hand) = self.drains.take(step.sandbox()) else {
                    continue;
                };
                due.push(Due {
                    node: Arc::clone(&node),
                    step,
                    in_hand,
                });
            }
        }
        Ok(due)
    }

    async fn stored_and_stowed(&self) -> Result<(Vec<Sandbox>, BTreeMap<BuildId, String>), ManagerError> {
        let live = self.parts.sandboxes.live().await;
        let live = live.map_err(failure::store("reading the sandboxes"))?;
        let stowed = self.parts.builds.stowed().await;
        let stowed = stowed.map_err(failure::store("reading what is stowed"))?;
        Ok((live, stowed))
    }

    /// What is to be done with the sandboxes of a node, and how many need it no more.
    fn plan_of(
        &self,
        report: &Report,
        how: Draining,
        live: &[Sandbox],
        stowed: &BTreeMap<BuildId, String>,
    ) -> (usize, Plan) {
        let now = self.now();
        let can_leave = |sandbox: &Sandbox| {
            self.stows_pauses() && report.capabilities.portable_builds && sandbox.volumes.is_empty()
        };
        let resident = |sandbox: &Sandbox| {
            let doing = match doing(sandbox, stowed) {
                _ if self.drains.is_in_hand(sandbox.id) => Doing::Changing,
                doing => doing,
            };
            // Nothing that runs is stopped before it has to be while there is nowhere to go.
            let may_move = doing != Doing::Running
                || !self.drains.is_stuck(sandbox.id)
                    && (now >= how.deadline || self.has_room_beside(report.node, sandbox.resources));
            Resident {
                sandbox: sandbox.id,
                resources: sandbox.resources,
                doing,
                lifecycle: sandbox.lifecycle,
                end_at: sandbox.end_at,
                // Memory stays where it is: it fits one machine.
                portable: (can_leave(sandbox) && may_move).then_some(PauseMode::Filesystem),
                idle_since: None,
            }
        };
        let here = live.iter().filter(|sandbox| home(sandbox) == Some(report.node));
        let residents: Vec<_> = here.map(resident).collect();
        let drain = Drain {
            deadline: how.deadline,
            kills: how.kills,
            at_once: AT_ONCE,
        };
        let carried = residents
            .iter()
            .filter(|resident| resident.doing == Doing::Carried)
            .count();
        (carried, plan(&residents, &drain, now))
    }

    /// Whether another node seems to have room.
    fn has_room_beside(&self, node: NodeId, resources: Resources) -> bool {
        let needs = [i64::from(resources.cpu), i64::from(resources.memory.0)];
        self.placement.look(|view| {
            let others = view.nodes().filter(|other| *other != node);
            let mut known = others.filter_map(|other| view.get(other));
            known.any(|known| {
                let has = || {
                    needs
                        .iter()
                        .zip(known.free)
                        .all(|(need, free)| i64::from(free) >= *need)
                };
                // One that has not reported yet may have.
                known.state == State::Ready && known.facts.is_none_or(|facts| facts.accepts && has())
            })
        })
    }

    /// Takes a step, and notes how it went.
    #[tracing::instrument(name = "node.drain", skip_all, fields(node = %due.node.id(), sandbox = %due.step.sandbox(), step = due.step.name()))]
    async fn take_step(&self, due: Due) {
        let Due { node, step, in_hand } = due;
        let id = step.sandbox();
        tracing::info!(node = %node.id(), sandbox = %id, step = step.name(), "emptying a node");
        let outcome = match step {
            Step::Move(id, _) => self.move_away(node.as_ref(), id).await,
            Step::Pause(id, mode) => self.pause_there(node.as_ref(), id, mode).await,
            Step::Carry(id) => self.carry(node.as_ref(), id).await,
            Step::Resume(id) => self.resume_moved(id).await,
            Step::Kill(id) => self.kill_there(node.as_ref(), id).await,
        };
        drop(in_hand);
        let result = if outcome.is_ok() { "done" } else { "failed" };
        metrics::counter!("atoll_drain_steps_total", "step" => step.name(), "result" => result).increment(1);
        let is_first = self.drains.went(id, outcome.is_ok());
        match outcome {
            Ok(()) => {}
            // Somebody is at it, or it is over: the next look sees.
            Err(ManagerError::Busy { .. } | ManagerError::NotFound(_) | ManagerError::AlreadyPaused(_)) => {
                self.drains.went(id, true);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                let step = step.name();
                if is_first {
                    tracing::warn!(node = %node.id(), sandbox = %id, step, error, "a step of emptying a node failed; it is tried again");
                } else {
                    tracing::debug!(node = %node.id(), sandbox = %id, step, error, "a step of emptying a node failed again");
                }
            }
        }
    }

    /// A sandbox, as long as it runs on this node; with its lock, and in no transition.
    async fn running_there(
        &self,
        node: &dyn Node,
        id: SandboxId,
    ) -> Result<Option<(crate::locks::Locked, Sandbox)>, ManagerError> {
        let Some(sandbox) = self.stored(id).await? else {
            return Ok(None);
        };
        let (locked, sandbox) = self.settled_now(sandbox.team, id).await?;
        let is_there = matches!(sandbox.phase, Phase::Running { at } if at.node == node.id());
        Ok(is_there.then_some((locked, sandbox)))
    }

    /// Pauses it, brings what was kept to the blobs, and resumes it elsewhere. Whoever dies on the way leaves a pause that says
    /// what it is for.
    async fn move_away(&self, node: &dyn Node, id: SandboxId) -> Result<(), ManagerError> {
        let Some((locked, sandbox)) = self.running_there(node, id).await? else {
            return Ok(());
        };
        let mode = pause_mode(&sandbox);
        let mut paused = self.pause_to_move(sandbox, mode).await;
        drop(locked);
        if mode == PauseMode::Full && matches!(paused, Err(ManagerError::CannotCheckpoint { .. })) {
            // Its processes would end anyway.
            if let Some((_locked, sandbox)) = self.running_there(node, id).await? {
                paused = self.pause_to_move(sandbox, PauseMode::Filesystem).await;
            }
        }
        paused?;
        self.carry(node, id).await?;
        self.resume_moved(id).await
    }

    async fn pause_there(&self, node: &dyn Node, id: SandboxId, mode: PauseMode) -> Result<(), ManagerError> {
        let Some((locked, sandbox)) = self.running_there(node, id).await? else {
            return Ok(());
        };
        let team = sandbox.team;
        drop(locked);
        self.pause_sandbox(team, id, mode, false).await
    }

    /// Brings the disk of a pause to the blobs.
    async fn carry(&self, node: &dyn Node, id: SandboxId) -> Result<(), ManagerError> {
        match self.bring_pause(node, id).await? {
            Ok(()) => Ok(()),
            Err(error) => Err(failure::node(id, "bringing its disk to the blobs")(error)),
        }
    }

    /// Resumes on another node what was paused for that, unless somebody else has it by now.
    async fn resume_moved(&self, id: SandboxId) -> Result<(), ManagerError> {
        let is_moving =
            |sandbox: &Sandbox| matches!(sandbox.phase, Phase::Paused { .. }) && sandbox.is_moving();
        let Some(sandbox) = self.stored(id).await?.filter(is_moving) else {
            return Ok(());
        };
        let (_locked, sandbox) = self.settled_now(sandbox.team, id).await?;
        if !is_moving(&sandbox) {
            return Ok(());
        }
        let left = sandbox
            .end_at
            .duration_since(whole_micros(self.now()))
            .unwrap_or_default();
        let pauses = matches!(sandbox.lifecycle.on_timeout, OnTimeout::Pause(_));
        if left.is_zero() && pauses {
            // It would be paused by now.
            self.stay_paused(sandbox).await?;
            return Ok(());
        }
        self.go_on_elsewhere(sandbox, left.max(LIFE_MIN)).await?;
        Ok(())
    }

    /// Makes a pause of a move an ordinary one, which nobody resumes without being asked.
    pub(crate) async fn stay_paused(&self, paused: Sandbox) -> Result<Sandbox, ManagerError> {
        let stay = |sandbox: &mut Sandbox| {
            if !matches!(sandbox.phase, Phase::Paused { .. }) {
                return Err(ManagerError::Busy {
                    id: sandbox.id,
                    state: sandbox.phase.name(),
                });
            }
            sandbox.moving = None;
            Ok(())
        };
        self.change(paused, stay).await
    }

    async fn kill_there(&self, node: &dyn Node, id: SandboxId) -> Result<(), ManagerError> {
        let is_there = |sandbox: &Sandbox| home(sandbox) == Some(node.id());
        match self.stored(id).await?.filter(is_there) {
            Some(sandbox) => {
                tracing::warn!(node = %node.id(), sandbox = %id, "a sandbox that could not be moved is killed, as its node is to be emptied by now");
                self.end(sandbox, KillReason::NodeLost).await
            }
            None => Ok(()),
        }
    }

    /// Notes what a node says of how it may be used.
    pub(crate) fn note_admission(&self, report: &Report) {
        let id = report.node;
        self.drains.note(id, report.draining);
        match (report.draining, report.accepts) {
            (Some(_), _) => self.placement.drain(id),
            (None, false) => self.placement.cordon(id),
            (None, true) => {
                let state = self.placement.look(|view| view.get(id).map(|known| known.state));
                let is_barred = matches!(state, Some(State::Cordoned | State::Draining));
                is_barred && self.placement.ready(id)
            }
        };
    }

    /// Tells a node what an operator wants of it.
    pub(crate) async fn set_admission(&self, id: NodeId, wish: NodeWish) -> Result<(), ManagerError> {
        let node = self.parts.fleet.node(id).ok_or(ManagerError::NoNode(id))?;
        let step = "telling the node";
        let told = match wish {
            NodeWish::Ready => within(WORD_MAX, step, node.set_accepts(true)).await,
            NodeWish::Cordoned => within(WORD_MAX, step, node.set_accepts(false)).await,
            NodeWish::Draining { .. } if !self.parts.config.shared => {
                let why = "this server is one machine, and has no other to which sandboxes could be moved: cordon it, or end all by 'atoll down'";
                return Err(ManagerError::Invalid(why.to_owned()));
            }
            NodeWish::Draining { within: wait, kills } => {
                let deadline = self.now() + wait;
                within(WORD_MAX, step, node.drain(Draining { deadline, kills })).await
            }
        };
        told.map_err(|error| match error {
            NodeError::Failed {
                kind: Kind::Unsupported,
                ..
            } => ManagerError::Invalid(format!("node {id} does not offer it: is it of an older release?")),
            NodeError::Timeout(what) => ManagerError::Timeout(what),
            error => ManagerError::Failed {
                step,
                kind: match error.kind() {
                    Kind::Unavailable => Kind::Unavailable,
                    _ => Kind::Internal,
                },
                source: error.into(),
            },
        })?;
        tracing::info!(node = %id, ?wish, "a node was told whether it takes new sandboxes");
        // Others hear of it by its next report.
        if let Ok(report) = within(WORD_MAX, "the report", node.report()).await {
            self.note_admission(&report);
        }
        self.nudge.notify_one();
        Ok(())
    }

    /// How far the emptying of a node is.
    pub(crate) async fn how_drained(&self, id: NodeId) -> Result<Option<Drained>, ManagerError> {
        let node = self.parts.fleet.node(id).ok_or(ManagerError::NoNode(id))?;
        let report = within(WORD_MAX, "the report", node.report()).await;
        let report = report.map_err(|error| ManagerError::Failed {
            step: "asking the node",
            kind: Kind::Unavailable,
            source: error.into(),
        })?;
        let Some(how) = report.draining else {
            return Ok(None);
        };
        let (live, stowed) = self.stored_and_stowed().await?;
        let (carried, plan) = self.plan_of(&report, how, &live, &stowed);
        Ok(Some(Drained {
            deadline: how.deadline,
            kills: how.kills,
            moving: plan.steps.len() + plan.queued + plan.under_way,
            waiting: plan.waiting,
            left: plan.left,
            carried,
            is_over: plan.is_over(),
        }))
    }

    /// Whether a pause is better resumed on another node than at home: where that is to be emptied, and nothing is lost by it, or
    /// it would have to go in the next moment.
    pub(crate) fn is_better_elsewhere(
        &self,
        home: NodeId,
        with_memory: bool,
        may_boot: bool,
        now: SystemTime,
    ) -> bool {
        let how = self.drains.of(home);
        how.is_some_and(|how| !with_memory || may_boot && now >= how.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_that_failed_rests_and_one_that_is_in_hand_is_nobody_elses() {
        let drains = Arc::new(Drains::default());
        let id = SandboxId::random();
        let held = drains.take(id).unwrap();
        assert!(drains.is_in_hand(id) && drains.take(id).is_none());
        drop(held);
        assert!(drains.went(id, false));
        for rest in [5, 10, 20, 40, 60, 60] {
            tokio::time::advance(Duration::from_secs(rest - 1)).await;
            assert!(drains.take(id).is_none(), "{rest}");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(drains.take(id).is_some(), "{rest}");
            assert!(!drains.went(id, false));
        }
        assert!(drains.is_stuck(id));
        tokio::time::advance(FAILED_FOR).await;
        assert!(!drains.is_stuck(id));
        drains.went(id, true);
        assert!(drains.take(id).is_some());
    }
}
