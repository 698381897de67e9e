//! Keeps what is stored and what nodes hold the same. A pass takes no input: it reads both, and settles the difference.
//!
//! The store is read before the nodes are asked, and a verdict is carried out under the sandbox's lock, if that is free,
//! and on the version that was read: if anything moved in between, the verdict is void and the next pass sees again.
mod away;
mod carry_out;
mod others;
mod verdict;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use model::{KillReason, NodeId, OnTimeout, Origin, Phase, Sandbox, SandboxId, State};
use ports::node::Held;
use ports::{ManagerError, Node, Route};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub(crate) use self::away::Away;
pub(crate) use self::others::Others;
use self::verdict::{Verdict, verdict};
use crate::capacity::promised;
use crate::failure;
use crate::nodes::{WORD_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::quota::{counted, share};
use crate::{collect, stow, volume};

/// A difference is settled within this time; what operations and events settle by themselves needs no pass.
const PERIOD: Duration = Duration::from_secs(5);
/// Ended sandboxes are remembered for this long, so that answers and logs can say what became of them.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Operations under way when the process is asked to stop get this long.
const GRACE: Duration = Duration::from_secs(10);
/// Differences that are settled at once. Most of them are kills, which wait for the kernel.
const AT_ONCE: usize = 16;
/// Passes in a row that must miss a paused sandbox before it is given up: it is somebody's data, and nothing waits for it.
const ABSENCES_MAX: u32 = 3;

const PASSED: &str = "nothing panics while it holds what the last pass found";

/// Paused sandboxes that their nodes did not report, and how often in a row.
pub(crate) type Absent = Mutex<HashMap<SandboxId, u32>>;

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Sandboxes that are stored and not gone.
    pub live: usize,
    /// Those on which store and node agree, or of which one is at work.
    pub agreed: usize,
    /// Those on which they were made to agree.
    pub settled: usize,
    /// What nodes held of sandboxes that nobody knows, and was ended.
    pub strays: usize,
    /// Nodes that did not report; their sandboxes are left as they are.
    pub silent_nodes: usize,
}

/// What the nodes that answered hold.
type Reports = HashMap<NodeId, HashMap<SandboxId, Held>>;

/// What was stored when the pass began.
type Known = HashMap<SandboxId, Phase>;

/// The node that has a sandbox, running or paused.
fn home(phase: Phase) -> Option<NodeId> {
    match phase {
        Phase::Paused { home, .. } => Some(home),
        phase => phase.seat().map(|seat| seat.node),
    }
}

/// Whether it is on a node, and is to stay there.
pub(crate) fn runs(phase: Phase) -> bool {
    phase.seat().is_some() && !matches!(phase, Phase::Killing { .. })
}

/// Whether a sandbox would be over by now, if its node were there to end it. The end of one that is being resumed is that of
/// its last run.
fn is_over(sandbox: &Sandbox, now: SystemTime) -> bool {
    let is_resuming = given_up(sandbox.phase) == Verdict::NotStarted;
    runs(sandbox.phase)
        && !is_resuming
        && sandbox.end_at <= now
        && sandbox.lifecycle.on_timeout == OnTimeout::Kill
}

/// What becomes of a sandbox whose node does not come back in time. One that was being resumed there is paused as it was
/// before: whoever paused it was told that it can be resumed.
fn given_up(phase: Phase) -> Verdict {
    match phase {
        // A restart is named after its own execution: nothing else is left of that.
        Phase::Starting {
            at,
            from: Origin::Snapshot { build, .. },
        } if build.0 != at.execution.0 => Verdict::NotStarted,
        _ => Verdict::Lost(KillReason::NodeLost),
    }
}

/// Carries out a few at a time; how many of them were of effect.
async fn count(work: Vec<BoxFuture<'_, bool>>) -> usize {
    let mut outcomes = stream::iter(work).buffer_unordered(AT_ONCE);
    let mut done = 0;
    while let Some(outcome) = outcomes.next().await {
        done += usize::from(outcome);
    }
    done
}

