//! The runtime: starting machines, and finding those of earlier daemons.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use guest::line::vsock::Ready;
use model::{BuildId, ExecutionId, SandboxId};
use net::Instance;
use ports::runtime::{Capabilities, Disk as Fate, DiskOrigin, DiskSpace, Recovered};
use ports::step::{At, Step};
use ports::{Machine, MachineSpec, Runtime, RuntimeError};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::agent::Name;
use crate::api::Api;
use crate::api::request::{
    BackendType, BootSource, CacheType, Drive, DriveChange, InstanceState, IoEngine, MachineConfig,
    MemBackend, MmdsConfig, MmdsVersion, NetworkInterface, SnapshotLoad, Vsock,
};
use crate::cgroup::Cgroups;
use crate::disk;
use crate::house::{House, own_program, prepare};
use crate::jail::{Begin, Furniture, Inside, Jails, take_back};
use crate::machine::{Handle, Vm, blocking, in_time, keep, panicked};
use crate::memory::{self, Memory, Pages, Place};
use crate::network::{Slots, TAP, mac};
use crate::probe::{Probed, probe};
use crate::process::{Jailer, LAST_WORDS_BYTES, Launch, Process};
use crate::record::{self, Base, Build, Copying, Disk, FORM};
use crate::{import, policy};

/// What guests boot from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// An ELF, or a bzImage of which it is unpacked where this Firecracker does not boot that.
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
    /// Its directory, absolute and short: paths of sockets have at most 107 bytes, and it adds 76. Disks, memory and jails
    /// are below it, on one file system: one that shares blocks (XFS, btrfs) makes copies of them cost nothing.
    pub data: PathBuf,
    /// The program `firecracker`.
    pub firecracker: PathBuf,
    /// The program `jailer`, of the same version.
    pub jailer: PathBuf,
    /// What guests boot from.
    pub guest: Guest,
    /// Machines are given a network, with the firewall of [`net`] before it, and every policy is kept. Without it nothing
    /// leads out of a machine: what denies everything is kept, and the rest is refused, or agreed to by [`Config::offline`].
    pub network: bool,
    /// Where there is no network: sandboxes that may reach the internet, as they may by default, are given none, where they
    /// would be refused.
    pub offline: bool,
    /// Machines with a network find their sandbox's and template's ids at 169.254.169.254, as Firecracker's MMDS V2 tells them.
    pub metadata: bool,
    /// Firecracker keeps track of what is written to memory, which costs some time whenever a page is written to first, and a
    /// machine that was restored is written down as a difference, which costs next to none.
    pub differences: bool,
    /// Known faults of this Firecracker that the operator accepts, each by its name: see [`crate::Version::is_fit`].
    pub accepted: Vec<String>,
    /// How long a guest has to boot, until its envd listens.
    pub boots_within: Duration,
}

impl Config {
    /// How long a guest has on the processor, and how long under emulation beside others.
    pub const BOOTS_WITHIN: Duration = Duration::from_secs(60);
}

/// What microVMs can do: with a network, or without.
#[must_use]
pub const fn capabilities(network: bool) -> Capabilities {
    Capabilities {
        durable_memory: true,
        freeze: true,
        own_kernel: true,
        network,
        volumes: false,
        roots: false,
        portable_builds: false,
    }
}

/// Firecrackers of this machine.
pub struct Firecrackers {
    house: Arc<House>,
    /// The number is this runtime's for as long as it is there.
    _instance: Option<Instance>,
}

/// What is under way takes at most as long as a boot.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);
/// One that is writing memory down answers when it has written it.
const ADOPTED_WITHIN: Duration = Duration::from_secs(60);
/// Users of an instance's machines, of which each has one: as many as there are between those of two daemons.
const USERS_EACH: u32 = 0x1000_0000;

/// What guests' kernels are told: a console, few words, and an end, not another boot, when they fail. Devices that Firecracker has
/// not are not looked for.
const KERNEL: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=k no_timer_check 8250.nr_uarts=1 i8042.noaux i8042.nomux \
                      i8042.nopnp i8042.dumbkbd";
/// The only drive.
const DRIVE: &str = "root";
/// The only network card.
const CARD: &str = "eth0";
/// A guest's own address on its vsock: the same for all, since each has a socket of its own.
const GUEST_CID: u32 = 3;

pub(crate) fn unsupported(what: String) -> RuntimeError {
    RuntimeError::Unsupported {
        runtime: "firecracker",
        what,
    }
}

