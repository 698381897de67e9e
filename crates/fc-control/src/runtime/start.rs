//! A Firecracker that begins: its jail furnished, started by the jailer, and told its machine, or given the memory that it goes on
//! from.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use guest::boot::LineKind;
use guest::line::vsock::Ready;
use microvm::boot::command_line;
use microvm::process::Process;
use microvm::work::{blocking, told};
use microvm::{GUEST_ANSWERS_WITHIN, cannot_restore};
use ports::RuntimeError;
use ports::step::{At, Step};
use tokio::time::Instant;

use super::Monitor;
use crate::api::Api;
use crate::api::request::{
    BackendType, BootSource, CacheType, Drive, DriveChange, IoEngine, MachineConfig, MemBackend, MmdsConfig,
    MmdsVersion, NetworkInterface, SnapshotLoad, Vsock,
};
use crate::disk;
use crate::house::{Firecracker, House, Vm};
use crate::jail::{Begin, Furniture, Inside, Jail};
use crate::memory::{self, Memory, Place};
use crate::network::{Namespace, TAP, mac};
use crate::process::{self, listen};
use crate::record::{Disk, Machine};

/// How often a guest that was just brought back is called.
const LOOK: Duration = Duration::from_millis(10);

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

pub(super) async fn spawn(
    house: &Arc<House>,
    plan: &microvm::Plan<Firecracker>,
) -> Result<(Process, Ready), RuntimeError> {
    let (machine, from) = (plan.machine.clone(), plan.from);
    let jail = house.vmm.jail(&machine);
    let (own, furnished, memory) = (Arc::clone(house), jail.clone(), plan.memory.clone());
    // Looked at before a byte of it is anybody's memory.
    let namespace = blocking(move || {
        if let Some(memory) = &memory
            && let Some(why) = memory::is_damaged(&own.vmm.known, &own.states, memory)?
        {
            return Ok(Err(why));
        }
        furnish(&own, &furnished, &machine, from, memory.as_ref()).map(Ok)
    });
    let spec = &plan.machine.spec;
    let namespace = namespace.await?.map_err(|why| cannot_restore(spec, why))?;
    let ready = jail.listen()?;
    let jails = &house.vmm.jails;
    let arguments = jails.arguments(spec.execution, jail.uid, &namespace.path(), spec.resources);
    let process = process::start(&*house.vmm.launcher, &jail, &arguments).await?;
    Ok((process, ready))
}

/// Makes a machine's disk, its jail and its network namespace. Blocks.
pub(super) fn furnish(
    house: &House,
    jail: &Jail,
    machine: &Machine,
    from: Disk,
    memory: Option<&Memory>,
) -> Result<Namespace, Step> {
    let own = house.images.path(machine.disk.image);
    disk::copy(&house.images.path(from.image), &own, machine.disk.size_bytes)?;
    failpoint::reach("fc-control/image-made");
    let begin = match memory {
        Some(memory) => {
            let place = Place::of(&house.states, memory.id);
            Begin::Restore {
                state: place.state(),
                memory: place.memory(),
            }
        }
        None => Begin::Boot {
            kernel: house.vmm.guest.0.clone(),
            initrd: house.vmm.guest.1.clone(),
        },
    };
    jail.furnish(&Furniture { disk: own, begin })?;
    failpoint::reach("fc-control/jail-furnished");
    let namespace = house.vmm.numbers.plug(machine.own.slot, &machine.spec.network)?;
    failpoint::reach("fc-control/network-plugged");
    Ok(namespace)
}

