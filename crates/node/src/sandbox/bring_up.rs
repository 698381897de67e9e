//! From an order to a sandbox that is usable.
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use model::{KillReason, Memory, PauseMode};
use ports::node::{HeldState, NodeError, Order, OrderOrigin};
use ports::runtime::{Disk, DiskOrigin};
use ports::{Machine, MachineSpec, RuntimeError};
use tracing::Instrument as _;
use wire::init::{Init, StartCommand};

use crate::envd;
use crate::journal::Entry;
use crate::node::LocalNode;
use crate::sandbox::{Sandbox, name};

/// How a machine came to run, as its envd is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// Its first process is new, and its start command is to be run.
    Booted,
    /// It was frozen: its processes have not even noticed.
    Thawed,
    /// Its processes went on from memory that was written down: of this sandbox, or of the one that it is a copy of.
    Restored,
}

/// Why memory is not used that does not fit. Owners of sandboxes are not told of the host more than this: which of it has
/// changed, and to what, is in the log of the node.
const DOES_NOT_FIT: &str =
    "the server's kernel, processor or CRIU is another than when it was saved, or what was saved is damaged";
/// Why it is not used where a boot from the disk took its place.
const GIVEN_UP: &str = "a boot from the disk has taken its place";
/// Why it is not used where nothing lies beside the disk.
const NOT_THERE: &str = "it is not beside the disk any more";

impl LocalNode {
    /// Carries out an order. On failure the sandbox is what it was before.
    pub(crate) async fn bring_up(self: &Arc<Self>, order: Order) -> Result<(), NodeError> {
        match order.origin {
            OrderOrigin::Fresh => self.bring_up_fresh(order).await,
            OrderOrigin::Paused(..) | OrderOrigin::Reboot(_) => self.bring_up_known(order).await,
        }
    }

    async fn bring_up_fresh(self: &Arc<Self>, order: Order) -> Result<(), NodeError> {
        let entry = Entry {
            order: order.clone(),
            state: HeldState::Starting,
            booted: None,
            kept: None,
        };
        let (sandbox, is_new) = self.find_or_insert(order.sandbox, || Sandbox::new(entry, None));
        let _turn = sandbox.turn.lock().await;
        if !is_new {
            let held = sandbox.held();
            return match held.state {
                HeldState::Running if held.order.execution == order.execution => Ok(()),
                state => Err(NodeError::Busy(name(state))),
            };
        }
        let machine = match self.start_fresh(&sandbox, &order).await {
            Ok(machine) => machine,
            Err(error) => {
                self.forget(order.sandbox, &sandbox);
                return Err(error);
            }
        };
        sandbox.now().machine = Some(Arc::clone(&machine));
        let up = self.make_usable(&sandbox, order, machine).await;
        if up.is_err()
            && let Err(error) = self.end_in_turn(&sandbox, KillReason::StartFailed).await
        {
            let id = sandbox.id();
            tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox that did not start could not be ended; it is tried again");
            self.drive(&sandbox);
        }
        up
    }

    /// Starts a machine of a build: with its processes, where it has them and they can go on here.
    async fn start_fresh(&self, sandbox: &Sandbox, order: &Order) -> Result<Arc<dyn Machine>, NodeError> {
        if self.runtime.memory_of(order.build).await != Memory::Durable {
            return self.start_machine(order, DiskOrigin::Fresh, false).await;
        }
        let restored = self.try_machine(order, DiskOrigin::Fresh, true).await;
        let Err(error @ RuntimeError::CannotRestore { .. }) = restored else {
            return restored.map_err(failed("starting the machine"));
        };
        tracing::warn!(sandbox = %order.sandbox, build = %order.build, error = &error as &dyn std::error::Error, "the memory of a build cannot be used here; its sandbox boots");
        sandbox.lines().say(
            SystemTime::now(),
            ports::Level::Warn,
            format!("it boots, and runs its start command, because the memory of its template cannot be used: {DOES_NOT_FIT}"),
        );
        self.start_machine(order, DiskOrigin::Fresh, false).await
    }