impl Firecrackers {
    /// Finds out whether this host's Firecracker can be trusted with guests, and opens the runtime's directory.
    /// [`Runtime::recover`] comes next.
    ///
    /// # Errors
    /// There is no root, no cgroups, or no Firecracker that is fit ([`crate::Unusable`]), or the directory cannot be used.
    pub async fn open(config: Config) -> Result<Self, RuntimeError> {
        if !rustix::process::geteuid().is_root() {
            let why = "the jailer makes namespaces, devices and users: it takes root";
            return Err(io::Error::other(why)).at("opening the Firecracker runtime")?;
        }
        prepare(&config.data)?;
        let (data, program) = (config.data.clone(), config.firecracker.clone());
        let (instance, own) = blocking(move || {
            let instance = Instance::take(&data)?;
            Ok((instance, own_program(&data, &program)?))
        })
        .await?;
        // What is tried is what is used.
        let dir = config.data.join("program");
        let probed = probe(&own, &config.jailer, &dir, &config.accepted).await;
        let probed = probed.at(format!("trying {}", config.firecracker.display()))?;
        for name in &config.accepted {
            tracing::warn!(name, version = %probed.version, "a known fault of Firecracker is accepted");
        }
        let cgroups = Cgroups::find(&format!("atoll{}-fc", instance.number))?;
        let jails = Jails::open(&config.data, own, cgroups)?;
        let slots = Slots::new(
            instance.number,
            (instance.number + 1) * USERS_EACH,
            config.network,
        );
        let launcher = Box::new(Jailer(config.jailer.clone()));
        Self::open_with(config, probed, jails, launcher, slots, Some(instance)).await
    }

    pub(crate) async fn open_with(
        config: Config,
        probed: Probed,
        jails: Jails,
        launcher: Box<dyn Launch>,
        slots: Slots,
        instance: Option<Instance>,
    ) -> Result<Self, RuntimeError> {
        let house = blocking(move || House::open(config, probed, jails, launcher, slots)).await?;
        Ok(Self {
            house: Arc::new(house),
            _instance: instance,
        })
    }

    /// What was found out about Firecracker.
    #[must_use]
    pub fn probed(&self) -> &Probed {
        &self.house.probed
    }

    /// Makes a build of a root disk, an ext4, which is copied.
    ///
    /// # Errors
    /// It cannot be copied.
    pub async fn import_disk(&self, build: BuildId, disk: PathBuf) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || house.import_disk(build, &disk)).await
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

/// What is left where a start fails.
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
        vm.is_up();
        if let Some(sandbox) = self.from_kept {
            // A restart of the daemon does the same, since the machine is up.
            if let Err(error) = self.house.book.kept.remove(&sandbox) {
                tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "what was kept of a sandbox that runs again stays");
            }
            self.house.sweep_soon();
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

/// What a machine is brought up from.
struct Plan {
    record: record::Machine,
    /// The image that its own is a copy of.
    from: Disk,
    memory: Option<Memory>,
    _pins: Vec<disk::Pin>,
}

impl House {
    /// Makes a build of a copy of an image.
    pub(crate) fn import_disk(&self, build: BuildId, from: &std::path::Path) -> Result<(), Step> {
        let image = Uuid::new_v4();
        let _pin = self.images.pin(image);
        let path = self.images.path(image);
        disk::copy(from, &path, 0)?;
        let step = || format!("writing {} through", path.display());
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .at(step())?;
        take_back(&path)?;
        self.images.sync_names()?;
        let size_bytes = fs::metadata(&path).at(step())?.len();
        let record = Build {
            form: FORM,
            disk: Disk { image, size_bytes },
            memory: None,
        };
        let _turn = self.turn();
        self.book.builds.write(&build, &record)
    }