pub(super) async fn begin(
    house: &Arc<House>,
    machine: &Machine,
    process: &Process,
) -> Result<Monitor, RuntimeError> {
    let jail = house.vmm.jail(machine);
    let api = listen(process, &jail.host(Inside::Api)).await?;
    failpoint::reach("fc-control/api-answers");
    if machine.restored {
        // In the same words, whatever is wrong with it: nothing of it has run.
        let loaded = load(&house.vmm, &api, machine).await;
        loaded.map_err(|error| cannot_restore(&machine.spec, told(&error)))?;
    } else {
        configure(&house.vmm, &api, machine).await?;
    }
    failpoint::reach("fc-control/machine-told");
    let locked = jail.clone();
    blocking(move || locked.lock()).await?;
    failpoint::reach("fc-control/jail-locked");
    if machine.restored {
        api.resume().await.at("letting a machine go on")?;
    } else {
        api.start().await.at("letting a machine boot")?;
    }
    Ok(Monitor { api, jail })
}

pub(super) async fn come_up(vm: &Vm, ready: Ready) -> io::Result<()> {
    if vm.record().restored {
        become_itself(vm).await?;
    } else {
        // No more than a reason to ask: whoever is inside can call.
        ready.called().await?;
    }
    drop(ready);
    vm.greet().await
}

/// A guest's vsock may need a moment to notice that it is another.
async fn become_itself(vm: &Vm) -> io::Result<()> {
    let deadline = Instant::now() + GUEST_ANSWERS_WITHIN;
    loop {
        match vm.become_itself().await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(error) => {
                tracing::debug!(execution = %vm.execution, %error, "a restored guest does not answer yet")
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells a Firecracker the machine that it is to boot.
pub(super) async fn configure(firecracker: &Firecracker, api: &Api, machine: &Machine) -> Result<(), Step> {
    let step = || "telling Firecracker its machine";
    let resources = machine.spec.resources;
    let config = MachineConfig {
        vcpu_count: resources.cpu,
        mem_size_mib: resources.memory.0,
        track_dirty_pages: firecracker.config.differences,
    };
    api.machine_config(&config).await.at(step())?;
    let source = BootSource {
        kernel_image_path: Inside::Kernel.path(),
        initrd_path: Inside::Initrd.path(),
        boot_args: boot_args(firecracker, machine)?,
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
    if machine.own.wired {
        let card = NetworkInterface {
            iface_id: CARD,
            guest_mac: mac(),
            host_dev_name: TAP.to_owned(),
        };
        api.network_interface(&card).await.at(step())?;
        if firecracker.config.metadata {
            let config = MmdsConfig {
                version: MmdsVersion::V2,
                network_interfaces: vec![CARD],
            };
            api.mmds_config(&config).await.at(step())?;
            api.mmds(&metadata(machine)).await.at(step())?;
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
async fn load(firecracker: &Firecracker, api: &Api, machine: &Machine) -> Result<(), Step> {
    let load = SnapshotLoad {
        snapshot_path: Inside::State.path(),
        mem_backend: MemBackend {
            backend_type: BackendType::File,
            backend_path: Inside::Memory.path(),
        },
        resume_vm: false,
        clock_realtime: true,
        track_dirty_pages: firecracker.config.differences,
    };
    api.load(&load).await.at("bringing memory in")?;
    failpoint::reach("fc-control/memory-loaded");
    // What a state says of its disk was said by whoever wrote it. If this fails it must not go on: it would write elsewhere.
    let own = DriveChange {
        drive_id: DRIVE,
        path_on_host: Inside::Disk.path(),
    };
    api.change_drive(&own).await.at("giving a machine its own disk")?;
    if machine.own.wired && firecracker.config.metadata {
        // It is not part of what was written down.
        api.mmds(&metadata(machine)).await.at("bringing memory in")?;
    }
    Ok(())
}

/// What the kernel and the agent are told: ids of our own alone.
fn boot_args(firecracker: &Firecracker, machine: &Machine) -> Result<String, Step> {
    let network = firecracker
        .numbers
        .slots
        .settings()?
        .filter(|_| machine.own.wired);
    command_line(KERNEL, machine.spec.sandbox, network, LineKind::Vsock)
}

fn metadata(machine: &Machine) -> serde_json::Value {
    serde_json::json!({
        "latest": { "meta-data": {
            "sandbox-id": machine.spec.sandbox.to_string(),
            "build-id": machine.spec.build.to_string(),
        } }
    })
}
