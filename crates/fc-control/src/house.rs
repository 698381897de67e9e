//! What Firecrackers of a node share.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use microvm::files::{Files, is_fit, remove_dir, sync_dir};
use microvm::stray::{kill_if, started_with, words};
use net::Instance;
use ports::step::{At, Step};

use crate::disk::through;
use crate::jail::{Jail, Jails, PROGRAM, take_back};
use crate::memory::{Fits, Known};
use crate::network::Numbers;
use crate::probe::Probed;
use crate::process::Launch;
use crate::record::Machine;
use crate::runtime::Config;

/// The kernel lets go of a cgroup a moment after its last process.
const GROUP_GONE_WITHIN: Duration = Duration::from_secs(5);
/// A jailer that was killed between two steps may have left another process: it is looked so many times.
const LOOKS_MAX: usize = 100;
/// The bundle whose files are in place, by the name of both.
const GUEST: &str = "guest";

/// Firecracker on this host, and what its machines share.
pub struct Firecracker {
    pub(crate) config: Config,
    pub(crate) probed: Probed,
    /// The host's, as memory remembers it.
    processor: String,
    pub(crate) known: Known,
    pub(crate) jails: Jails,
    pub(crate) launcher: Box<dyn Launch>,
    pub(crate) numbers: Numbers,
    /// The kernel and the initramfs, where they can be linked to.
    pub(crate) guest: (PathBuf, PathBuf),
    /// Held by whoever makes memory whole: one at a time is enough for the host's disk.
    pub(crate) whole_turn: tokio::sync::Mutex<()>,
    /// The number is this runtime's for as long as it is there.
    _instance: Option<Instance>,
}

/// A node's Firecrackers, disks and records.
pub(crate) type House = microvm::House<Firecracker>;
/// A machine that runs, or stands.
pub(crate) type Vm = microvm::Vm<Firecracker>;

/// Opens the runtime's directory, which is prepared.
pub(crate) fn open(
    config: Config,
    probed: Probed,
    jails: Jails,
    launcher: Box<dyn Launch>,
    numbers: Numbers,
    instance: Option<Instance>,
) -> Result<House, Step> {
    let data = config.data.clone();
    let firecracker = Firecracker {
        known: Known::default(),
        guest: guest_in_place(&config, &probed)?,
        processor: microvm::processor::processor(),
        probed,
        jails,
        launcher,
        numbers,
        whole_turn: tokio::sync::Mutex::default(),
        config,
        _instance: instance,
    };
    House::open(&data, Files::open(data.join("images"))?, firecracker)
}

/// Directories of a runtime, made and guarded.
pub(crate) fn prepare(data: &Path) -> Result<(), Step> {
    let step = || format!("opening {}", data.display());
    is_fit(data, Jails::longest_socket(data)).at(step())?;
    fs::create_dir_all(data).at(step())?;
    // Whoever could write below it could have the jailer, which is root, write elsewhere (CVE-2026-1386).
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).at(step())
}

/// A copy of a program that nobody replaces while it is used, under the name that it has in its jail.
pub(crate) fn own_program(data: &Path, program: &Path) -> Result<PathBuf, Step> {
    let dir = data.join("program");
    let step = || format!("copying {} to {}", program.display(), dir.display());
    fs::create_dir_all(&dir).at(step())?;
    let (own, partial) = (dir.join(PROGRAM), dir.join("partial"));
    crate::jail::remove_file(&partial)?;
    fs::copy(program, &partial).at(step())?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).at(step())?;
    fs::rename(&partial, &own).at(step())?;
    Ok(own)
}

impl Firecracker {
    pub(crate) fn jail(&self, machine: &Machine) -> Jail {
        self.jails
            .of(machine.spec.execution, self.numbers.uid(machine.own.slot))
    }

    /// What memory of a machine fits, or has to fit to be brought back as one.
    pub(crate) fn fits(&self, machine: &Machine) -> Fits {
        Fits {
            firecracker: self.probed.version.clone(),
            format: self.probed.snapshot_format.clone(),
            processor: self.processor.clone(),
            memory: machine.spec.resources.memory,
            cpus: machine.spec.resources.cpu,
            bundle: self.config.guest.digest.clone(),
            disk_bytes: machine.disk.size_bytes,
            network: machine.own.wired,
            metadata: machine.own.wired && self.config.metadata,
        }
    }

    /// What memory that fits `of` has to fit to be a machine's on this host.
    pub(crate) fn here(&self, of: &Fits) -> Fits {
        Fits {
            firecracker: self.probed.version.clone(),
            format: self.probed.snapshot_format.clone(),
            processor: self.processor.clone(),
            bundle: self.config.guest.digest.clone(),
            ..of.clone()
        }
    }

    /// Ends every process of a machine, whether or not it is on record which they are. Blocks.
    pub(crate) fn end_all(&self, id: &str) {
        let named = [words("--id", id)];
        for _ in 0..LOOKS_MAX {
            let in_group = self.jails.cgroups.processes(id);
            let strays = started_with(&named);
            if in_group.is_empty() && strays.is_empty() {
                return;
            }
            for pid in in_group {
                kill_if(pid, |pid| self.jails.cgroups.processes(id).contains(&pid));
            }
            for pid in strays {
                kill_if(pid, |pid| started_with(&named).contains(&pid));
            }
        }
        tracing::error!(execution = id, "processes of a machine do not end");
    }

    /// Removes all of a machine that is not its record: processes, cgroup, jail. Blocks.
    pub(crate) fn clear(&self, id: &str) -> Result<(), Step> {
        self.end_all(id);
        failpoint::reach("fc-control/processes-ended");
        self.jails.cgroups.remove(id, GROUP_GONE_WITHIN)?;
        failpoint::reach("fc-control/cgroup-removed");
        self.jails.remove(id)?;
        failpoint::reach("fc-control/jail-removed");
        Ok(())
    }
}

/// Puts the guest's kernel and initramfs on the file system on which jails are, read-only, and removes those of other bundles, which
/// machines that run have links to.
fn guest_in_place(config: &Config, probed: &Probed) -> Result<(PathBuf, PathBuf), Step> {
    let dir = config.data.join(GUEST);
    let as_it_is = probed.version.boots_bzimage();
    // Names of both, and of how it is booted.
    let form = if as_it_is { "packed" } else { "unpacked" };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let digest: String = config.guest.digest.chars().filter(|c| is_name(*c)).collect();
    let name = format!("{digest}-{form}");
    let own = dir.join(&name);
    let both = (own.join("kernel"), own.join("initrd"));
    fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
    if !own.exists() {
        let partial = dir.join("partial");
        remove_dir(&partial)?;
        fs::create_dir(&partial).at(format!("making {}", partial.display()))?;
        let (kernel, initrd) = (partial.join("kernel"), partial.join("initrd"));
        crate::kernel::place(&config.guest.kernel, &kernel, as_it_is)?;
        let from = &config.guest.initrd;
        fs::copy(from, &initrd).at(format!("copying {} to {}", from.display(), initrd.display()))?;
        for file in [&kernel, &initrd] {
            through(file)?;
            take_back(file)?;
        }
        fs::rename(&partial, &own).at(format!("making {}", own.display()))?;
        sync_dir(&dir)?;
    }
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        if entry.file_name() != *name {
            remove_dir(&entry.path())?;
        }
    }
    Ok(both)
}
