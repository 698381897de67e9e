//! A machine that begins: booted, or with memory that is brought back; nothing of it is left where that fails.
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use model::SandboxId;
use ports::runtime::{Disk as Fate, DiskOrigin};
use ports::step::At;
use ports::{MachineSpec, RuntimeError};

use crate::files::Pin;
use crate::house::House;
use crate::machine::{Handle, Vm};
use crate::policy;
use crate::process::{KilledUnlessTaken, LAST_WORDS_BYTES};
use crate::record::Names as _;
use crate::vmm::{Machine, Vmm};
use crate::work::{blocking, in_time};

/// A machine that is on record and is to be brought up.
pub struct Plan<V: Vmm> {
    /// Its record.
    pub machine: Machine<V>,
    /// The disk that its own starts from.
    pub from: V::Disk,
    /// The memory that it goes on from; else it boots.
    pub memory: Option<V::Memory>,
    /// While it is held, what it starts from stays.
    _pins: Vec<Pin>,
}

/// A machine that is up, and is given back where nobody takes it.
pub struct Started<V: Vmm> {
    house: Arc<House<V>>,
    /// `None` when it has been handed over.
    vm: Option<Arc<Vm<V>>>,
    runtime: tokio::runtime::Handle,
    /// The sandbox whose kept disk it goes on from.
    from_kept: Option<SandboxId>,
}

impl<V: Vmm> Started<V> {
    /// The machine.
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm<V>> {
        self.vm.as_ref().expect("it is handed over once")
    }

    /// From here on the sandbox is this machine.
    ///
    /// # Errors
    /// That could not be noted; the machine is given back.
    pub fn hand_over(mut self) -> Result<Arc<dyn ports::Machine>, RuntimeError> {
        let vm = self.vm();
        let record = vm.record();
        vm.house.stake(&Machine::<V> { up: true, ..record })?;
        failpoint::reach("microvm/handed-over");
        vm.is_up();
        if let Some(sandbox) = self.from_kept {
            // A restart of the daemon does the same, since the machine is up.
            if let Err(error) = self.house.book.kept.remove(&sandbox) {
                tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "what was kept of a sandbox that runs again stays");
            }
        }
        let vm = self.vm.take().expect("it was there just now");
        Ok(Arc::new(Handle(vm)))
    }
}

impl<V: Vmm> Drop for Started<V> {
    fn drop(&mut self) {
        if let Some(vm) = self.vm.take() {
            let stop = async move {
                if let Err(error) = vm.stop(Fate::Discard).await {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a machine that nobody waited for could not be stopped"
                    );
                }
            };
            self.house.work.spawn_on(stop, &self.runtime);
        }
    }
}

impl<V: Vmm> House<V> {
    /// Brings a machine up.
    ///
    /// # Errors
    /// It is not offered, or could not be brought up; nothing of it is left, and what it starts from is as it was.
    pub async fn bring_up(self: &Arc<Self>, spec: MachineSpec) -> Result<Started<V>, RuntimeError> {
        if let Some(what) = policy::refused(&spec, V::CPUS, self.vmm.offered(None), self.volumes.is_some()) {
            return Err(unsupported::<V>(what));
        }
        self.has_room()?;
        V::make_ready(self, &spec).await?;
        let from_kept = (spec.disk == DiskOrigin::Kept).then_some(spec.sandbox);
        let house = Arc::clone(self);
        let plan = blocking(move || Ok(house.put_on_record(spec))).await??;
        failpoint::reach("microvm/machine-recorded");
        let staked = plan.machine.clone();
        let up = self.launch(plan).await;
        if up.is_err() {
            let house = Arc::clone(self);
            blocking(move || house.strike(&staked)).await?;
            self.sweep_soon();
        }
        Ok(Started {
            house: Arc::clone(self),
            vm: Some(up?),
            runtime: tokio::runtime::Handle::current(),
            from_kept,
        })
    }