    async fn bring_up_known(self: &Arc<Self>, order: Order) -> Result<(), NodeError> {
        let sandbox = self.find(order.sandbox).ok_or(NodeError::Unknown)?;
        let _turn = sandbox.turn.lock().await;
        let held = sandbox.held();
        if held.state == HeldState::Running && held.order.execution == order.execution {
            return Ok(());
        }
        match (order.origin, held.state) {
            (OrderOrigin::Paused(build, wanted), HeldState::Paused(paused, kept)) if build == paused => {
                match (wanted, kept) {
                    (PauseMode::Full, PauseMode::Full) if sandbox.is_on_disk() => {
                        self.restore(&sandbox, order).await
                    }
                    (PauseMode::Full, PauseMode::Full) => self.thaw(&sandbox, order).await,
                    // A resume from its disk ended what was frozen, and did not come up.
                    (PauseMode::Full, PauseMode::Filesystem) => Err(NodeError::MemoryUnusable(GIVEN_UP)),
                    (PauseMode::Filesystem, _) => self.reboot(&sandbox, order).await,
                }
            }
            (OrderOrigin::Reboot(execution), HeldState::Running) if held.order.execution == execution => {
                self.reboot(&sandbox, order).await
            }
            (_, state) => Err(NodeError::Busy(name(state))),
        }
    }

    /// Lets a frozen machine go on.
    async fn thaw(self: &Arc<Self>, sandbox: &Arc<Sandbox>, order: Order) -> Result<(), NodeError> {
        let machine = sandbox
            .machine()
            .filter(|machine| machine.ended().borrow().is_none())
            .ok_or(NodeError::MemoryLost)?;
        let up = self.wake(sandbox, order, &machine).await;
        if up.is_err()
            && let Err(error) = machine.freeze().await
        {
            let id = sandbox.id();
            tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox that was not resumed could not be frozen again");
        }
        up
    }

    async fn wake(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        order: Order,
        machine: &Arc<dyn Machine>,
    ) -> Result<(), NodeError> {
        machine.thaw().await.map_err(failed("thawing"))?;
        failpoint::reach("node/thawed");
        self.tell_settings(&**machine, &order, Begun::Thawed).await?;
        self.settle(sandbox, order, Arc::clone(machine))
    }

    /// Lets processes go on whose memory lies on the disk.
    async fn restore(self: &Arc<Self>, sandbox: &Arc<Sandbox>, order: Order) -> Result<(), NodeError> {
        let machine = match self.try_machine(&order, DiskOrigin::Kept, true).await {
            Ok(machine) => machine,
            Err(error @ RuntimeError::CannotRestore { .. }) => {
                tracing::warn!(sandbox = %sandbox.id(), error = &error as &dyn std::error::Error, "the memory of a sandbox cannot be used any more; its disk is there");
                let unusable = NodeError::MemoryUnusable(DOES_NOT_FIT);
                sandbox
                    .lines()
                    .say(SystemTime::now(), ports::Level::Error, unusable.to_string());
                return Err(unusable);
            }
            Err(error) => return Err(failed("starting the machine")(error)),
        };
        failpoint::reach("node/machine-restored");
        if !machine.is_restored() {
            // It has booted: what was kept beside the disk was not there.
            self.lay_down(sandbox, machine).await;
            return Err(NodeError::MemoryUnusable(NOT_THERE));
        }
        // Its envd goes on counting its lines where it was.
        let up = self.make_usable(sandbox, order, Arc::clone(&machine)).await;
        if up.is_err() {
            self.freeze_restored(sandbox, machine).await;
        }
        up
    }

