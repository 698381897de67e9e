//! The runtime: what it is told, and QEMU's own way of each step of a machine's life.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use microvm::Vmm;
use microvm::agent::{Agents, BySerial, Link};
use microvm::boot::Guest;
use microvm::files::remove_dir;
use microvm::policy::{Cpus, Offered};
use microvm::process::Process;
use microvm::work::blocking;
use model::{BuildId, SandboxId};
use ports::runtime::{Capabilities, DiskOrigin, MemoryFile};
use ports::step::{At, Step};
use ports::{MachineSpec, RuntimeError};
use serde_json::json;
use uuid::Uuid;

use crate::command::Sockets;
use crate::disk::{DEPTH_STARTED_MAX, Disk, Disks, Format, Layer};
use crate::house::{House, Qemu, Vm, end_all};
use crate::machine::{command, seal_disk, write_state};
use crate::memory::{self, Memory};
use crate::probe::{Probed, probe};
use crate::qmp::Qmp;
use crate::record::{Build, Machine, Own};
use crate::users::Users;
use crate::{flat, house, import};

mod adopt;
mod start;

use start::Begun;

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

/// What virtual machines under QEMU can do: with a network and volumes, which take root, or without.
#[must_use]
pub const fn capabilities(is_root: bool) -> Capabilities {
    Capabilities {
        durable_memory: true,
        freeze: true,
        own_kernel: true,
        network: is_root,
        volumes: is_root,
        roots: false,
        portable_builds: true,
    }
}

/// QEMUs of this machine.
pub type Qemus = microvm::Microvms<Qemu>;

/// QEMU brings its images to an end, and goes.
const QUIT_WITHIN: Duration = Duration::from_secs(10);

/// Finds out what QEMU can do, and opens the runtime's directory.
pub(crate) async fn open_with(config: Config, agents: Arc<dyn Agents>) -> Result<House, RuntimeError> {
    let probed = probe(&config.qemu).await.map_err(io::Error::other);
    let probed = probed.at(format!("starting {}", config.qemu.display()))?;
    if let Some(why) = &probed.why_not_kvm {
        tracing::warn!(
            why,
            "QEMU cannot use the processor for guests: they are emulated, which takes many times as long"
        );
    }
    blocking(move || house::open(config, probed, agents)).await
}

#[async_trait]
impl Vmm for Qemu {
    const NAME: &'static str = "qemu";
    const CPUS: Cpus = Cpus::Any;
    const GOES_ON_TWICE: bool = true;
    const QUITS_WITHIN: Duration = QUIT_WITHIN;

    type Config = Config;
    type Probed = Probed;
    type Disk = Disk;
    type Memory = Memory;
    type Own = Own;
    type Monitor = Qmp;
    type Begun = Begun;
    type Copy = Layer;
    type Written = ();

    async fn open(config: Config) -> Result<House, RuntimeError> {
        open_with(config, Arc::new(BySerial)).await
    }

    fn probed(&self) -> &Probed {
        &self.probed
    }