    /// Puts a machine on record, with a disk of its own on what it starts from.
    ///
    /// # Errors
    /// There is nothing that it starts from, or its memory does not fit.
    pub fn put_on_record(&self, spec: MachineSpec) -> Result<Plan<V>, RuntimeError> {
        // From looking at it until it is on record nothing of it is swept away.
        let _turn = self.turn();
        if self.book.machines.read(&spec.execution)?.is_some() {
            let taken = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(taken).at(format!("starting {} a second time", spec.execution))?;
        }
        let (from, memory) = self.origin(spec.build, spec.sandbox, spec.disk)?;
        let memory = memory.filter(|_| spec.restore);
        let bytes_min = match &memory {
            // Its kernel knows how large its disk is.
            Some(_) => 0,
            None => spec.resources.disk.bytes(),
        };
        let images = from.images().into_iter().map(|id| self.images.pin(id));
        let states = memory.states().into_iter().map(|id| self.states.pin(id));
        let pins = images.chain(states).collect();
        let (disk, own) = V::draw(self, &spec, &from, bytes_min, memory.as_ref())?;
        let machine = Machine::<V> {
            restored: memory.is_some(),
            spec,
            process: None,
            disk,
            up: false,
            keep: false,
            started_at: SystemTime::now(),
            own,
        };
        let misfit = memory
            .as_ref()
            .and_then(|memory| V::misfit(self, memory, &machine));
        let staked = match misfit {
            Some(why) => Err(cannot_restore(&machine.spec, why)),
            None => self.stake(&machine).map_err(Into::into),
        };
        if let Err(error) = staked {
            self.vmm.give_back(&machine.own);
            return Err(error);
        }
        Ok(Plan {
            machine,
            from,
            memory,
            _pins: pins,
        })
    }

    async fn launch(self: &Arc<Self>, plan: Plan<V>) -> Result<Arc<Vm<V>>, RuntimeError> {
        let (process, mut begun) = V::spawn(self, &plan).await?;
        failpoint::reach("microvm/process-started");
        let mut machine = plan.machine.clone();
        machine.process = Some(process.identity.clone());
        machine.started_at = SystemTime::now();
        let (log, house, written) = (Arc::clone(&process.log), Arc::clone(self), machine.clone());
        let process = KilledUnlessTaken::new(process);
        blocking(move || house.stake(&written)).await?;
        failpoint::reach("microvm/process-recorded");
        let monitor = V::begin(self, &machine, process.get(), &mut begun).await?;
        failpoint::reach("microvm/machine-begins");
        let vm = Vm::watch(Arc::clone(self), machine, process.take(), monitor, false);
        let mut ended = vm.ended_receiver();
        let up = tokio::select! {
            up = in_time(self.vmm.boots_within(), V::come_up(&vm, begun)) => up,
            _ = ended.wait_for(Option::is_some) => Err(io::Error::other("it ended")),
        };
        if let Err(error) = up {
            vm.end_unheld().await;
            let said = log.tail(LAST_WORDS_BYTES);
            let sandbox = vm.record().spec.sandbox;
            return Err(RuntimeError::NotUp {
                sandbox,
                detail: format!("{error}; it said: {said}"),
            });
        }
        failpoint::reach("microvm/guest-up");
        vm.give_volumes().await?;
        Ok(vm)
    }
}

/// That something is not offered.
pub(crate) fn unsupported<V: Vmm>(what: String) -> RuntimeError {
    RuntimeError::Unsupported {
        runtime: V::NAME,
        what,
    }
}

/// That memory is not brought back, and why.
#[must_use]
pub fn cannot_restore(spec: &MachineSpec, why: String) -> RuntimeError {
    let what = match spec.disk {
        DiskOrigin::Kept => format!("sandbox {}", spec.sandbox),
        DiskOrigin::Fresh | DiskOrigin::Single => format!("build {}", spec.build),
    };
    RuntimeError::CannotRestore { what, why }
}
