//! A machine with a node daemon: what it holds is in its journal, its daemon may die and come back, and deadlines are its own.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use model::{
    BuildId, ExecutionId, KillReason, Kind, Memory, MiB, NetworkPolicy, NodeId, OnTimeout, PauseMode,
    SandboxId,
};
use ports::node::{Held, HeldState, Order, OrderOrigin, PauseOutcome, Report};
use ports::runtime::Capabilities;
use ports::{Clock, NodeError, NodeEvent};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::broadcast;

/// A daemon looks at its deadlines this often.
const TICK: Duration = Duration::from_millis(250);
/// What it adds to the time of what it could not pause.
const RESPITE: Duration = Duration::from_secs(60);

pub(crate) struct Machine {
    pub(crate) id: NodeId,
    inner: Mutex<Inner>,
    clock: Arc<dyn Clock>,
    events: broadcast::Sender<NodeEvent>,
}

struct Inner {
    held: BTreeMap<SandboxId, Held>,
    builds: BTreeSet<BuildId>,
    /// Which life of the daemon; what an older one was at is not carried on.
    life: u64,
    up: bool,
    dice: SmallRng,
    calm: bool,
}

fn away() -> NodeError {
    NodeError::Failed {
        step: "reaching the node",
        kind: Kind::Unavailable,
        source: "it does not answer".into(),
    }
}

/// The daemon died while it was at it: who asked does not learn what came of it.
fn cut() -> NodeError {
    NodeError::Timeout("the answer")
}

impl Machine {
    pub(crate) fn new(id: NodeId, seed: u64, base: BuildId, clock: Arc<dyn Clock>) -> Arc<Self> {
        let machine = Arc::new(Self {
            id,
            inner: Mutex::new(Inner {
                held: BTreeMap::new(),
                builds: BTreeSet::from([base]),
                life: 0,
                up: true,
                dice: SmallRng::seed_from_u64(seed),
                calm: false,
            }),
            clock,
            events: broadcast::channel(256).0,
        });
        tokio::spawn(Arc::clone(&machine).enforce());
        machine
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// What it holds, whether or not it can be asked.
    pub(crate) fn held(&self) -> BTreeMap<SandboxId, Held> {
        self.inner().held.clone()
    }

    /// Reads what it holds, without a copy of it.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&BTreeMap<SandboxId, Held>) -> T) -> T {
        read(&self.inner().held)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.inner().up
    }

    pub(crate) fn calm_down(&self) {
        self.inner().calm = true;
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }

    /// The daemon dies. Sandboxes run on; what was half made is cleared away when it comes back.
    pub(crate) fn die(&self) {
        let mut inner = self.inner();
        inner.up = false;
        inner.life += 1;
    }

    /// The daemon comes back, and settles what it finds.
    pub(crate) fn come_back(&self) {
        let mut inner = self.inner();
        inner.up = true;
        inner.held.retain(|_, held| match held.state {
            HeldState::Stopping => false,
            HeldState::Starting => match held.order.origin {
                OrderOrigin::Fresh => false,
                // What it was started from is as it was.
                OrderOrigin::Paused(build, _) => {
                    held.state = HeldState::Paused(build, PauseMode::Full);
                    true
                }
                OrderOrigin::Reboot(_) => {
                    held.state = HeldState::Running;
                    true
                }
            },
            HeldState::Pausing(..) => {
                held.state = HeldState::Running;
                true
            }
            HeldState::Running | HeldState::Paused(..) => true,
        });
    }

    /// Takes a while; fails where the daemon dies meanwhile.
    async fn work(&self, life: u64, from: u64, to: u64) -> Result<(), NodeError> {
        let wait = self.inner().dice.random_range(from..to);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        if self.inner().life == life {
            Ok(())
        } else {
            Err(cut())
        }
    }

    fn fails(&self, per_mille: u32) -> bool {
        let mut inner = self.inner();
        !inner.calm && inner.dice.random_ratio(per_mille, 1000)
    }

    fn life(&self) -> Result<u64, NodeError> {
        let inner = self.inner();
        if inner.up { Ok(inner.life) } else { Err(away()) }
    }