    /// Puts a machine back whose processes went on, and that nobody was told of: they have gone on since their memory was
    /// written down, so that it is this machine that has it now.
    async fn freeze_restored(self: &Arc<Self>, sandbox: &Arc<Sandbox>, machine: Arc<dyn Machine>) {
        if let Err(error) = machine.freeze().await {
            let id = sandbox.id();
            tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox that was not resumed could not be frozen again");
        }
        self.change_anyway(sandbox, |entry| {
            entry.booted = Some(machine.execution());
            entry.stay_in_memory();
        });
        sandbox.now().machine = Some(machine);
        self.drive(sandbox);
    }

    /// Ends a machine that was to be a sandbox's, and keeps the disk.
    async fn lay_down(self: &Arc<Self>, sandbox: &Arc<Sandbox>, machine: Arc<dyn Machine>) {
        if let HeldState::Paused(build, _) = sandbox.state() {
            self.set_state_anyway(sandbox, HeldState::Paused(build, PauseMode::Filesystem));
        }
        if let Err(error) = machine.stop(Disk::Keep).await {
            let id = sandbox.id();
            tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a sandbox that did not boot could not be stopped; it is tried again");
            sandbox.now().machine = Some(machine);
            self.drive(sandbox);
        }
    }

    /// Boots a new machine from the sandbox's disk, after ending the one that there is.
    async fn reboot(self: &Arc<Self>, sandbox: &Arc<Sandbox>, order: Order) -> Result<(), NodeError> {
        if let Some(machine) = sandbox.machine() {
            let before = sandbox.state();
            // A restart of the daemon in between finds a machine that goes on, or a disk that is somebody's.
            let (meant, disk_only) = match order.origin {
                OrderOrigin::Paused(build, _) => {
                    let disk_only = HeldState::Paused(build, PauseMode::Filesystem);
                    (disk_only, disk_only)
                }
                _ => {
                    let (build, mode) = (model::BuildId(order.execution.0), PauseMode::Filesystem);
                    (HeldState::Pausing(build, mode), HeldState::Paused(build, mode))
                }
            };
            self.set_state(sandbox, meant)?;
            failpoint::reach("node/reboot-meant");
            if !machine.is_frozen() {
                let _ = envd::shut_down(&*machine).await;
                failpoint::reach("node/shut-down");
            }
            self.stop_and_keep(sandbox, &*machine, before, disk_only).await?;
            failpoint::reach("node/disk-kept");
            // From here on the disk is all that there is, whatever happens.
            self.set_state_anyway(sandbox, disk_only);
            failpoint::reach("node/reboot-written");
        }
        if let HeldState::Paused(build, PauseMode::Full) = sandbox.state() {
            // Its memory lies beside its disk, and fits it no more as soon as something has booted from that.
            self.set_state(sandbox, HeldState::Paused(build, PauseMode::Filesystem))?;
            failpoint::reach("node/memory-given-up");
        }
        sandbox.lines().forget_seen();
        let machine = self.start_machine(&order, DiskOrigin::Kept, false).await?;
        let up = self.make_usable(sandbox, order, Arc::clone(&machine)).await;
        if up.is_err() {
            self.lay_down(sandbox, machine).await;
        }
        up
    }

    async fn start_machine(
        &self,
        order: &Order,
        disk: DiskOrigin,
        restore: bool,
    ) -> Result<Arc<dyn Machine>, NodeError> {
        let started = self.try_machine(order, disk, restore).await;
        started.map_err(failed("starting the machine"))
    }

    async fn try_machine(
        &self,
        order: &Order,
        disk: DiskOrigin,
        restore: bool,
    ) -> Result<Arc<dyn Machine>, RuntimeError> {
        let spec = MachineSpec {
            sandbox: order.sandbox,
            execution: order.execution,
            build: order.build,
            resources: order.resources,
            network: order.network.clone(),
            disk,
            restore,
            volumes: order.volumes.clone(),
        };
        let begun = Instant::now();
        let machine = self
            .runtime
            .start(spec)
            .instrument(tracing::debug_span!("machine.start"))
            .await?;
        metrics::histogram!("atoll_node_start_stage_seconds", "stage" => "machine").record(begun.elapsed());
        failpoint::reach("node/machine-started");
        Ok(machine)
    }