    async fn bring_up(self: &Arc<Self>, spec: MachineSpec) -> Result<Started, RuntimeError> {
        if let Some(what) = policy::refused(&spec, self.config.network, self.config.offline) {
            return Err(unsupported(what));
        }
        self.has_room()?;
        if spec.disk == DiskOrigin::Kept && spec.restore {
            // What is a difference is made whole while it is waited for.
            self.whole_kept(spec.sandbox)
                .await
                .map_err(|error| cannot_restore(&spec, told(&error)))?;
        }
        let execution = spec.execution;
        let (house, wanted) = (Arc::clone(self), spec.clone());
        let plan = blocking(move || Ok(house.put_on_record(wanted))).await??;
        let slot = plan.record.slot;
        let up = self.launch(plan).await;
        if up.is_err() {
            let house = Arc::clone(self);
            blocking(move || house.strike(execution, Some(slot))).await?;
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

    /// Puts a machine on record, whose own disk is a copy of what it starts from.
    fn put_on_record(&self, spec: MachineSpec) -> Result<Plan, RuntimeError> {
        // From looking at it until it is on record nothing of it is swept away.
        let _turn = self.turn();
        if self.book.machines.read(&spec.execution)?.is_some() {
            let taken = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(taken).at(format!("starting {} a second time", spec.execution))?;
        }
        let (from, memory) = self.origin(spec.build, spec.sandbox, spec.disk)?;
        let memory = memory.filter(|_| spec.restore);
        let wanted = match &memory {
            // Its kernel knows how large its disk is.
            Some(_) => 0,
            None => spec.resources.disk.bytes(),
        };
        let base = match &memory {
            Some(Memory {
                id,
                pages: Pages::Whole(pages),
                ..
            }) => Some(Base {
                id: *id,
                pages: pages.clone(),
            }),
            Some(_) => {
                let why = "it is a difference, which was not made whole".to_owned();
                return Err(cannot_restore(&spec, why));
            }
            None => None,
        };
        let mut pins = vec![self.images.pin(from.image)];
        pins.extend(memory.iter().map(|memory| self.states.pin(memory.id)));
        let record = record::Machine {
            restored: memory.is_some(),
            slot: self.slots.draw()?,
            wired: self.config.network,
            spec,
            process: None,
            disk: Disk {
                image: Uuid::new_v4(),
                size_bytes: from.size_bytes.max(wanted),
            },
            base,
            copy: Copying::default(),
            up: false,
            stands: false,
            keep: false,
            started_at: SystemTime::now(),
        };
        let here = self.fits(&record);
        let misfit = memory.as_ref().and_then(|memory| memory.fits.differs_from(&here));
        let staked = match misfit {
            Some(why) => Err(cannot_restore(&record.spec, why)),
            None => self.stake(&record).map_err(Into::into),
        };
        if let Err(error) = staked {
            self.slots.give_back(record.slot);
            return Err(error);
        }
        Ok(Plan {
            record,
            from,
            memory,
            _pins: pins,
        })
    }

    async fn launch(self: &Arc<Self>, plan: Plan) -> Result<Arc<Vm>, RuntimeError> {
        let Plan {
            mut record,
            from,
            memory,
            _pins,
        } = plan;
        let jail = self.jail(&record);
        let (house, furnished, told, wanted) =
            (Arc::clone(self), jail.clone(), record.clone(), memory.clone());
        // Looked at before a byte of it is anybody's memory.
        let furnished = blocking(move || {
            if let Some(memory) = &wanted
                && let Some(why) = memory::is_damaged(&house.known, &house.states, memory)?
            {
                return Ok(Err(why));
            }
            house.furnish(&furnished, &told, from, wanted.as_ref()).map(Ok)
        });
        let namespace = furnished
            .await?
            .map_err(|why| cannot_restore(&record.spec, why))?;
        let ready = jail.listen()?;
        let (execution, resources) = (record.spec.execution, record.spec.resources);
        let arguments = self
            .jails
            .arguments(execution, jail.uid, &namespace.path(), resources);
        let process = Process::start(&*self.launcher, &jail, &arguments).await?;
        record.process = Some(process.identity.clone());
        record.started_at = SystemTime::now();
        let (log, house, written) = (Arc::clone(&process.log), Arc::clone(self), record.clone());
        let process = KilledUnlessTaken(Some(process));
        blocking(move || house.stake(&written)).await?;
        let api = process.get().listen(&jail.host(Inside::Api)).await?;
        match &memory {
            None => self.configure(&api, &record).await?,
            Some(_) => {
                // In the same words, whatever is wrong with it: nothing of it has run.
                let loaded = self.load(&api, &record).await;
                loaded.map_err(|error| cannot_restore(&record.spec, format!("{error}: {}", error.source)))?;
            }
        }
        let locked = jail.clone();
        blocking(move || locked.lock()).await?;
        let begun = match memory {
            None => api.start().await.at("letting a machine boot"),
            Some(_) => api.resume().await.at("letting a machine go on"),
        };
        begun?;
        let vm = Vm::watch(Arc::clone(self), record, process.take(), api, false);
        let mut ended = vm.ended_receiver();
        let up = tokio::select! {
            up = in_time(self.config.boots_within, come_up(&vm, ready, memory.is_some())) => up,
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
        Ok(vm)
    }

    /// Makes a machine's disk, its jail and its network namespace. Blocks.
    fn furnish(
        &self,
        jail: &crate::jail::Jail,
        record: &record::Machine,
        from: Disk,
        memory: Option<&Memory>,
    ) -> Result<crate::network::Namespace, Step> {
        let own = self.images.path(record.disk.image);
        disk::copy(&self.images.path(from.image), &own, record.disk.size_bytes)?;
        let begin = match memory {
            Some(memory) => {
                let place = Place::of(&self.states, memory.id);
                Begin::Restore {
                    state: place.state(),
                    memory: place.memory(),
                }
            }
            None => Begin::Boot {
                kernel: self.guest.0.clone(),
                initrd: self.guest.1.clone(),
            },
        };
        jail.furnish(&Furniture { disk: own, begin })?;
        self.slots.plug(record.slot, &record.spec.network)
    }

    /// Tells a Firecracker the machine that it is to boot.
    async fn configure(&self, api: &Api, record: &record::Machine) -> Result<(), Step> {
        let step = || "telling Firecracker its machine";
        let resources = record.spec.resources;
        let machine = MachineConfig {
            vcpu_count: resources.cpu,
            mem_size_mib: resources.memory.0,
            track_dirty_pages: self.config.differences,
        };
        api.machine_config(&machine).await.at(step())?;
        let source = BootSource {
            kernel_image_path: Inside::Kernel.path(),
            initrd_path: Inside::Initrd.path(),
            boot_args: self.boot_args(record)?,
        };
        api.boot_source(&source).await.at(step())?;
        let drive = Drive {
            drive_id: DRIVE,
            path_on_host: Inside::Disk.path(),
            // The initramfs mounts it, and nobody else is told where it is.
            is_root_device: false,
            is_read_only: false,
            cache_type: CacheType::Unsafe,
            io_engine: IoEngine::Sync,
        };
        api.drive(&drive).await.at(step())?;
        if record.wired {
            let card = NetworkInterface {
                iface_id: CARD,
                guest_mac: mac(),
                host_dev_name: TAP.to_owned(),
            };
            api.network_interface(&card).await.at(step())?;
            if self.config.metadata {
                let config = MmdsConfig {
                    version: MmdsVersion::V2,
                    network_interfaces: vec![CARD],
                };
                api.mmds_config(&config).await.at(step())?;
                api.mmds(&metadata(record)).await.at(step())?;
            }
        }
        let vsock = Vsock {
            guest_cid: GUEST_CID,
            uds_path: Inside::Vsock.path(),
        };
        api.vsock(&vsock).await.at(step())?;
        api.entropy().await.at(step())
    }

    /// Has a Firecracker bring a machine back, which stands then. Every name in its jail is as it was where it was written down: its
    /// tap and its socket are its own without another word.
    async fn load(&self, api: &Api, record: &record::Machine) -> Result<(), Step> {
        let load = SnapshotLoad {
            snapshot_path: Inside::State.path(),
            mem_backend: MemBackend {
                backend_type: BackendType::File,
                backend_path: Inside::Memory.path(),
            },
            resume_vm: false,
            clock_realtime: true,
            track_dirty_pages: self.config.differences,
        };
        api.load(&load).await.at("bringing memory in")?;
        // What a state says of its disk was said by whoever wrote it. If this fails it must not go on: it would write elsewhere.
        let own = DriveChange {
            drive_id: DRIVE,
            path_on_host: Inside::Disk.path(),
        };
        api.change_drive(&own).await.at("giving a machine its own disk")?;
        if record.wired && self.config.metadata {
            // It is not part of what was written down.
            api.mmds(&metadata(record)).await.at("bringing memory in")?;
        }
        Ok(())
    }

    /// What the kernel and the agent are told: ids of our own alone.
    fn boot_args(&self, record: &record::Machine) -> Result<String, Step> {
        let Name { hostname, machine_id } = Name::of(record.spec.sandbox);
        let (network, nameservers) = match self.slots.settings()?.filter(|_| record.wired) {
            Some((network, nameservers)) => (Some(network), nameservers),
            None => (None, Vec::new()),
        };
        let settings = guest::boot::Settings {
            hostname,
            machine_id,
            network,
            nameservers,
            line: guest::boot::LineKind::Vsock,
            root: guest::boot::RootDisk::FIRST,
        };
        let told = settings
            .to_command_line()
            .map_err(io::Error::other)
            .at("telling a machine its settings")?;
        Ok(format!("{KERNEL} {told}"))
    }
}

async fn come_up(vm: &Vm, ready: Ready, is_restored: bool) -> io::Result<()> {
    if is_restored {
        vm.become_itself().await?;
    } else {
        // No more than a reason to ask: whoever is inside can call.
        ready.called().await?;
    }
    drop(ready);
    vm.come_up().await
}

fn metadata(record: &record::Machine) -> serde_json::Value {
    serde_json::json!({
        "latest": { "meta-data": {
            "sandbox-id": record.spec.sandbox.to_string(),
            "build-id": record.spec.build.to_string(),
        } }
    })
}

fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn cannot_restore(spec: &MachineSpec, why: String) -> RuntimeError {
    let what = match spec.disk {
        DiskOrigin::Kept => format!("sandbox {}", spec.sandbox),
        DiskOrigin::Fresh | DiskOrigin::Single => format!("build {}", spec.build),
    };
    RuntimeError::CannotRestore { what, why }
}

/// Between a Firecracker's start and somebody who watches over it.
struct KilledUnlessTaken(Option<Process>);

impl KilledUnlessTaken {
    fn get(&self) -> &Process {
        self.0.as_ref().expect("it is taken once, and not looked at then")
    }
    fn take(mut self) -> Process {
        self.0.take().expect("it is taken once")
    }
}

impl Drop for KilledUnlessTaken {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process.kill();
            tokio::spawn(async move { process.ended().await });
        }
    }
}

#[async_trait]
impl Runtime for Firecrackers {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.house.config.network)
    }

    async fn recover(&self) -> Result<Recovered, RuntimeError> {
        let mut recovered = Recovered {
            machines: Vec::new(),
            disks: Vec::new(),
            reclaimed: 0,
        };
        let (mut slots, mut wired) = (Vec::new(), Vec::new());
        for (execution, record) in self.house.book.machines.all() {
            let adopted = match &record {
                Some(record) => self.house.adopt(record).await?,
                None => None,
            };
            if let Some(vm) = adopted {
                let record = vm.record();
                slots.push(record.slot);
                if record.wired {
                    wired.push((record.slot, record.spec.network.clone()));
                }
                // What is kept of whoever lives is of an earlier day.
                self.house.book.kept.remove(&record.spec.sandbox)?;
                recovered.machines.push((record.spec, Arc::new(Handle(vm))));
                continue;
            }
            self.house.end_remains(execution, record).await?;
            recovered.reclaimed += 1;
        }
        let living: BTreeSet<SandboxId> = recovered.machines.iter().map(|(spec, _)| spec.sandbox).collect();
        let running: BTreeSet<String> = recovered
            .machines
            .iter()
            .map(|(spec, _)| spec.execution.to_string())
            .collect();
        let house = Arc::clone(&self.house);
        blocking(move || {
            let strays = house.jails.ids().into_iter().chain(house.jails.cgroups.ids());
            for id in strays.filter(|id| !running.contains(id)) {
                house.clear(&id)?;
            }
            crate::jail::remove_dir(&house.config.data.join("staging"))?;
            house.slots.open(&slots, &wired)?;
            house.sweep();
            Ok(())
        })
        .await?;
        let kept = self.house.book.kept.all().into_iter().map(|(sandbox, _)| sandbox);
        recovered.disks = kept.filter(|sandbox| !living.contains(sandbox)).collect();
        for sandbox in &recovered.disks {
            self.house.whole_kept_soon(*sandbox);
        }
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
        let work = &self.house.work;
        let importing = work.spawn_blocking(move || import::layers(&house, build, &layers));
        Ok(importing.await.map_err(panicked)??)
    }

    async fn builds(&self) -> Vec<BuildId> {
        let builds = self.house.book.builds.all().into_iter();
        builds.map(|(build, _)| build).collect()
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
            // Each machine has a copy of its build's disk: a build over another is the same image, without its memory.
            let Some(build) = house.build(from)? else {
                return Ok(false);
            };
            let sealed = Build {
                memory: None,
                ..build
            };
            house.book.builds.write(&into, &sealed)?;
            Ok(true)
        })
        .await?
        .then_some(())
        .ok_or(RuntimeError::NoBuild(from))
    }

    async fn memory_of(&self, build: BuildId) -> model::Memory {
        let build = self.house.build(build).ok().flatten();
        if build.is_some_and(|build| build.memory.is_some()) {
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
        let (total_bytes, free_bytes) = self.house.images.space().ok()?;
        Some(DiskSpace {
            total_bytes,
            free_bytes,
        })
    }

    async fn close(&self) {
        self.house.work.close();
        let all = self.house.work.wait();
        if tokio::time::timeout(CLOSED_WITHIN, all).await.is_err() {
            tracing::warn!(
                under_way = self.house.work.len(),
                "the runtime closes while machines are under way; they stay on record"
            );
        }
        let house = Arc::clone(&self.house);
        let _ = blocking(move || {
            if house.book.machines.all().is_empty() {
                house.slots.close();
                house.jails.cgroups.close();
            }
            Ok(())
        })
        .await;
    }
}