    pub(crate) async fn start(&self, order: Order) -> Result<(), NodeError> {
        let life = self.life()?;
        let (id, execution, origin) = (order.sandbox, order.execution, order.origin);
        let before = {
            let mut inner = self.inner();
            let held = inner.held.get(&id).cloned();
            match (&held, origin) {
                (Some(held), _) if held.order.execution == execution => match held.state {
                    HeldState::Running => return Ok(()),
                    _ => return Err(NodeError::Busy("being changed")),
                },
                (None, OrderOrigin::Fresh) if !inner.builds.contains(&order.build) => {
                    return Err(NodeError::NoBuild(order.build));
                }
                (None, OrderOrigin::Fresh) => {}
                (Some(held), OrderOrigin::Paused(build, _)) => match held.state {
                    HeldState::Paused(kept, _) if kept == build => {}
                    _ => return Err(NodeError::Busy("something else")),
                },
                (Some(held), OrderOrigin::Reboot(old)) => {
                    if held.order.execution != old || held.state != HeldState::Running {
                        return Err(NodeError::Busy("something else"));
                    }
                }
                (None, _) => return Err(NodeError::Unknown),
                (Some(_), OrderOrigin::Fresh) => return Err(NodeError::Busy("something else")),
            }
            let starting = Held {
                order,
                state: HeldState::Starting,
                pause: None,
            };
            inner.held.insert(id, starting);
            held
        };
        let slow = self.fails(20);
        let (from, to) = if slow { (1000, 90_000) } else { (5, 200) };
        self.work(life, from, to).await?;
        let failed = self.fails(30);
        let mut inner = self.inner();
        let Some(held) = inner
            .held
            .get_mut(&id)
            .filter(|held| held.order.execution == execution)
        else {
            return Err(NodeError::Unknown);
        };
        if held.state != HeldState::Starting {
            return Err(NodeError::Busy("being ended"));
        }
        if failed {
            match before {
                Some(before) => drop(inner.held.insert(id, before)),
                None => drop(inner.held.remove(&id)),
            }
            return Err(NodeError::Failed {
                step: "booting",
                kind: Kind::Internal,
                source: "it did not".into(),
            });
        }
        held.state = HeldState::Running;
        Ok(())
    }

    /// Changes the state of an execution, if it is as it should be.
    fn turn(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        from: HeldState,
        to: HeldState,
    ) -> Result<(), NodeError> {
        let mut inner = self.inner();
        let held = inner
            .held
            .get_mut(&id)
            .filter(|held| held.order.execution == execution);
        let held = held.ok_or(NodeError::Unknown)?;
        if held.state != from {
            return Err(NodeError::Busy("being changed"));
        }
        held.state = to;
        Ok(())
    }

    pub(crate) async fn pause(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        let life = self.life()?;
        let outcome = PauseOutcome {
            mode,
            memory: if mode == PauseMode::Full {
                Memory::Durable
            } else {
                Memory::None
            },
            envd_unresponsive: false,
        };
        let state = self
            .inner()
            .held
            .get(&id)
            .map(|held| (held.order.execution, held.state));
        if state == Some((execution, HeldState::Paused(into, mode))) {
            return Ok(outcome);
        }
        let pausing = HeldState::Pausing(into, mode);
        self.turn(id, execution, HeldState::Running, pausing)?;
        let slow = self.fails(20);
        self.work(life, 5, if slow { 30_000 } else { 300 }).await?;
        if self.fails(50) {
            self.turn(id, execution, pausing, HeldState::Running)?;
            return Err(NodeError::CannotCheckpoint("it would not".to_owned()));
        }
        self.turn(id, execution, pausing, HeldState::Paused(into, mode))?;
        if let Some(held) = self.inner().held.get_mut(&id) {
            held.pause = Some(outcome);
        }
        Ok(outcome)
    }

    pub(crate) async fn checkpoint(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        into: BuildId,
    ) -> Result<Memory, NodeError> {
        let life = self.life()?;
        let runs = || self.turn(id, execution, HeldState::Running, HeldState::Running);
        runs()?;
        self.work(life, 5, 300).await?;
        runs()?;
        self.inner().builds.insert(into);
        Ok(Memory::None)
    }

