//! The runtime: starting machines, and finding those of earlier daemons.
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{BuildId, SandboxId};
use net::Instance;
use ports::runtime::{Capabilities, DiskSpace, Recovered};
use ports::step::At;
use ports::{Machine, MachineSpec, Runtime, RuntimeError, VolumeFiles};
use tokio::sync::oneshot;

use crate::cgroup::Cgroups;
use crate::house::{House, own_program, prepare};
use crate::import;
use crate::jail::Jails;
use crate::machine::{Handle, blocking, panicked};
use crate::network::Slots;
use crate::probe::{Probed, probe};
use crate::process::{Jailer, Launch};
use crate::record::Build;

mod adopt;
mod start;

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
        volumes: true,
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
/// Whoever looked into a volume lets go of it a moment later.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(2);
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

    /// The files in the volumes of this node.
    #[must_use]
    pub fn volume_files(&self) -> Arc<dyn VolumeFiles> {
        let house = Arc::clone(&self.house);
        let has_room = move || house.has_room().is_ok();
        Arc::new(volumes::Files::new(Arc::clone(&self.house.volumes), has_room))
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

#[async_trait]
impl Runtime for Firecrackers {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.house.config.network)
    }

    async fn recover(&self) -> Result<Recovered, RuntimeError> {
        let volumes = Arc::clone(&self.house.volumes);
        blocking(move || {
            volumes.recover();
            Ok(())
        })
        .await?;
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
                house.volumes.unmount_all(UNMOUNTED_WITHIN);
                house.slots.close();
                house.jails.cgroups.close();
            }
            Ok(())
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
