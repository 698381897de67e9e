//! The runtime: starting machines, and finding those of earlier daemons.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{BuildId, ExecutionId, SandboxId};
use ports::runtime::{Capabilities, Disk as Fate, DiskOrigin, DiskSpace, Recovered};
use ports::{Machine, MachineSpec, Runtime, RuntimeError};
use serde_json::json;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::agent::{Agents, Lines, Name};
use crate::command::{Begin, Listening, Shape, Sockets, arguments};
use crate::disk::{Disk, Disks, Format, Opened, file_bytes_max};
use crate::house::House;
use crate::machine::{Handle, Vm, blocking, in_time, migrated, panicked};
use crate::memory::{Found, Memory};
use crate::network::Network;
use crate::probe::{Probed, probe};
use crate::process::{KilledUnlessTaken, LAST_WORDS_BYTES, Process, Rights};
use crate::qmp::Qmp;
use crate::record;
use crate::users::Users;
use crate::{import, policy};
use ports::step::{At, Step};

mod adopt;
mod volumes;

use adopt::end_all;

/// What guests boot from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// A bzImage.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// The name of both by their content: memory is brought back to the same alone.
    pub digest: String,
}

impl From<&guest::Bundle> for Guest {
    fn from(bundle: &guest::Bundle) -> Self {
        Self {
            kernel: bundle.kernel(),
            initrd: bundle.initrd(),
            digest: bundle.id().to_owned(),
        }
    }
}

/// What the runtime is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its directory, absolute and short: paths of sockets have at most 107 bytes.
    pub data: PathBuf,
    /// The program `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// What guests boot from.
    pub guest: Guest,
    /// Machines are given a network, with the firewall of [`net`] before it, and every policy is kept. It takes root
    /// (`CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, see [`net::probe`]). Without it nothing leads out of a machine: what denies
    /// everything is kept, and the rest is refused, or agreed to by [`Config::offline`].
    pub network: bool,
    /// Where there is no network: sandboxes that may reach the internet, as they may by default, are given none, where they
    /// would be refused.
    pub offline: bool,
    /// How long a guest has to boot, until its envd listens.
    pub boots_within: Duration,
}

impl Config {
    /// How long a guest has on the processor, and how long under emulation beside others.
    pub const BOOTS_WITHIN: Duration = Duration::from_secs(60);
}

/// What virtual machines under QEMU can do: with a network and volumes, or without.
#[must_use]
pub const fn capabilities(network: bool, volumes: bool) -> Capabilities {
    Capabilities {
        durable_memory: true,
        freeze: true,
        own_kernel: true,
        network,
        volumes,
        roots: false,
        portable_builds: false,
    }
}

/// QEMUs of this machine.
pub struct Qemus {
    house: Arc<House>,
}

/// What is under way takes at most as long as a boot.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);
/// Whoever looked into a volume lets go of it a moment later.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(2);
/// A QEMU that lives says so in milliseconds.
const ADOPTED_WITHIN: Duration = Duration::from_secs(10);
/// Disks on one another that a machine is still started on; above it they are made one first.
const DEPTH_STARTED_MAX: usize = 3 * crate::disk::DEPTH_MAX;

/// What a state of memory has beside the memory itself, at most: how devices are.
const STATE_BESIDE_BYTES_MAX: u64 = 256 << 20;

/// What guests' kernels are told: a console, few words, and an end, not another boot, when they fail.
const KERNEL: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t no_timer_check";

pub(crate) fn unsupported(what: String) -> RuntimeError {
    RuntimeError::Unsupported {
        runtime: "qemu",
        what,
    }
}

impl Qemus {
    /// Finds out what QEMU can do, and opens the runtime's directory. [`Runtime::recover`] comes next.
    ///
    /// # Errors
    /// QEMU does not run, or the directory cannot be used.
    pub async fn open(config: Config) -> Result<Self, RuntimeError> {
        Self::open_with(config, Arc::new(Lines)).await
    }

    pub(crate) async fn open_with(config: Config, agents: Arc<dyn Agents>) -> Result<Self, RuntimeError> {
        let probed = probe(&config.qemu).await.map_err(io::Error::other);
        let probed = probed.at(format!("starting {}", config.qemu.display()))?;
        if let Some(why) = &probed.why_not_kvm {
            tracing::warn!(
                why,
                "QEMU cannot use the processor for guests: they are emulated, which takes many times as long"
            );
        }
        let house = blocking(move || House::open(config, probed, agents)).await?;
        Ok(Self {
            house: Arc::new(house),
        })
    }