    pub(crate) async fn kill(&self, id: SandboxId) -> Result<(), NodeError> {
        let life = self.life()?;
        match self.inner().held.get_mut(&id) {
            Some(held) => held.state = HeldState::Stopping,
            None => return Ok(()),
        }
        self.work(life, 1, 100).await?;
        if self.fails(10) {
            return Err(NodeError::Failed {
                step: "killing",
                kind: Kind::Internal,
                source: "it sleeps".into(),
            });
        }
        self.inner().held.remove(&id);
        Ok(())
    }

    pub(crate) fn change(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        edit: impl FnOnce(&mut Order),
    ) -> Result<(), NodeError> {
        self.life()?;
        let mut inner = self.inner();
        let held = inner
            .held
            .get_mut(&id)
            .filter(|held| held.order.execution == execution);
        let held = held.ok_or(NodeError::Unknown)?;
        if held.state != HeldState::Running {
            return Err(NodeError::Busy("being changed"));
        }
        edit(&mut held.order);
        Ok(())
    }

    pub(crate) fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
        self.life()?;
        Ok(self.inner().builds.iter().copied().collect())
    }

    pub(crate) fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        self.life()?;
        let mut inner = self.inner();
        for build in builds {
            let used = inner.held.values().any(|held| held.order.build == *build);
            assert!(!used, "a build was removed of which a sandbox is: {build}");
            inner.builds.remove(build);
        }
        Ok(())
    }

    pub(crate) fn report(&self) -> Result<Report, NodeError> {
        self.life()?;
        Ok(Report {
            node: self.id,
            runtime: "model".to_owned(),
            capabilities: Capabilities {
                durable_memory: true,
                freeze: true,
                own_kernel: false,
                network: true,
                volumes: true,
                roots: true,
                portable_builds: false,
            },
            started_at: SystemTime::UNIX_EPOCH,
            held: self.inner().held.values().cloned().collect(),
            cpu_total: 64,
            memory_total: MiB(1024 * 1024),
            memory_available: MiB(1024 * 1024),
            disk_total: MiB(1024 * 1024),
            disk_available: MiB(1024 * 1024),
            slots_ready: 0,
            starting: 0,
            accepts: true,
            draining: None,
            own: Vec::new(),
        })
    }

    /// Ends what is over.
    async fn enforce(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            if !self.is_up() {
                continue;
            }
            let now = self.clock.now();
            let is_over = |held: &&Held| held.state == HeldState::Running && held.order.deadline <= now;
            let over: Vec<_> = self
                .inner()
                .held
                .values()
                .filter(is_over)
                .map(|held| held.order.clone())
                .collect();
            for order in over {
                tokio::spawn(Arc::clone(&self).time_is_over(order.sandbox, order));
            }
        }
    }

    async fn time_is_over(self: Arc<Self>, id: SandboxId, order: Order) {
        let (execution, why) = (order.execution, KillReason::Timeout);
        match order.lifecycle.on_timeout {
            OnTimeout::Kill => {
                if self
                    .turn(id, execution, HeldState::Running, HeldState::Stopping)
                    .is_err()
                {
                    return;
                }
                let _ = self.events.send(NodeEvent::Ending(id, execution, why));
                let Ok(life) = self.life() else { return };
                if self.work(life, 1, 100).await.is_ok() {
                    self.inner().held.remove(&id);
                    let _ = self.events.send(NodeEvent::Ended(id, execution, why));
                }
            }
            OnTimeout::Pause(mode) => {
                let into = BuildId::random();
                let is_running = || {
                    let held = self.held();
                    held.get(&id).is_some_and(|held| {
                        held.order.execution == execution && held.state == HeldState::Running
                    })
                };
                if !is_running() {
                    return;
                }
                let _ = self.events.send(NodeEvent::Pausing(id, execution, into, mode));
                match self.pause(id, execution, into, mode).await {
                    Ok(outcome) => {
                        let _ = self.events.send(NodeEvent::Paused(id, execution, into, outcome));
                    }
                    Err(_) => {
                        let until = self.clock.now() + RESPITE;
                        if self.change(id, execution, |order| order.deadline = until).is_ok() {
                            let _ = self.events.send(NodeEvent::PauseFailed(id, execution, into));
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn set_network(
        &self,
        id: SandboxId,
        execution: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        self.change(id, execution, |order| order.network = policy)
    }
}
