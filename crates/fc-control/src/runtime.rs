//! The runtime: what it is told, and Firecracker's own way of each step of a machine's life.
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use guest::line::vsock::Ready;
use microvm::agent::{ByVsock, Link};
use microvm::boot::Guest;
use microvm::network::Slots;
use microvm::policy::{Cpus, Offered};
use microvm::process::Process;
use microvm::work::{blocking, told};
use microvm::{Vmm, cannot_restore};
use model::{BuildId, SandboxId};
use net::Instance;
use ports::runtime::{Capabilities, DiskOrigin, MemoryFile};
use ports::step::{At, Step};
use ports::{MachineSpec, RuntimeError};
use uuid::Uuid;

use crate::api::Api;
use crate::cgroup::Cgroups;
use crate::disk::through;
use crate::house::{self, Firecracker, House, Vm, own_program, prepare};
use crate::jail::{Inside, Jail, Jails, take_back};
use crate::machine::{copy_disk, write_state};
use crate::memory::{self, Memory, Place, Written};
use crate::network::Numbers;
use crate::probe::{Probed, probe};
use crate::process::Jailer;
use crate::record::{Base, Build, Copying, Disk, Machine, Own};
use crate::{import, whole};

mod adopt;
mod start;

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
        portable_builds: true,
    }
}

/// Firecrackers of this machine.
pub type Firecrackers = microvm::Microvms<Firecracker>;

/// No disk is larger.
const DISK_BYTES_MAX: u64 = 4 << 40;
/// Users of an instance's machines, of which each has one: as many as there are between those of two daemons.
const USERS_EACH: u32 = 0x1000_0000;

/// The way to one machine's Firecracker.
pub struct Monitor {
    pub(crate) api: Api,
    pub(crate) jail: Jail,
}

fn unsupported(what: String) -> RuntimeError {
    RuntimeError::Unsupported {
        runtime: Firecracker::NAME,
        what,
    }
}

#[async_trait]
impl Vmm for Firecracker {
    const NAME: &'static str = "firecracker";
    const CPUS: Cpus = Cpus::OneOrEven;
    const GOES_ON_TWICE: bool = false;
    /// It is not asked to.
    const QUITS_WITHIN: Duration = Duration::ZERO;

    type Config = Config;
    type Probed = Probed;
    type Disk = Disk;
    type Memory = Memory;
    type Own = Own;
    type Monitor = Monitor;
    /// Listens where a guest calls that is up.
    type Begun = Ready;
    type Copy = Uuid;
    type Written = Written;

    async fn open(config: Config) -> Result<House, RuntimeError> {
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
        let slots = Slots::new(instance.number, config.network);
        let numbers = Numbers::new(slots, (instance.number + 1) * USERS_EACH);
        let launcher = Box::new(Jailer(config.jailer.clone()));
        blocking(move || house::open(config, probed, jails, launcher, numbers, Some(instance))).await
    }

    fn probed(&self) -> &Probed {
        &self.probed
    }

