//! What QEMUs of a node share.
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linux::cgroup::{Groups, Limits};
use microvm::agent::Agents;
use microvm::files::{Files, is_fit, remove_dir};
use microvm::network::Slots;
use microvm::stray::{kill_if, started_with, words};
use model::{ExecutionId, MiB};
use net::Instance;
use ports::step::{At, Step};

use crate::command::{Accel, Sockets, TRANSLATED_MIB, process_name};
use crate::disk::Disks;
use crate::flat::Flattening;
use crate::memory::{Fits, Measured};
use crate::probe::Probed;
use crate::process::{Rights, threads_max};
use crate::record::Machine;
use crate::runtime::Config;
use crate::users::{self, Users};

/// QEMU and its firmware, its devices, and buffers of what is read and written.
const OVERHEAD_BYTES: u64 = 192 << 20;
/// The kernel lets go of a group within milliseconds.
const LEFT_WITHIN: Duration = Duration::from_secs(5);

/// QEMU on this host, and what its machines share.
pub struct Qemu {
    pub(crate) config: Config,
    pub(crate) probed: Probed,
    pub(crate) disks: Disks,
    pub(crate) agents: Arc<dyn Agents>,
    /// `None` where machines are given none.
    pub(crate) network: Option<Slots>,
    /// `None` where the daemon is not root: then all are whoever it is.
    pub(crate) users: Option<Users>,
    /// Where QEMUs are, with nobody to talk to: their networks come as files. `None`: where the daemon is, which is not root.
    netns: Option<OwnedFd>,
    /// By which what QEMUs use is bounded; `None` where the daemon is not root, or the machine has none.
    pub(crate) groups: Option<Groups>,
    /// States that need not be measured again.
    pub(crate) measured: Measured,
    /// Disks that are being made flat.
    pub(crate) flattening: Flattening,
    /// Held while this daemon lives.
    _instance: Option<Instance>,
}

/// A node's QEMUs, disks and records.
pub(crate) type House = microvm::House<Qemu>;
/// A machine that runs, or stands.
pub(crate) type Vm = microvm::Vm<Qemu>;

/// Opens the runtime's directory.
pub(crate) fn open(config: Config, probed: Probed, agents: Arc<dyn Agents>) -> Result<House, Step> {
    let data = &config.data;
    let step = || format!("opening {}", data.display());
    let longest = run_dir(data).join(ExecutionId::random().to_string());
    let longest = longest.as_os_str().len() + Sockets::NAME_MAX;
    is_fit(data, longest).at(step())?;
    fs::create_dir_all(run_dir(data)).at(step())?;
    for dir in [data, &run_dir(data)] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).at(step())?;
    }
    let is_root = users::is_root();
    let instance = (config.network || is_root)
        .then(|| Instance::take(data))
        .transpose()?;
    let numbered = instance.as_ref().map(|instance| instance.number);
    if is_root {
        // What is in them is nobody's secret, and QEMU is not root.
        open_to_read(&config.guest.kernel)?;
        open_to_read(&config.guest.initrd)?;
    }
    let images = Files::open(data.join("images"))?;
    let data = data.clone();
    let qemu = Qemu {
        disks: Disks {
            files: images.clone(),
        },
        network: numbered
            .filter(|_| config.network)
            .map(|number| Slots::new(number, true)),
        users: numbered
            .filter(|_| is_root)
            .map(|number| Users::of(number, probed.accel)),
        netns: is_root
            .then(linux::netns::fresh)
            .transpose()
            .at("making a network namespace for QEMUs")?,
        groups: numbered.filter(|_| is_root).and_then(groups),
        measured: Measured::default(),
        _instance: instance,
        probed,
        agents,
        flattening: Flattening::default(),
        config,
    };
    House::open(&data, images, qemu)
}

impl Qemu {
    /// Where a machine's sockets are.
    pub(crate) fn sockets_dir(&self, execution: ExecutionId) -> PathBuf {
        self.run_dir().join(execution.to_string())
    }

    /// Where all sockets are.
    pub(crate) fn run_dir(&self) -> PathBuf {
        run_dir(&self.config.data)
    }

    /// What memory of a machine fits, or has to fit to be brought back as one.
    pub(crate) fn fits(&self, machine: &Machine) -> Fits {
        Fits {
            qemu: self.probed.version.clone(),
            accel: self.probed.accel,
            processor: self.processor(),
            memory: machine.spec.resources.memory,
            cpus: machine.spec.resources.cpu,
            bundle: self.config.guest.digest.clone(),
            disk_bytes: machine.disk.size_bytes,
            network: machine.own.slot.is_some(),
        }
    }