impl House {
    /// Finds a machine again that an earlier daemon started, if it is up and is to go on.
    async fn adopt(self: &Arc<Self>, record: &record::Machine) -> Result<Option<Arc<Vm>>, RuntimeError> {
        let spec = &record.spec;
        // What was written down, or was to be, is the sandbox.
        let given_up = self.book.kept.read(&spec.sandbox).ok().flatten();
        let given_up = given_up.is_some_and(|kept| kept.execution == spec.execution);
        if !record.up || record.keep || given_up {
            return Ok(None);
        }
        if record.wired && !self.config.network {
            tracing::warn!(sandbox = %spec.sandbox, "a machine has a network, which this daemon cannot hold to its policy; it is ended, and its disk is kept");
            return Ok(None);
        }
        let Some(process) = record.process.as_ref().and_then(Process::adopt) else {
            return Ok(None);
        };
        let mut record = record.clone();
        match self.look_at(&process, &mut record).await {
            Ok((api, frozen)) => {
                let (house, written) = (Arc::clone(self), record.clone());
                blocking(move || house.stake(&written)).await?;
                Ok(Some(Vm::watch(Arc::clone(self), record, process, api, frozen)))
            }
            Err(error) => {
                tracing::warn!(sandbox = %spec.sandbox, error = &error as &dyn std::error::Error, cause = %error.source, "a Firecracker that lives does not answer; it is ended, and its disk is kept");
                Ok(None)
            }
        }
    }

