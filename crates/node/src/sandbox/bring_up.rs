//! From an order to a sandbox that is usable.
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use model::PauseMode;
use ports::node::{HeldState, NodeError, Order, OrderOrigin};
use ports::runtime::{Disk, DiskOrigin};
use ports::{Machine, MachineSpec, RuntimeError};
use tracing::Instrument as _;
use wire::init::{Init, StartCommand};

use crate::envd;
use crate::journal::Entry;
use crate::node::LocalNode;
use crate::sandbox::{Sandbox, name};

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
            memory_lost: false,
            booted: None,
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
        let started = self.boot(&order, DiskOrigin::Fresh).await;
        match started {
            Ok(machine) => self.settle(&sandbox, order, machine),
            Err(error) => {
                self.forget(order.sandbox, &sandbox);
                Err(error)
            }
        }
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
                if wanted == PauseMode::Full && kept == PauseMode::Full {
                    self.thaw(&sandbox, order).await
                } else {
                    self.reboot(&sandbox, order).await
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
        machine.thaw().await.map_err(failed("thawing"))?;
        failpoint::reach("node/thawed");
        // Its start command runs already.
        let told = self.tell_settings(&*machine, &order, false).await;
        if let Err(error) = told {
            let _ = machine.freeze().await;
            return Err(error);
        }
        self.settle(sandbox, order, machine)
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
            if let Err(error) = machine.stop(Disk::Keep).await {
                self.set_state(sandbox, before)?;
                return Err(failed("keeping the disk")(error));
            }
            failpoint::reach("node/disk-kept");
            // From here on the disk is all that there is, whatever happens.
            sandbox.now().machine = None;
            self.set_state(sandbox, disk_only)?;
            failpoint::reach("node/reboot-written");
        }
        sandbox.lines().forget_seen();
        let machine = self.boot(&order, DiskOrigin::Kept).await?;
        self.settle(sandbox, order, machine)
    }

    /// Starts a machine and tells its envd what it needs.
    async fn boot(&self, order: &Order, disk: DiskOrigin) -> Result<Arc<dyn Machine>, NodeError> {
        let spec = MachineSpec {
            sandbox: order.sandbox,
            execution: order.execution,
            build: order.build,
            resources: order.resources,
            network: order.network.clone(),
            disk,
        };
        let begun = Instant::now();
        let machine = self
            .runtime
            .start(spec)
            .instrument(tracing::debug_span!("machine.start"))
            .await
            .map_err(failed("starting the machine"))?;
        metrics::histogram!("atoll_node_start_stage_seconds", "stage" => "machine").record(begun.elapsed());
        failpoint::reach("node/machine-started");
        let begun = Instant::now();
        if let Err(error) = self.tell_settings(&*machine, order, true).await {
            let fate = if disk == DiskOrigin::Kept {
                Disk::Keep
            } else {
                Disk::Discard
            };
            let _ = machine.stop(fate).await;
            return Err(error);
        }
        metrics::histogram!("atoll_node_start_stage_seconds", "stage" => "init").record(begun.elapsed());
        Ok(machine)
    }

    async fn tell_settings(
        &self,
        machine: &dyn Machine,
        order: &Order,
        is_boot: bool,
    ) -> Result<(), NodeError> {
        let start = order.start.as_ref().filter(|_| is_boot);
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
            start_command: start.map(|start| StartCommand {
                command: start.command.clone(),
                user: start.user.clone(),
                cwd: start.cwd.clone(),
            }),
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
            memory_lost: false,
            booted: Some(machine.execution()),
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
        error => NodeError::Failed {
            step,
            kind: error.kind(),
            source: Box::new(error),
        },
    }
}