    /// What was found out about QEMU.
    #[must_use]
    pub fn probed(&self) -> &Probed {
        &self.house.probed
    }

    /// Makes a build of a whole root in a directory.
    ///
    /// # Errors
    /// Its disk cannot be made.
    pub async fn import_root(&self, build: BuildId, dir: PathBuf) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || import::root(&house, build, &dir)).await
    }
}

/// Whose disks lie on images of this node, and what is left where a start fails.
struct Started {
    house: Arc<House>,
    /// `None` when it has been handed over.
    vm: Option<Arc<Vm>>,
    runtime: tokio::runtime::Handle,
    /// The sandbox whose kept disk it goes on from.
    from_kept: Option<SandboxId>,
}

impl Started {
    /// From here on the sandbox is this machine.
    fn hand_over(mut self) -> Result<Arc<dyn Machine>, RuntimeError> {
        let vm = self.vm.as_ref().expect("it is handed over once");
        let record = vm.record();
        vm.house.stake(&record::Machine { up: true, ..record })?;
        failpoint::reach("qemu/handed-over");
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

impl Drop for Started {
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

impl House {
    async fn bring_up(self: &Arc<Self>, spec: MachineSpec) -> Result<Started, RuntimeError> {
        if let Some(what) = policy::refused(
            &spec,
            self.offered(self.network.is_some()),
            self.volumes.is_some(),
        ) {
            return Err(unsupported(what));
        }
        self.has_room()?;
        self.make_shallow(&spec).await?;
        let (house, wanted) = (Arc::clone(self), spec.clone());
        let (record, memory, _pins) = blocking(move || Ok(house.put_on_record(wanted))).await??;
        failpoint::reach("qemu/machine-recorded");
        let staked = record.clone();
        let up = self.launch(record, memory.as_ref()).await;
        if up.is_err() {
            let house = Arc::clone(self);
            blocking(move || house.strike(&staked)).await?;
            self.sweep_soon();
        }
        let from_kept = (spec.disk == DiskOrigin::Kept).then_some(spec.sandbox);
        Ok(Started {
            house: Arc::clone(self),
            vm: Some(up?),
            runtime: tokio::runtime::Handle::current(),
            from_kept,
        })
    }

    /// Images that lie on one another in great number are made one while it is waited for.
    async fn make_shallow(self: &Arc<Self>, spec: &MachineSpec) -> Result<(), RuntimeError> {
        let (disk, _) = self.origin(spec.build, spec.sandbox, spec.disk)?;
        if disk.layers.len() <= DEPTH_STARTED_MAX {
            return Ok(());
        }
        match spec.disk {
            DiskOrigin::Kept => self.flatten_kept(spec.sandbox).await?,
            DiskOrigin::Fresh | DiskOrigin::Single => self.flatten_build(spec.build).await?,
        }
        Ok(())
    }

    /// Puts a machine on record, whose own image lies on what it starts from.
    fn put_on_record(
        &self,
        spec: MachineSpec,
    ) -> Result<(record::Machine, Option<Memory>, Vec<crate::disk::Pin>), RuntimeError> {
        // From looking at it until it is on record nothing of it is swept away.
        let _turn = self.turn();
        let (disk, memory) = self.origin(spec.build, spec.sandbox, spec.disk)?;
        let memory = memory.filter(|_| spec.restore);
        let wanted = match &memory {
            // Its kernel knows how large its disk is.
            Some(_) => 0,
            None => spec.resources.disk.bytes(),
        };
        let disk = disk.under(Disks::draw(Format::Qcow2), wanted);
        let pins = memory
            .iter()
            .map(|memory| self.states.pin(memory.state))
            .collect();
        let mut record = record::Machine {
            restored: memory.is_some(),
            spec,
            process: None,
            slot: None,
            user: None,
            disk,
            next: None,
            state: None,
            up: false,
            copying: false,
            keep: false,
            started_at: SystemTime::now(),
        };
        let staked = self.draw_and_stake(&mut record, memory.as_ref());
        if let Err(error) = staked {
            self.give_back(&record);
            return Err(error);
        }
        Ok((record, memory, pins))
    }

    /// Gives a machine what is its alone, and puts it on record with that.
    fn draw_and_stake(
        &self,
        record: &mut record::Machine,
        memory: Option<&Memory>,
    ) -> Result<(), RuntimeError> {
        record.slot = self.network.as_ref().map(Network::draw).transpose()?;
        record.user = self.users.as_ref().map(Users::draw).transpose()?;
        let misfit = memory.and_then(|memory| memory.fits.differs_from(&self.fits(record)));
        match misfit {
            Some(why) => Err(cannot_restore(&record.spec, why)),
            None => Ok(self.stake(record)?),
        }
    }

    async fn launch(
        self: &Arc<Self>,
        mut record: record::Machine,
        memory: Option<&Memory>,
    ) -> Result<Arc<Vm>, RuntimeError> {
        let execution = record.spec.execution;
        let state = match memory {
            Some(memory) => {
                let (house, sealed) = (Arc::clone(self), memory.clone());
                let path = self.states.path(memory.state);
                // Looked at before a byte of it is anybody's memory.
                match blocking(move || house.measured.open(&path, &sealed)).await? {
                    Found::Whole(state) => Some(state),
                    Found::Damaged(why) => return Err(cannot_restore(&record.spec, why)),
                }
            }
            None => None,
        };
        let (house, disk) = (Arc::clone(self), record.disk.clone());
        let sockets = Sockets::within(&self.sockets_dir(execution));
        let resources = record.spec.resources;
        let (prepared, groups) = blocking(move || {
            let groups = house.join(execution, resources.memory, resources.cpu)?;
            Ok((house.prepare(execution, &disk)?, groups))
        })
        .await?;
        let (house, slot, policy) = (Arc::clone(self), record.slot, record.spec.network.clone());
        let tap = blocking(move || {
            let slot = house.network.as_ref().zip(slot);
            slot.map(|(network, slot)| network.plug(slot, &policy))
                .transpose()
        })
        .await?;
        failpoint::reach("qemu/network-plugged");
        let shape = Shape {
            execution,
            accel: self.probed.accel,
            memory: resources.memory,
            cpus: resources.cpu,
            kernel: prepared.kernel.as_raw_fd(),
            initrd: prepared.initrd.as_raw_fd(),
            append: self.append(&record)?,
            disk: prepared.images.iter().map(Opened::lent).collect(),
            tap: tap.as_ref().map(AsRawFd::as_raw_fd),
            sockets: prepared.listening,
            generation: Uuid::new_v4(),
            begin: if memory.is_some() {
                Begin::Incoming
            } else {
                Begin::Boot
            },
        };
        let state_bytes_max = resources.memory.bytes().saturating_add(STATE_BESIDE_BYTES_MAX);
        let rights = Rights {
            user: record.user,
            given: prepared.into_descriptors().chain(tap).collect(),
            file_bytes: file_bytes_max(record.disk.size_bytes).max(state_bytes_max),
            cpus: resources.cpu,
            netns: self.netns()?,
            groups,
        };
        let process = Process::start(&self.config.qemu, &arguments(&shape), rights)?;
        failpoint::reach("qemu/process-started");
        record.process = Some(process.identity.clone());
        record.started_at = SystemTime::now();
        let (log, house, written) = (Arc::clone(&process.log), Arc::clone(self), record.clone());
        let process = KilledUnlessTaken::new(process);
        blocking(move || house.stake(&written)).await?;
        failpoint::reach("qemu/process-recorded");
        let qmp = process.get().listen(&sockets.qmp, &sockets.serial).await?;
        if let Some(state) = state
            && let Err(error) = bring_in(&qmp, state).await
        {
            return Err(cannot_restore(&record.spec, format!("{error}: {}", error.source)));
        }
        failpoint::reach("qemu/memory-brought-in");
        qmp.run("cont", json!({})).await.at("letting a machine begin")?;
        failpoint::reach("qemu/machine-begins");
        let vm = Vm::watch(Arc::clone(self), record, process.take(), qmp, false);
        let mut ended = vm.ended_receiver();
        let up = tokio::select! {
            up = in_time(self.config.boots_within, vm.come_up(memory.is_some())) => up,
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
        failpoint::reach("qemu/guest-up");
        vm.give_volumes(memory.is_some()).await?;
        Ok(vm)
    }

    /// What the kernel and the agent are told: ids of our own alone.
    fn append(&self, record: &record::Machine) -> Result<String, Step> {
        let Name { hostname, machine_id } = Name::of(record.spec.sandbox);
        let (network, nameservers) = match self.network.as_ref().filter(|_| record.slot.is_some()) {
            Some(network) => {
                let (network, nameservers) = network.settings()?;
                (Some(network), nameservers)
            }
            None => (None, Vec::new()),
        };
        let settings = guest::boot::Settings {
            hostname,
            machine_id,
            network,
            nameservers,
            line: guest::boot::LineKind::Serial,
            root: guest::boot::RootDisk::FIRST,
        };
        let told = settings
            .to_command_line()
            .map_err(io::Error::other)
            .at("telling a machine its settings")?;
        Ok(format!("{KERNEL} {told}"))
    }

    /// Makes a machine's own image and its sockets, and opens all that its QEMU is given.
    fn prepare(&self, execution: ExecutionId, disk: &Disk) -> Result<Prepared, Step> {
        let top = *disk.layers.last().expect("a machine has an image of its own");
        self.disks.make(top, disk.size_bytes)?;
        failpoint::reach("qemu/image-made");
        let dir = self.sockets_dir(execution);
        fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        let (listening, listeners) = Sockets::within(&dir)
            .listen()
            .at(format!("listening in {}", dir.display()))?;
        failpoint::reach("qemu/sockets-made");
        let open = |path: &Path| fs::File::open(path).at(format!("opening {}", path.display()));
        Ok(Prepared {
            kernel: open(&self.config.guest.kernel)?.into(),
            initrd: open(&self.config.guest.initrd)?.into(),
            images: self.disks.open_all(disk)?,
            listening,
            listeners,
        })
    }
}

/// What a machine's QEMU is given.
struct Prepared {
    kernel: OwnedFd,
    initrd: OwnedFd,
    images: Vec<Opened>,
    listening: Listening,
    listeners: Vec<OwnedFd>,
}

impl Prepared {
    fn into_descriptors(self) -> impl Iterator<Item = OwnedFd> {
        let images = self.images.into_iter().flat_map(Opened::into_descriptors);
        images.chain(self.listeners).chain([self.kernel, self.initrd])
    }
}

async fn bring_in(qmp: &Qmp, state: fs::File) -> Result<(), Step> {
    let step = || "bringing memory in".to_owned();
    qmp.hand_over("state", state.as_fd()).await.at(step())?;
    qmp.run("migrate-incoming", json!({ "uri": "fd:state" }))
        .await
        .at(step())?;
    migrated(qmp).await.at(step())
}

fn cannot_restore(spec: &MachineSpec, why: String) -> RuntimeError {
    let what = match spec.disk {
        DiskOrigin::Kept => format!("sandbox {}", spec.sandbox),
        DiskOrigin::Fresh | DiskOrigin::Single => format!("build {}", spec.build),
    };
    RuntimeError::CannotRestore { what, why }
}

#[async_trait]
impl Runtime for Qemus {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.house.network.is_some(), self.house.volumes.is_some())
    }

    async fn recover(&self) -> Result<Recovered, RuntimeError> {
        let mut recovered = Recovered {
            machines: Vec::new(),
            disks: Vec::new(),
            reclaimed: 0,
        };
        self.recover_volumes().await?;
        let mut slots = Vec::new();
        for (execution, record) in self.house.book.machines.all() {
            let adopted = match &record {
                Some(record) => self.house.adopt(record).await?,
                None => None,
            };
            if let Some(vm) = adopted {
                let record::Machine { spec, slot, user, .. } = vm.record();
                slots.extend(slot.map(|slot| (slot, spec.network.clone())));
                if let Some((users, user)) = self.house.users.as_ref().zip(user) {
                    users.take(user);
                }
                // What is kept of whoever lives is of an earlier day.
                self.house.book.kept.remove(&spec.sandbox)?;
                recovered.machines.push((spec, Arc::new(Handle(vm))));
                continue;
            }
            self.house.end_remains(execution, record).await?;
            recovered.reclaimed += 1;
        }
        let house = Arc::clone(&self.house);
        blocking(move || match &house.network {
            Some(network) => network.open(&slots),
            None => Ok(()),
        })
        .await?;
        let living: BTreeSet<SandboxId> = recovered.machines.iter().map(|(spec, _)| spec.sandbox).collect();
        let running: BTreeSet<String> = recovered
            .machines
            .iter()
            .map(|(spec, _)| spec.execution.to_string())
            .collect();
        let house = Arc::clone(&self.house);
        blocking(move || {
            for entry in fs::read_dir(house.run_dir()).into_iter().flatten().flatten() {
                let is_known = entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| running.contains(name));
                if !is_known {
                    end_all(&entry.path());
                    crate::house::remove_dir(&entry.path())?;
                }
            }
            house.clear_groups(&running)?;
            import::clear(&house)?;
            house.sweep();
            Ok(())
        })
        .await?;
        let kept = self.house.book.kept.all().into_iter().map(|(sandbox, _)| sandbox);
        recovered.disks = kept.filter(|sandbox| !living.contains(sandbox)).collect();
        Ok(recovered)
    }

    async fn has_build(&self, build: BuildId) -> bool {
        self.house.build(build).ok().flatten().is_some()
    }

    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, RuntimeError> {
        let house = Arc::clone(&self.house);
        let (tell, told) = oneshot::channel();
        self.house.work.spawn(async move {
            // If nobody waits any more, what comes of it is dropped, and given back.
            let _ = tell.send(house.bring_up(spec).await);
        });
        let started = told.await.map_err(|_| RuntimeError::Step {
            step: "starting a machine".to_owned(),
            source: io::Error::other("the task panicked"),
        })?;
        started?.hand_over()
    }

    async fn import(&self, build: BuildId, layers: Vec<PathBuf>) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        let importing = self
            .house
            .work
            .spawn_blocking(move || import::layers(&house, build, &layers));
        Ok(importing.await.map_err(panicked)??)
    }