    /// Asks a Firecracker how it is, and brings what was begun with it to an end.
    async fn look_at(&self, process: &Process, record: &mut record::Machine) -> Result<(Api, bool), Step> {
        let jail = self.jail(record);
        let api = process.listen(&jail.host(Inside::Api)).await?;
        let step = || "asking Firecracker how it is";
        let instance = api.instance(ADOPTED_WITHIN).await.at(step())?;
        if instance.id != record.spec.execution.to_string() {
            return Err(io::Error::other("it is another machine's")).at(step());
        }
        let mut frozen = match instance.state {
            InstanceState::Running => false,
            InstanceState::Paused => true,
            InstanceState::NotStarted => return Err(io::Error::other("it has no machine")).at(step()),
        };
        if std::mem::take(&mut record.stands) && frozen {
            api.resume().await.at("letting a machine go on")?;
            frozen = false;
        }
        if std::mem::take(&mut record.copy).state.is_some() {
            // Whatever was written: what Firecracker takes for written since is not known.
            record.base = None;
            jail.take_out()?;
        }
        Ok((api, frozen))
    }

    /// Ends what is left of a machine, and keeps its disk where somebody may want it.
    async fn end_remains(
        self: &Arc<Self>,
        execution: ExecutionId,
        record: Option<record::Machine>,
    ) -> Result<(), RuntimeError> {
        if let Some(process) = record
            .as_ref()
            .and_then(|record| Process::adopt(record.process.as_ref()?))
        {
            process.kill();
            process.ended().await;
        }
        let house = Arc::clone(self);
        blocking(move || {
            house.end_all(&execution.to_string());
            if let Some(record) = record.filter(|record| record.up) {
                let kept = house.book.kept.read(&record.spec.sandbox)?;
                if kept.is_none_or(|kept| kept.execution != execution) {
                    let _ = take_back(&house.images.path(record.disk.image));
                    keep(&house, &record, execution, None)?;
                }
            }
            house.strike(execution, None)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