    /// What memory that fits `of` has to fit to be a machine's on this host.
    pub(crate) fn here(&self, of: &Fits) -> Fits {
        Fits {
            qemu: self.probed.version.clone(),
            accel: self.probed.accel,
            processor: self.processor(),
            bundle: self.config.guest.digest.clone(),
            ..of.clone()
        }
    }

    /// Whatever guests see of the host's.
    fn processor(&self) -> Option<String> {
        (self.probed.accel == crate::command::Accel::Kvm).then(microvm::processor::processor)
    }

    /// Removes what a QEMU has on the host beside its disk: control groups and sockets.
    pub(crate) fn clear(&self, id: &str) -> Result<(), Step> {
        self.leave(id)?;
        failpoint::reach("qemu/groups-removed");
        remove_dir(&self.run_dir().join(id))?;
        failpoint::reach("qemu/sockets-removed");
        Ok(())
    }

    /// Makes the control groups of a QEMU with so much of a guest's memory, for it to be started in; none where there are none.
    pub(crate) fn join(&self, id: ExecutionId, memory: MiB, cpus: u32) -> Result<Vec<OwnedFd>, Step> {
        let Some(groups) = &self.groups else {
            return Ok(Vec::new());
        };
        let limits = Limits {
            memory_bytes: memory.bytes().saturating_add(overhead_bytes(self.probed.accel)),
            cpus,
            tasks: threads_max(cpus),
        };
        groups
            .create(&id.to_string(), limits)
            .at(format!("bounding what QEMU {id} uses"))
    }

    /// What a QEMU that has no machine may do, beside what it is given.
    pub(crate) fn rights_without_machine(&self, id: ExecutionId) -> Result<Rights, Step> {
        Ok(Rights {
            user: self.users.as_ref().map(Users::without_machine),
            given: Vec::new(),
            file_bytes: 0,
            cpus: 0,
            netns: self.netns()?,
            groups: self.join(id, MiB(0), 1)?,
        })
    }

    /// The network namespace for a QEMU to be started in.
    pub(crate) fn netns(&self) -> Result<Option<OwnedFd>, Step> {
        let netns = self.netns.as_ref().map(OwnedFd::try_clone);
        netns.transpose().at("handing a network namespace over")
    }

    /// Removes the control groups of a QEMU that has ended.
    pub(crate) fn leave(&self, id: &str) -> Result<(), Step> {
        match &self.groups {
            Some(groups) => groups
                .remove(id, LEFT_WITHIN)
                .at(format!("removing the control groups of QEMU {id}")),
            None => Ok(()),
        }
    }

    /// Ends what is in control groups of ours without being one of `running`, and removes these.
    pub(crate) fn clear_groups(&self, running: &BTreeSet<String>) -> Result<(), Step> {
        let Some(groups) = &self.groups else {
            return Ok(());
        };
        for id in groups.ids().into_iter().filter(|id| !running.contains(id)) {
            for pid in groups.processes(&id) {
                kill_if(pid, |pid| groups.processes(&id).contains(&pid));
            }
            groups
                .remove(&id, LEFT_WITHIN)
                .at(format!("removing the control groups of QEMU {id}"))?;
        }
        Ok(())
    }
}

/// Kills every process that was started for a directory of sockets, and waits for it: those whose record was not finished when
/// their daemon died.
pub(crate) fn end_all(dir: &Path) {
    // As on the command line; nobody else's has it so.
    let id = dir.file_name().unwrap_or_default().to_string_lossy();
    let by_name = words("-name", &process_name(&id));
    // The first that there were made their sockets themselves.
    let path = dir.to_string_lossy().replace(',', ",,");
    let parts = [by_name, format!(",path={path}/").into_bytes()];
    for pid in started_with(&parts) {
        kill_if(pid, |pid| started_with(&parts).contains(&pid));
    }
}

fn groups(instance: u32) -> Option<Groups> {
    match Groups::open(&format!("atoll{instance}-qemu")) {
        Ok(groups) => Some(groups),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "there are no control groups for QEMUs: their files and threads are bounded, and what memory and time they use beside \
                 their guests' is not"
            );
            None
        }
    }
}

/// What a QEMU may use of the host's memory beside its guest's, with what its disk leaves in the page cache until that is needed.
fn overhead_bytes(accel: Accel) -> u64 {
    match accel {
        Accel::Kvm => OVERHEAD_BYTES,
        Accel::Tcg => OVERHEAD_BYTES + (u64::from(TRANSLATED_MIB) << 20),
    }
}

fn run_dir(data: &Path) -> PathBuf {
    data.join("run")
}

/// Lets everybody read a file who finds it.
fn open_to_read(path: &Path) -> Result<(), Step> {
    let step = || format!("letting QEMU read {}", path.display());
    let mode = fs::metadata(path).at(step())?.mode();
    if mode & 0o444 == 0o444 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o777 | 0o444)).at(step())
}