    fn data(&self) -> &Path {
        &self.config.data
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.config.network)
    }

    fn boots_within(&self) -> Duration {
        self.config.boots_within
    }

    fn offered(&self, own: Option<&Own>) -> Offered {
        if own.map_or(self.config.network, |own| own.wired) {
            Offered::Network
        } else {
            Offered::Nothing {
                agreed: self.config.offline,
            }
        }
    }

    fn import(house: &House, build: BuildId, layers: &[PathBuf]) -> Result<(), Step> {
        import::layers(house, build, layers)
    }

    fn import_root(house: &House, build: BuildId, dir: &Path) -> Result<(), Step> {
        import::root(house, build, dir)
    }

    fn is_whole(house: &House, disk: &Disk) -> bool {
        house.images.path(disk.image).exists()
    }

    fn is_possible(disk: &Disk, memory: Option<&Memory>) -> Result<(), &'static str> {
        if disk.size_bytes == 0 || disk.size_bytes > DISK_BYTES_MAX {
            return Err("its disk has a size that none has");
        }
        memory.map_or(Ok(()), Memory::is_possible)
    }

    fn memory_files(memory: &Memory) -> Vec<(Uuid, MemoryFile)> {
        memory.files()
    }

    fn memory_file(house: &House, state: Uuid, file: MemoryFile) -> PathBuf {
        let place = Place::of(&house.states, state);
        match file {
            MemoryFile::Pages => place.memory(),
            MemoryFile::Devices => place.state(),
        }
    }

    /// Its content is not looked at: what a machine of ours wrote is no better.
    fn is_sound(house: &House, disk: &Disk) -> Result<(), &'static str> {
        let about = std::fs::metadata(house.images.path(disk.image));
        if about.map_or(0, |about| about.len()) != disk.size_bytes {
            return Err("the image in it is none of a disk of that size");
        }
        Ok(())
    }

    fn size_bytes(disk: &Disk) -> u64 {
        disk.size_bytes
    }

    /// What is a difference is made whole while it is waited for.
    async fn make_ready(house: &Arc<House>, spec: &MachineSpec) -> Result<(), RuntimeError> {
        if spec.disk == DiskOrigin::Kept && spec.restore {
            let whole = whole::kept(house, spec.sandbox).await;
            whole.map_err(|error| cannot_restore(spec, told(&error)))?;
        }
        Ok(())
    }

    fn draw(
        house: &House,
        spec: &MachineSpec,
        from: &Disk,
        bytes_min: u64,
        memory: Option<&Memory>,
    ) -> Result<(Disk, Own), RuntimeError> {
        let base = memory.and_then(Base::of);
        if memory.is_some() && base.is_none() {
            let why = "it is a difference, which was not made whole".to_owned();
            return Err(cannot_restore(spec, why));
        }
        let own = Own {
            slot: house.vmm.numbers.slots.draw()?,
            wired: house.vmm.config.network,
            base,
            copy: Copying::default(),
            stands: false,
        };
        let disk = Disk {
            image: Uuid::new_v4(),
            size_bytes: from.size_bytes.max(bytes_min),
        };
        Ok((disk, own))
    }

    fn give_back(&self, own: &Own) {
        self.numbers.slots.give_back(own.slot);
    }

    fn misfit_here(house: &House, memory: &Memory) -> Option<String> {
        memory.fits.differs_from(&house.vmm.here(&memory.fits))
    }

    fn misfit(house: &House, memory: &Memory, machine: &Machine) -> Option<String> {
        memory.fits.differs_from(&house.vmm.fits(machine))
    }

    async fn spawn(house: &Arc<House>, plan: &microvm::Plan<Self>) -> Result<(Process, Ready), RuntimeError> {
        start::spawn(house, plan).await
    }

    async fn begin(
        house: &Arc<House>,
        machine: &Machine,
        process: &Process,
        _: &mut Ready,
    ) -> Result<Monitor, RuntimeError> {
        start::begin(house, machine, process).await
    }

    async fn come_up(vm: &Vm, ready: Ready) -> io::Result<()> {
        start::come_up(vm, ready).await
    }

    fn link(house: &House, machine: &Machine) -> Link {
        let socket = house.vmm.jail(machine).host(Inside::Vsock);
        Link::new(Arc::new(ByVsock), socket)
    }

    /// Nobody reaches a machine any more that only stood, under Firecrackers with a fault that the operator accepted.
    fn may_stand(&self, what: &str) -> Result<(), RuntimeError> {
        let version = &self.probed.version;
        if version.is_deaf_after_standing() {
            return Err(unsupported(format!(
                "{what} under Firecracker {version} ({})",
                crate::version::DEAF
            )));
        }
        Ok(())
    }

    async fn pause(vm: &Vm) -> Result<(), Step> {
        vm.monitor.api.pause().await.at("having a machine stand")
    }

    async fn go_on(vm: &Vm) -> Result<(), Step> {
        vm.monitor.api.resume().await.at("letting a machine go on")
    }

    async fn quit(_: &Vm) {}

    fn set_policy(house: &House, machine: &Machine) -> Result<(), Step> {
        if !machine.own.wired {
            return Ok(());
        }
        let slots = &house.vmm.numbers.slots;
        slots.set_policy(machine.own.slot, &machine.spec.network)
    }

    fn facts(vm: &Vm, machine: &Machine) -> Vec<(&'static str, String)> {
        let (house, jail) = (&vm.house, &vm.monitor.jail);
        let (image, id) = (machine.disk.image, vm.execution.to_string());
        let link = machine
            .own
            .wired
            .then(|| house.vmm.numbers.slots.link(machine.own.slot));
        vec![
            ("firecracker", house.vmm.probed.version.to_string()),
            ("jail", jail.root().display().to_string()),
            ("user", jail.uid.to_string()),
            ("cgroup", house.vmm.jails.cgroups.shown(&id)),
            ("disk", house.images.path(image).display().to_string()),
            (
                "disk written",
                format!("{} bytes", house.images.used_bytes(image)),
            ),
            ("network", link.unwrap_or_else(|| "none".to_owned())),
        ]
    }

    fn draw_copy() -> Uuid {
        Uuid::new_v4()
    }

    fn images_of_copy(_: &Machine, copy: Uuid) -> Vec<Uuid> {
        vec![copy]
    }

    fn note_writing(machine: &mut Machine, copy: Option<Uuid>, state: Option<Uuid>, stands_for_it: bool) {
        let own = &mut machine.own;
        own.stands = stands_for_it;
        own.copy = Copying { image: copy, state };
        if copy.is_some() && state.is_some() {
            // All of it is written; what Firecracker takes for written since is another from here on.
            own.base = None;
        }
    }

    fn note_written(machine: &mut Machine, _: Option<Uuid>) {
        let own = &mut machine.own;
        own.stands = false;
        if std::mem::take(&mut own.copy).state.is_some() {
            // Whatever was written: what Firecracker takes for written since is not known.
            own.base = None;
        }
    }

    fn prepare_copy(_: &House, _: &Machine, _: Uuid) -> Result<(), Step> {
        Ok(())
    }

    async fn copy_disk(vm: &Vm, copy: Uuid) -> Result<(), Step> {
        copy_disk(vm, copy).await
    }

    async fn write_state(vm: &Vm, state: Uuid) -> Result<Written, Step> {
        write_state(vm, state).await
    }

    fn copied(machine: &Machine, copy: Uuid) -> Disk {
        Disk {
            image: copy,
            size_bytes: machine.disk.size_bytes,
        }
    }

    fn settle(house: &House, disk: &Disk) -> Result<(), Step> {
        through(&house.images.path(disk.image))
    }

    fn seal(house: &House, machine: &Machine, state: Uuid, written: Written) -> Result<Memory, Step> {
        let fits = house.vmm.fits(machine);
        memory::seal(&house.vmm.known, &house.states, state, written, fits)
    }

    /// What was written last is what the next difference is from.
    async fn after_copy(vm: &Vm, _: BuildId, build: &Build) -> Result<(), RuntimeError> {
        if let Some(base) = build.memory.as_ref().and_then(Base::of) {
            vm.note(|machine| machine.own.base = Some(base)).await?;
        }
        Ok(())
    }

    fn tidy_kept_soon(house: &Arc<House>, sandbox: SandboxId) {
        whole::kept_soon(house, sandbox);
    }

    fn release(house: &House, machine: &Machine) -> Result<(), Step> {
        // It may be nobody's any more, and be swept away, or not be there yet.
        let _ = take_back(&house.images.path(machine.disk.image));
        house.vmm.numbers.slots.unplug(machine.own.slot)
    }

    fn clear(house: &House, id: &str) -> Result<(), Step> {
        house.vmm.clear(id)
    }

    fn end_all(house: &House, id: &str) {
        house.vmm.end_all(id);
    }

    fn must_end(&self, own: &Own) -> Option<&'static str> {
        let is_loose = own.wired && !self.config.network;
        is_loose.then_some("it has a network, which this daemon cannot hold to its policy")
    }

    async fn look_at(
        house: &Arc<House>,
        process: &Process,
        machine: &mut Machine,
    ) -> Result<(Monitor, bool), Step> {
        adopt::look_at(house, process, machine).await
    }

    fn salvage(house: &House, machine: &mut Machine) {
        let _ = take_back(&house.images.path(machine.disk.image));
    }

    fn reopen(house: &House, living: &[Machine]) -> Result<(), Step> {
        let (jails, numbers) = (&house.vmm.jails, &house.vmm.numbers);
        let ids = living.iter().map(|machine| machine.spec.execution.to_string());
        let running: BTreeSet<String> = ids.collect();
        let strays = jails.ids().into_iter().chain(jails.cgroups.ids());
        for id in strays.filter(|id| !running.contains(id)) {
            house.vmm.clear(&id)?;
        }
        let slots: Vec<u32> = living.iter().map(|machine| machine.own.slot).collect();
        let wired = living.iter().filter(|machine| machine.own.wired);
        let wired: Vec<_> = wired
            .map(|machine| (machine.own.slot, machine.spec.network.clone()))
            .collect();
        numbers.slots.open(&slots, &wired)
    }

    fn close(&self) {
        self.numbers.slots.close();
        self.jails.cgroups.close();
    }
}

#[cfg(test)]
mod tests;