    /// Tells the envd of a machine that has come up what it needs, then everybody that it runs.
    async fn make_usable(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        order: Order,
        machine: Arc<dyn Machine>,
    ) -> Result<(), NodeError> {
        let begun = Instant::now();
        let how = if machine.is_restored() {
            Begun::Restored
        } else {
            Begun::Booted
        };
        self.tell_settings(&*machine, &order, how).await?;
        metrics::histogram!("atoll_node_start_stage_seconds", "stage" => "init").record(begun.elapsed());
        self.settle(sandbox, order, machine)
    }

    async fn tell_settings(&self, machine: &dyn Machine, order: &Order, how: Begun) -> Result<(), NodeError> {
        let start = order.start.as_ref().filter(|_| how == Begun::Booted);
        // What goes on from a build's memory is not the only one that does.
        let is_copy = how == Begun::Restored && order.origin == OrderOrigin::Fresh;
        let init = Init {
            env_vars: Some(order.env.clone()),
            access_token: order.envd_token.as_ref().map(|token| token.expose().clone()),
            timestamp: Some(humantime::format_rfc3339_nanos(SystemTime::now()).to_string()),
            default_user: Some(order.user.clone()),
            default_workdir: order.workdir.clone(),
            lifecycle_id: Some(order.execution.to_string()),
            sandbox_id: Some(order.sandbox.to_string()),
            template_id: Some(order.template.to_string()),
            hostname: Some(order.sandbox.to_string()),
            cpu_count: Some(order.resources.cpu),
            memory_bytes: Some(order.resources.memory.bytes()),
            start_command: start.map(|start| StartCommand {
                command: start.command.clone(),
                user: start.user.clone(),
                cwd: start.cwd.clone(),
            }),
            machine_id: is_copy.then(|| order.sandbox.machine_id()),
            renew: is_copy,
            restored: how == Begun::Restored,
        };
        envd::init(machine, &init)
            .await
            .map_err(|source| NodeError::Failed {
                step: "telling envd its settings",
                kind: model::Kind::Internal,
                source: Box::new(source),
            })
    }

    /// Makes it known that the sandbox runs, to the journal first.
    fn settle(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        order: Order,
        machine: Arc<dyn Machine>,
    ) -> Result<(), NodeError> {
        let entry = Entry {
            order,
            state: HeldState::Running,
            booted: Some(machine.execution()),
            kept: None,
        };
        failpoint::reach("node/settings-told");
        self.write(&entry)?;
        failpoint::reach("node/running-written");
        sandbox.lines().say(
            SystemTime::now(),
            ports::Level::Info,
            "the sandbox is running".to_owned(),
        );
        {
            let mut now = sandbox.now();
            now.entry = entry;
            now.machine = Some(machine);
        }
        // Whoever drove an execution before has nothing to watch over any more.
        sandbox.nudge.notify_waiters();
        self.drive(sandbox);
        Ok(())
    }
}

/// How a failure of the runtime is told.
pub(crate) fn failed(step: &'static str) -> impl FnOnce(RuntimeError) -> NodeError {
    move |error| match error {
        RuntimeError::Exhausted(what) => NodeError::Full {
            what,
            retry_after: None,
        },
        RuntimeError::CannotCheckpoint { why } => NodeError::CannotCheckpoint(why),
        RuntimeError::NoBuild(build) => NodeError::NoBuild(build),
        RuntimeError::NoVolume(volume) => NodeError::NoVolume(volume),
        error @ RuntimeError::Unsupported { .. } => NodeError::Refused(error.to_string()),
        error => NodeError::Failed {
            step,
            kind: error.kind(),
            source: Box::new(error),
        },
    }
}