    fn data(&self) -> &Path {
        &self.config.data
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.network.is_some())
    }

    fn boots_within(&self) -> Duration {
        self.config.boots_within
    }

    fn offered(&self, own: Option<&Own>) -> Offered {
        let has_network = match own {
            Some(own) => own.slot.is_some(),
            None => self.network.is_some(),
        };
        if has_network {
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
        house.vmm.disks.is_whole(disk)
    }

    fn is_possible(disk: &Disk, memory: Option<&Memory>) -> Result<(), &'static str> {
        disk.is_possible()?;
        memory.map_or(Ok(()), Memory::is_possible)
    }

    fn memory_files(memory: &Memory) -> Vec<(Uuid, MemoryFile)> {
        vec![(memory.state, MemoryFile::Pages)]
    }

    fn memory_file(house: &House, state: Uuid, _: MemoryFile) -> PathBuf {
        house.states.path(state)
    }

    fn is_sound(house: &House, disk: &Disk) -> Result<(), &'static str> {
        house.vmm.disks.is_sound(disk)
    }

    fn size_bytes(disk: &Disk) -> u64 {
        disk.size_bytes
    }

    /// Images that lie on one another in great number are made one while it is waited for.
    async fn make_ready(house: &Arc<House>, spec: &MachineSpec) -> Result<(), RuntimeError> {
        let (disk, _) = house.origin(spec.build, spec.sandbox, spec.disk)?;
        if disk.layers.len() > DEPTH_STARTED_MAX {
            match spec.disk {
                DiskOrigin::Kept => flat::kept(house, spec.sandbox).await?,
                DiskOrigin::Fresh | DiskOrigin::Single => flat::build(house, spec.build).await?,
            };
        }
        Ok(())
    }

    fn draw(
        house: &House,
        _: &MachineSpec,
        from: &Disk,
        bytes_min: u64,
        _: Option<&Memory>,
    ) -> Result<(Disk, Own), RuntimeError> {
        let qemu = &house.vmm;
        let mut own = Own {
            slot: qemu.network.as_ref().map(|slots| slots.draw()).transpose()?,
            user: None,
            next: None,
            state: None,
            copying: false,
        };
        match qemu.users.as_ref().map(Users::draw).transpose() {
            Ok(user) => own.user = user,
            Err(error) => {
                qemu.give_back(&own);
                return Err(error);
            }
        }
        Ok((from.under(Disks::draw(Format::Qcow2), bytes_min), own))
    }

    fn give_back(&self, own: &Own) {
        if let Some((slots, slot)) = self.network.as_ref().zip(own.slot) {
            slots.give_back(slot);
        }
        if let Some((users, user)) = self.users.as_ref().zip(own.user) {
            users.give_back(user);
        }
    }

    fn misfit_here(house: &House, memory: &Memory) -> Option<String> {
        memory.fits.differs_from(&house.vmm.here(&memory.fits))
    }

    fn misfit(house: &House, memory: &Memory, machine: &Machine) -> Option<String> {
        memory.fits.differs_from(&house.vmm.fits(machine))
    }

    async fn spawn(house: &Arc<House>, plan: &microvm::Plan<Self>) -> Result<(Process, Begun), RuntimeError> {
        start::spawn(house, plan).await
    }

    async fn begin(
        house: &Arc<House>,
        machine: &Machine,
        process: &Process,
        begun: &mut Begun,
    ) -> Result<Qmp, RuntimeError> {
        start::begin(house, machine, process, begun).await
    }

    async fn come_up(vm: &Vm, _: Begun) -> io::Result<()> {
        if vm.record().restored {
            vm.become_itself().await?;
        }
        vm.greet().await
    }

    fn link(house: &House, machine: &Machine) -> Link {
        let dir = house.vmm.sockets_dir(machine.spec.execution);
        Link::new(Arc::clone(&house.vmm.agents), Sockets::within(&dir).line)
    }

    fn may_stand(&self, _: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// It flushes its disk when it stops.
    async fn pause(vm: &Vm) -> Result<(), Step> {
        command(vm, "stop", json!({})).await.map(drop)
    }

    async fn go_on(vm: &Vm) -> Result<(), Step> {
        command(vm, "cont", json!({})).await?;
        vm.link.knock().await;
        Ok(())
    }

    async fn quit(vm: &Vm) {
        let _ = vm.monitor.run_within("quit", json!({}), QUIT_WITHIN).await;
    }

    fn set_policy(house: &House, machine: &Machine) -> Result<(), Step> {
        match house.vmm.network.as_ref().zip(machine.own.slot) {
            Some((slots, slot)) => slots.set_policy(slot, &machine.spec.network),
            None => Ok(()),
        }
    }

    fn facts(vm: &Vm, machine: &Machine) -> Vec<(&'static str, String)> {
        let qemu = &vm.house.vmm;
        let (disk, own) = (&machine.disk, &machine.own);
        let top = disk.layers.last().map(|layer| layer.id);
        let path = top.map(|top| vm.house.images.path(top).display().to_string());
        let written = top.map(|top| format!("{} bytes", vm.house.images.used_bytes(top)));
        let user = own.user.map(|user| user.uid.to_string());
        let link = qemu.network.as_ref().zip(own.slot);
        let sockets = qemu.sockets_dir(vm.execution);
        vec![
            ("accelerator", qemu.probed.accel.name().to_owned()),
            ("user", user.unwrap_or_else(|| "the daemon's".to_owned())),
            ("sockets", sockets.display().to_string()),
            ("disk", path.unwrap_or_default()),
            ("disk written", written.unwrap_or_default()),
            ("disk images", disk.layers.len().to_string()),
            (
                "network",
                link.map_or_else(|| "none".to_owned(), |(slots, slot)| slots.link(slot)),
            ),
        ]
    }

    fn draw_copy() -> Layer {
        Disks::draw(Format::Qcow2)
    }

    /// Those that it lies on until then, of which the build is made.
    fn images_of_copy(machine: &Machine, _: Layer) -> Vec<Uuid> {
        machine.disk.layers.iter().map(|layer| layer.id).collect()
    }

    fn note_writing(machine: &mut Machine, copy: Option<Layer>, state: Option<Uuid>, stands_for_it: bool) {
        machine.own.next = copy;
        machine.own.state = state;
        machine.own.copying = stands_for_it;
    }

    fn note_written(machine: &mut Machine, copied: Option<Layer>) {
        machine.disk.layers.extend(copied);
        machine.own.next = None;
        machine.own.state = None;
        machine.own.copying = false;
    }

    fn prepare_copy(house: &House, machine: &Machine, copy: Layer) -> Result<(), Step> {
        house.vmm.disks.make(copy, machine.disk.size_bytes)
    }

    async fn copy_disk(vm: &Vm, _: Layer) -> Result<(), Step> {
        seal_disk(vm).await
    }

    async fn write_state(vm: &Vm, state: Uuid) -> Result<(), Step> {
        write_state(vm, state).await
    }

    fn copied(machine: &Machine, _: Layer) -> Disk {
        machine.disk.clone()
    }

    /// QEMU flushed it when it stopped, or ended.
    fn settle(_: &House, _: &Disk) -> Result<(), Step> {
        Ok(())
    }

    fn seal(house: &House, machine: &Machine, state: Uuid, (): ()) -> Result<Memory, Step> {
        memory::seal(&house.states.path(state), state, house.vmm.fits(machine))
    }

    async fn after_copy(vm: &Vm, into: BuildId, _: &Build) -> Result<(), RuntimeError> {
        flat::build_soon(&vm.house, into);
        Ok(())
    }

    fn tidy_kept_soon(house: &Arc<House>, sandbox: SandboxId) {
        flat::kept_soon(house, sandbox);
    }

    fn release(house: &House, machine: &Machine) -> Result<(), Step> {
        match house.vmm.network.as_ref().zip(machine.own.slot) {
            Some((slots, slot)) => slots.unplug(slot),
            None => Ok(()),
        }
    }

    fn clear(house: &House, id: &str) -> Result<(), Step> {
        house.vmm.clear(id)
    }

    fn end_all(house: &House, id: &str) {
        end_all(&house.vmm.run_dir().join(id));
    }

    fn must_end(&self, own: &Own) -> Option<&'static str> {
        let is_loose = own.slot.is_some() && self.network.is_none();
        is_loose.then_some("it has a network, which this daemon cannot hold to its policy")
    }

    async fn look_at(
        house: &Arc<House>,
        process: &Process,
        machine: &mut Machine,
    ) -> Result<(Qmp, bool), Step> {
        adopt::look_at(house, process, machine).await
    }

    fn salvage(house: &House, machine: &mut Machine) {
        let next = machine.own.next.take();
        // Whether or not it was laid on its disk: what was not holds nothing.
        machine
            .disk
            .layers
            .extend(next.filter(|next| house.vmm.disks.is_image(*next)));
    }

    fn reopen(house: &House, living: &[Machine]) -> Result<(), Step> {
        let qemu = &house.vmm;
        if let Some(users) = &qemu.users {
            for user in living.iter().filter_map(|machine| machine.own.user) {
                users.take(user);
            }
        }
        if let Some(network) = &qemu.network {
            let wired = living.iter().filter_map(|machine| {
                let slot = machine.own.slot?;
                Some((slot, machine.spec.network.clone()))
            });
            let wired: Vec<_> = wired.collect();
            let slots: Vec<u32> = wired.iter().map(|(slot, _)| *slot).collect();
            network.open(&slots, &wired)?;
        }
        let ids = living.iter().map(|machine| machine.spec.execution.to_string());
        let running: BTreeSet<String> = ids.collect();
        for entry in fs::read_dir(qemu.run_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| running.contains(name)) {
                end_all(&entry.path());
                remove_dir(&entry.path())?;
            }
        }
        qemu.clear_groups(&running)
    }

    fn close(&self) {
        if let Some(network) = &self.network {
            network.close();
        }
        if let Some(groups) = &self.groups {
            groups.close();
        }
    }
}

#[cfg(test)]
mod tests;