impl Orchestrator {
    /// Settles everything once, before the first client: when this returns, adopted sandboxes have their routes.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn settle_now(&self) -> Result<Settled, ManagerError> {
        let live = self
            .parts
            .sandboxes
            .live()
            .await
            .map_err(failure::store("reading the sandboxes"))?;
        // Where this process is alone nobody ends anything yet, so nothing is looked up again.
        if !self.parts.config.shared {
            let held = |sandbox: &Sandbox| counted(sandbox).map(|at| share(sandbox, at.execution));
            let shares: Vec<_> = live.iter().filter_map(held).collect();
            self.parts.shares.hold(&shares).await;
        }
        let settled = self.pass().await?;
        self.settle_volumes().await?;
        tracing::info!(?settled, "sandboxes are settled");
        Ok(settled)
    }

    /// Hears the nodes and reconciles until `shutdown`; then lets operations under way end.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut fleet = self.parts.fleet.nodes();
        let mut heard = HashSet::new();
        let (mut collected, mut stowed) = (Instant::now(), Instant::now());
        let mut settled_volumes = Instant::now();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if self.parts.config.shared {
            self.tasks.spawn(Arc::clone(&self).watch_fleet(shutdown.clone()));
        }
        if self.parts.config.shared && self.parts.config.runs_builds {
            self.tasks
                .spawn(Arc::clone(&self).look_for_builds(shutdown.clone()));
        }
        loop {
            self.see_fleet();
            self.hear_all(&fleet.borrow_and_update().clone(), &mut heard, &shutdown);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Ok(()) = fleet.changed() => continue,
                () = self.nudge.notified() => {}
                _ = tick.tick() => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                outcome = self.pass() => if let Err(error) = outcome {
                    tracing::error!(error = &error as &dyn std::error::Error, "a pass of the reconciler failed");
                },
            }
            if self.parts.config.runs_builds
                && let Err(error) = self.care_for_builds().await
            {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "builds were not looked after"
                );
            }
            if collected.elapsed() >= collect::PERIOD {
                collected = Instant::now();
                self.tasks.spawn(Arc::clone(&self).collect_in_background());
            }
            if stowed.elapsed() >= stow::PERIOD {
                stowed = Instant::now();
                self.tasks.spawn(Arc::clone(&self).stow_in_background());
            }
            if settled_volumes.elapsed() >= volume::settle::PERIOD {
                settled_volumes = Instant::now();
                self.tasks.spawn(Arc::clone(&self).settle_volumes_in_background());
            }
            if self.parts.config.shared {
                self.tasks.spawn(Arc::clone(&self).drain_in_background());
            }
        }
        self.end_operations().await;
    }

    /// Carries out what clients ask for until `shutdown`, and leaves the rest to other processes; then lets operations under
    /// way end.
    pub async fn serve(self: Arc<Self>, shutdown: CancellationToken) {
        Arc::clone(&self).watch_fleet(shutdown).await;
        self.end_operations().await;
    }

    async fn end_operations(&self) {
        self.building.close();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                operations = self.tasks.len(),
                "operations are cut short; the reconciler settles them"
            );
        }
    }

    /// Listens to the nodes that are new. A node that went and came back is heard again at its next appearance.
    fn hear_all(
        self: &Arc<Self>,
        fleet: &[Arc<dyn Node>],
        heard: &mut HashSet<NodeId>,
        shutdown: &CancellationToken,
    ) {
        heard.retain(|id| fleet.iter().any(|node| node.id() == *id));
        for node in fleet {
            if heard.insert(node.id()) {
                self.tasks
                    .spawn(Arc::clone(self).listen(node.events(), shutdown.clone()));
            }
        }
    }

    /// One pass.
    async fn pass(&self) -> Result<Settled, ManagerError> {
        let began = tokio::time::Instant::now();
        let live = self
            .parts
            .sandboxes
            .live()
            .await
            .map_err(failure::store("reading the sandboxes"))?;
        let fleet = self.parts.fleet.nodes().borrow().clone();
        let mut reports = Reports::new();
        for report in self.reports().await {
            self.note_admission(&report);
            let held = report.held.into_iter().map(|held| (held.order.sandbox, held));
            reports.insert(report.node, held.collect());
        }
        let mut settled = Settled {
            live: live.len(),
            silent_nodes: fleet.len() - reports.len(),
            ..Settled::default()
        };
        self.measure(&live);
        let known: Known = live.iter().map(|sandbox| (sandbox.id, sandbox.phase)).collect();
        let seats = known.values().filter_map(Phase::seat);
        let seated = seats.map(|seat| seat.execution).collect();
        self.prune_shares(&seated).await;
        self.hold_stored(&live).await?;
        self.withdraw_stale(&known).await;
        self.others.keep(&known);
        let named = known.values().filter_map(|phase| home(*phase)).collect();
        let there: HashSet<NodeId> = fleet.iter().map(|node| node.id()).collect();
        let gone = self.away.note(&named, &there, self.parts.config.node_lost_after);

        let mut differences = Vec::new();
        for sandbox in live {
            let Some(node) = home(sandbox.phase) else {
                continue;
            };
            let Some(held) = reports.get(&node) else {
                let is_given_up = gone.contains(&node) && self.parts.config.shared && runs(sandbox.phase);
                if is_given_up || !there.contains(&node) && is_over(&sandbox, self.now()) {
                    let lost = given_up(sandbox.phase);
                    differences.push(self.settle(lost, sandbox, None).boxed());
                }
                continue;
            };
            let held = held.get(&sandbox.id);
            match self.difference(&sandbox, held).await {
                Some(verdict) => differences.push(self.settle(verdict, sandbox, held).boxed()),
                None => settled.agreed += 1,
            }
        }
        settled.settled = count(differences).await;
        settled.strays = self.end_strays(&fleet, &reports, &known).await;
        self.forget().await;
        metrics::histogram!("atoll_reconcile_pass_seconds").record(began.elapsed());
        *self.passed.lock().expect(PASSED) = Some(Instant::now());
        Ok(settled)
    }

    /// How long ago the last whole pass came to its end; `None` before the first.
    #[must_use]
    pub fn last_pass(&self) -> Option<Duration> {
        self.passed.lock().expect(PASSED).map(|at| at.elapsed())
    }

    /// Settles one sandbox with what its node says now. The caller holds its lock.
    // Boxed, like the next one: what is carried out may fail, and then be settled in turn.
    pub(crate) fn settle_one(&self, id: SandboxId) -> BoxFuture<'_, Result<(), ManagerError>> {
        let settle = async move {
            if let Some((sandbox, held)) = self.look_at(id).await? {
                let verdict = verdict(&sandbox, held.as_ref(), self.now());
                self.carry_out(verdict, sandbox, held.as_ref()).await?;
            }
            Ok(())
        };
        settle.boxed()
    }

    /// Settles a resume or restart that failed with what its node says now. The caller holds its lock. A reboot that was
    /// not begun is not tried again: what ran before runs on.
    pub(crate) fn settle_failed_start(&self, id: SandboxId) -> BoxFuture<'_, Result<(), ManagerError>> {
        let settle = async move {
            let Some((sandbox, held)) = self.look_at(id).await? else {
                return Ok(());
            };
            let verdict = verdict(&sandbox, held.as_ref(), self.now());
            if matches!(verdict, Verdict::Reboot(_)) {
                self.carry_out(Verdict::NotStarted, sandbox, held.as_ref())
                    .await?;
                return self.settle_one(id).await;
            }
            self.carry_out(verdict, sandbox, held.as_ref()).await?;
            Ok(())
        };
        settle.boxed()
    }

    /// A sandbox that is not gone, and then what its node holds of it.
    async fn look_at(&self, id: SandboxId) -> Result<Option<(Sandbox, Option<Held>)>, ManagerError> {
        let Some(sandbox) = self.stored(id).await? else {
            return Ok(None);
        };
        let Some(node) = home(sandbox.phase) else {
            return Ok(None);
        };
        let report = within(WORD_MAX, "the report", self.node(node)?.report()).await;
        let report = report.map_err(failure::node(id, "asking its node"))?;
        let held = report.held.into_iter().find(|held| held.order.sandbox == id);
        Ok(Some((sandbox, held)))
    }

    /// What is to be done about a sandbox in this pass, if anything.
    async fn difference(&self, sandbox: &Sandbox, held: Option<&Held>) -> Option<Verdict> {
        let verdict = verdict(sandbox, held, self.now());
        if self.is_patient(sandbox, verdict) {
            return None;
        }
        // Asked always, so that its time is measured from the first sight on.
        if self.parts.config.shared && self.others.may_be_at(sandbox, Instant::now()) {
            return None;
        }
        match verdict {
            Verdict::Wait => None,
            // Its node has lost it, and the blobs hold its disk: it is resumed from there.
            Verdict::Lost(_) if self.is_held_by_blobs(sandbox.phase).await => None,
            Verdict::Agreed => self.differs(sandbox, held).await.then_some(verdict),
            verdict => Some(verdict),
        }
    }

    /// Whether a paused sandbox needs nothing of its node. Where that cannot be said it is not given up.
    async fn is_held_by_blobs(&self, phase: Phase) -> bool {
        match phase {
            Phase::Paused { snapshot, .. } => self.is_stowed(snapshot).await.unwrap_or(true),
            _ => false,
        }
    }

    /// Settles one sandbox of a pass; whether it is settled now.
    async fn settle(&self, verdict: Verdict, sandbox: Sandbox, held: Option<&Held>) -> bool {
        let id = sandbox.id;
        // An operation of this process is at it, and knows better.
        let Some(_locked) = self.locks.try_lock(id) else {
            return false;
        };
        match self.settle_unmoved(verdict, sandbox, held).await {
            Ok(done) => done,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(sandbox = %id, error, "a difference was not settled; the next pass tries again");
                false
            }
        }
    }

    /// Carries a verdict out, unless what it was found on is old by now: an operation that came to its end between the
    /// reading and the report is in the report, and not in what was read.
    async fn settle_unmoved(
        &self,
        verdict: Verdict,
        sandbox: Sandbox,
        held: Option<&Held>,
    ) -> Result<bool, ManagerError> {
        let (id, phase) = (sandbox.id, sandbox.phase.name());
        let now = self.stored(id).await?;
        if now.is_none_or(|now| now.version != sandbox.version) {
            return Ok(false);
        }
        tracing::info!(sandbox = %id, phase, ?verdict, "settling what is stored with what its node holds");
        self.carry_out(verdict, sandbox, held).await
    }

    /// Whether a lost sandbox is to be looked for again before it is given up.
    fn is_patient(&self, sandbox: &Sandbox, verdict: Verdict) -> bool {
        let id = sandbox.id;
        let mut absent = self
            .absent
            .lock()
            .expect("nothing panics while it holds the absent");
        let lost = matches!((sandbox.phase, verdict), (Phase::Paused { .. }, Verdict::Lost(_)));
        if !lost {
            absent.remove(&id);
            return false;
        }
        let times = absent.entry(id).or_default();
        *times += 1;
        let patient = *times < ABSENCES_MAX;
        if !patient {
            absent.remove(&id);
        }
        patient
    }

    /// Whether a running sandbox lacks its route, or its node has other settings than are stored.
    async fn differs(&self, sandbox: &Sandbox, held: Option<&Held>) -> bool {
        let (Phase::Running { at }, Some(held)) = (sandbox.phase, held) else {
            return false;
        };
        let route = self.parts.catalog.published(sandbox.id).await;
        // A catalog that is away cannot be told anything either.
        let routed = route.map_or(true, |route| route.is_some_and(|route| route.seat == at));
        !routed || held.order.deadline != sandbox.end_at || held.order.network != sandbox.network
    }

    /// Ends what nodes hold of sandboxes that are unknown, gone, or elsewhere.
    async fn end_strays(&self, fleet: &[Arc<dyn Node>], reports: &Reports, known: &Known) -> usize {
        let mut strays = Vec::new();
        for node in fleet {
            for id in reports.get(&node.id()).into_iter().flat_map(HashMap::keys) {
                if known.get(id).and_then(|phase| home(*phase)) != Some(node.id()) {
                    strays.push(self.end_stray(node.as_ref(), *id).boxed());
                }
            }
        }
        count(strays).await
    }

    /// Ends one, if it is one: what was stored after the pass began is looked up again, and what this process is at is
    /// left alone.
    async fn end_stray(&self, node: &dyn Node, id: SandboxId) -> bool {
        let Some(_locked) = self.locks.try_lock(id) else {
            return false;
        };
        let elsewhere = |sandbox: Sandbox| home(sandbox.phase) != Some(node.id());
        if !self
            .stored(id)
            .await
            .is_ok_and(|stored| stored.is_none_or(elsewhere))
        {
            return false;
        }
        tracing::warn!(sandbox = %id, node = %node.id(), "ending what a node holds of a sandbox that is not its own");
        self.kill_on(node, id).await.is_ok()
    }

    /// Withdraws routes of sandboxes that do not run any more.
    async fn withdraw_stale(&self, known: &Known) {
        let Ok(routes) = self.parts.catalog.all().await else {
            return;
        };
        // A route stands before it is stored that its sandbox runs.
        let stands = |phase: Phase, route: &Route| {
            phase.seat() == Some(route.seat)
                && (phase.is_routable() || matches!(phase, Phase::Starting { .. }))
        };
        let stale = |route: &&Arc<Route>| {
            !known
                .get(&route.sandbox)
                .is_some_and(|phase| stands(*phase, route))
        };
        for route in routes.iter().filter(stale) {
            let runs = |sandbox: Sandbox| stands(sandbox.phase, route);
            if self
                .stored(route.sandbox)
                .await
                .is_ok_and(|stored| !stored.is_some_and(runs))
            {
                self.withdraw(route.sandbox, route.seat).await;
            }
        }
    }

    async fn forget(&self) {
        let before = self.now() - REMEMBERED;
        if let Err(error) = self.parts.sandboxes.forget_gone(before).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "ended sandboxes were not forgotten"
            );
        }
    }

    /// Notes how many there are, and what is promised to them.
    fn measure(&self, live: &[Sandbox]) {
        *self.promised.lock().expect(PASSED) = Some(promised(live));
        for (name, state) in [("running", State::Running), ("paused", State::Paused)] {
            let count = live
                .iter()
                .filter(|sandbox| sandbox.phase.state() == Some(state))
                .count();
            #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^52 sandboxes")]
            metrics::gauge!("atoll_sandboxes", "state" => name).set(count as f64);
        }
    }
}