    async fn builds(&self) -> Vec<BuildId> {
        self.house
            .book
            .builds
            .all()
            .into_iter()
            .map(|(build, _)| build)
            .collect()
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), RuntimeError> {
        let (house, builds) = (Arc::clone(&self.house), builds.to_vec());
        blocking(move || {
            {
                let _turn = house.turn();
                for build in &builds {
                    house.book.builds.remove(build)?;
                }
            }
            house.sweep();
            Ok(())
        })
        .await
    }

    async fn seal(&self, from: BuildId, into: BuildId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || {
            let _turn = house.turn();
            // Disks lie on one another as they are: a build over another is the same images, without its memory.
            let Some(build) = house.build(from)? else {
                return Ok(false);
            };
            house.book.builds.write(
                &into,
                &record::Build {
                    memory: None,
                    ..build
                },
            )?;
            Ok(true)
        })
        .await?
        .then_some(())
        .ok_or(RuntimeError::NoBuild(from))
    }

    async fn memory_of(&self, build: BuildId) -> model::Memory {
        let build = self.house.build(build).ok().flatten();
        let has_memory = build.is_some_and(|build| build.memory.is_some());
        if has_memory {
            model::Memory::Durable
        } else {
            model::Memory::None
        }
    }

    async fn discard(&self, sandbox: SandboxId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || {
            {
                let _turn = house.turn();
                house.book.kept.remove(&sandbox)?;
            }
            house.sweep();
            Ok(())
        })
        .await
    }

    fn disk_space(&self) -> Option<DiskSpace> {
        let (total_bytes, free_bytes) = self.house.disks.files.space().ok()?;
        Some(DiskSpace {
            total_bytes,
            free_bytes,
        })
    }

    async fn close(&self) {
        self.house.work.close();
        if tokio::time::timeout(CLOSED_WITHIN, self.house.work.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                under_way = self.house.work.len(),
                "the runtime closes while machines are under way; they stay on record"
            );
        }
        let house = Arc::clone(&self.house);
        let _ = blocking(move || {
            if house.book.machines.all().is_empty() {
                if let Some(volumes) = &house.volumes {
                    volumes.unmount_all(UNMOUNTED_WITHIN);
                }
                if let Some(network) = &house.network {
                    network.close();
                }
                if let Some(groups) = &house.groups {
                    groups.close();
                }
            }
            Ok(())
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
