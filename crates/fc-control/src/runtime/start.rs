//! A machine that begins: booted, or with memory that is brought back; nothing of it is left where that fails.
use super::{CARD, DRIVE, GUEST_CID, KERNEL, unsupported};
use crate::agent::Name;
use crate::api::Api;
use crate::api::request::{
    BackendType, BootSource, CacheType, Drive, DriveChange, IoEngine, MachineConfig, MemBackend, MmdsConfig,
    MmdsVersion, NetworkInterface, SnapshotLoad, Vsock,
};
use crate::disk;
use crate::house::House;
use crate::jail::{Begin, Furniture, Inside, take_back};
use crate::machine::{Handle, Vm, blocking, in_time};
use crate::memory::{self, Memory, Pages, Place};
use crate::network::{TAP, mac};
use crate::policy;
use crate::process::{LAST_WORDS_BYTES, Process};
use crate::record::{self, Base, Build, Copying, Disk, FORM};
use guest::line::vsock::Ready;
use model::{BuildId, SandboxId};
use ports::runtime::{Disk as Fate, DiskOrigin};
use ports::step::{At, Step};
use ports::{Machine, MachineSpec, RuntimeError};
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;
use uuid::Uuid;

/// What is left where a start fails.
pub(super) struct Started {
    house: Arc<House>,
    /// `None` when it has been handed over.
    pub(super) vm: Option<Arc<Vm>>,
    runtime: tokio::runtime::Handle,
    /// The sandbox whose kept disk it goes on from.
    from_kept: Option<SandboxId>,
}

impl Started {
    /// From here on the sandbox is this machine.
    pub(super) fn hand_over(mut self) -> Result<Arc<dyn Machine>, RuntimeError> {
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
pub(super) struct Plan {
    pub(super) record: record::Machine,
    /// The image that its own is a copy of.
    pub(super) from: Disk,
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

    pub(super) async fn bring_up(self: &Arc<Self>, spec: MachineSpec) -> Result<Started, RuntimeError> {
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
    pub(super) fn put_on_record(&self, spec: MachineSpec) -> Result<Plan, RuntimeError> {
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
        let memory_is_back = memory.is_some();
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
        vm.give_volumes(memory_is_back).await?;
        Ok(vm)
    }

    /// Makes a machine's disk, its jail and its network namespace. Blocks.
    pub(super) fn furnish(
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
    pub(super) async fn configure(&self, api: &Api, record: &record::Machine) -> Result<(), Step> {
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

pub(super) fn told(error: &dyn std::error::Error) -> String {
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
