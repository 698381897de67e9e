//! A QEMU that begins: given all that it needs, started, and with the memory brought in that it goes on from.
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use guest::boot::LineKind;
use microvm::boot::command_line;
use microvm::cannot_restore;
use microvm::process::Process;
use microvm::work::blocking;
use model::{ExecutionId, NetworkPolicy};
use ports::RuntimeError;
use ports::step::{At, Step};
use serde_json::json;
use uuid::Uuid;

use crate::command::{Begin, Listening, Shape, Sockets, arguments};
use crate::disk::{Disk, Opened, file_bytes_max};
use crate::house::{House, Qemu};
use crate::machine::bring_in;
use crate::memory::Found;
use crate::process::{self, Rights};
use crate::qmp::Qmp;
use crate::record::Machine;

/// What a state of memory has beside the memory itself, at most: how devices are.
const STATE_BESIDE_BYTES_MAX: u64 = 256 << 20;
/// What guests' kernels are told: a console, few words, and an end, not another boot, when they fail.
const KERNEL: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t no_timer_check";

/// A QEMU that waits for its memory, or for nothing but to be let go.
#[derive(Debug)]
pub struct Begun {
    state: Option<fs::File>,
}

pub(super) async fn spawn(
    house: &Arc<House>,
    plan: &microvm::Plan<Qemu>,
) -> Result<(Process, Begun), RuntimeError> {
    let (machine, execution) = (&plan.machine, plan.machine.spec.execution);
    let state = match &plan.memory {
        Some(memory) => {
            let (own, sealed) = (Arc::clone(house), memory.clone());
            let path = house.states.path(memory.state);
            // Looked at before a byte of it is anybody's memory.
            match blocking(move || own.vmm.measured.open(&path, &sealed)).await? {
                Found::Whole(state) => Some(state),
                Found::Damaged(why) => return Err(cannot_restore(&machine.spec, why)),
            }
        }
        None => None,
    };
    let (own, disk) = (Arc::clone(house), machine.disk.clone());
    let resources = machine.spec.resources;
    let (prepared, groups) = blocking(move || {
        let groups = own.vmm.join(execution, resources.memory, resources.cpu)?;
        Ok((prepare(&own.vmm, execution, &disk)?, groups))
    })
    .await?;
    let (own, slot, policy) = (Arc::clone(house), machine.own.slot, machine.spec.network.clone());
    let tap = blocking(move || plug(&own.vmm, slot, &policy)).await?;
    failpoint::reach("qemu/network-plugged");
    let shape = Shape {
        execution,
        accel: house.vmm.probed.accel,
        memory: resources.memory,
        cpus: resources.cpu,
        kernel: prepared.kernel.as_raw_fd(),
        initrd: prepared.initrd.as_raw_fd(),
        append: append(&house.vmm, machine)?,
        disk: prepared.images.iter().map(Opened::lent).collect(),
        tap: tap.as_ref().map(AsRawFd::as_raw_fd),
        sockets: prepared.listening,
        generation: Uuid::new_v4(),
        begin: if state.is_some() {
            Begin::Incoming
        } else {
            Begin::Boot
        },
    };
    let state_bytes_max = resources.memory.bytes().saturating_add(STATE_BESIDE_BYTES_MAX);
    let rights = Rights {
        user: machine.own.user,
        given: prepared.into_descriptors().chain(tap).collect(),
        file_bytes: file_bytes_max(machine.disk.size_bytes).max(state_bytes_max),
        cpus: resources.cpu,
        netns: house.vmm.netns()?,
        groups,
    };
    let process = process::start(&house.vmm.config.qemu, &arguments(&shape), rights)?;
    Ok((process, Begun { state }))
}

pub(super) async fn begin(
    house: &Arc<House>,
    machine: &Machine,
    process: &Process,
    begun: &mut Begun,
) -> Result<Qmp, RuntimeError> {
    let sockets = Sockets::within(&house.vmm.sockets_dir(machine.spec.execution));
    let qmp = process::listen(process, &sockets.qmp, &sockets.serial).await?;
    if let Some(state) = begun.state.take()
        && let Err(error) = bring_in(&qmp, state).await
    {
        let why = format!("{error}: {}", error.source);
        return Err(cannot_restore(&machine.spec, why));
    }
    failpoint::reach("qemu/memory-brought-in");
    qmp.run("cont", json!({})).await.at("letting a machine begin")?;
    Ok(qmp)
}

/// Makes a slot's network, with its policy in force; it is there for as long as the file is open.
fn plug(qemu: &Qemu, slot: Option<u32>, policy: &NetworkPolicy) -> Result<Option<OwnedFd>, Step> {
    let Some((slots, slot)) = qemu.network.as_ref().zip(slot) else {
        return Ok(None);
    };
    let Some(net) = slots.net()? else {
        return Ok(None);
    };
    let (_, tap) = net.attach_tap(slot)?;
    net.claim(slot, policy)?;
    Ok(Some(tap.file))
}

/// What the kernel and the agent are told: ids of our own alone.
fn append(qemu: &Qemu, machine: &Machine) -> Result<String, Step> {
    let network = match qemu.network.as_ref().filter(|_| machine.own.slot.is_some()) {
        Some(slots) => slots.settings()?,
        None => None,
    };
    command_line(KERNEL, machine.spec.sandbox, network, LineKind::Serial)
}

/// Makes a machine's own image and its sockets, and opens all that its QEMU is given.
fn prepare(qemu: &Qemu, execution: ExecutionId, disk: &Disk) -> Result<Prepared, Step> {
    let top = *disk.layers.last().expect("a machine has an image of its own");
    qemu.disks.make(top, disk.size_bytes)?;
    failpoint::reach("qemu/image-made");
    let dir = qemu.sockets_dir(execution);
    fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
    let (listening, listeners) = Sockets::within(&dir)
        .listen()
        .at(format!("listening in {}", dir.display()))?;
    failpoint::reach("qemu/sockets-made");
    let open = |path: &Path| fs::File::open(path).at(format!("opening {}", path.display()));
    Ok(Prepared {
        kernel: open(&qemu.config.guest.kernel)?.into(),
        initrd: open(&qemu.config.guest.initrd)?.into(),
        images: qemu.disks.open_all(disk)?,
        listening,
        listeners,
    })
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
