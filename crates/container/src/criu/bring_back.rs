//! Bringing machines back from memory, into slots of their own.
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use model::{Memory, MiB};
use ports::runtime::DiskOrigin;
use ports::{MachineSpec, RuntimeError};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::memory::{self, Manifest};
use super::{Criu, Failed, Restore, Stages};
use crate::house::{Fate, House, Shape};
use crate::launcher::message::Boot;
use crate::record::{Record, identity_of};
use crate::root;
use crate::slot::{Slot, open_root};
use crate::step::{At, Step};
use crate::users::{USERS, first_user};

/// What CRIU itself needs beside the machine while it works within its limits.
const WORK_MEMORY_MIB: u32 = 64;

impl House {
    /// Makes a slot in which the processes of a machine go on, if that is asked for and what it starts from holds them.
    pub(crate) fn restored(&self, spec: &MachineSpec) -> Result<Option<Slot>, RuntimeError> {
        if !spec.restore {
            return Ok(None);
        }
        let images = match spec.disk {
            DiskOrigin::Kept => self.disks.kept_memory(spec.sandbox),
            DiskOrigin::Fresh | DiskOrigin::Single => {
                let build = self
                    .builds
                    .get(spec.build)?
                    .ok_or(RuntimeError::NoBuild(spec.build))?;
                if build.memory != Memory::Durable {
                    return Ok(None);
                }
                self.disks.memory_of_build(spec.build)
            }
        };
        if spec.disk == DiskOrigin::Kept && !images.exists() {
            return Ok(None);
        }
        self.disks.has_room()?;
        let criu = self.recall.program().ok_or_else(|| RuntimeError::CannotRestore {
            what: what(spec),
            why: self.recall.why_not(),
        })?;
        self.bring_back(&criu, spec, &images).map(Some)
    }

    /// Makes a slot in which the processes of a machine go on. On failure nothing is left of it, and what it would have
    /// started from is as it was; so it is on success.
    pub(crate) fn bring_back(
        &self,
        criu: &Criu,
        spec: &MachineSpec,
        images: &Path,
    ) -> Result<Slot, RuntimeError> {
        let cannot = |why: String| RuntimeError::CannotRestore {
            what: what(spec),
            why,
        };
        let manifest = memory::manifest(images).ok_or_else(|| cannot("its images are broken".to_owned()))?;
        manifest.fits(criu.version()).map_err(cannot)?;
        manifest.is_whole(images).map_err(cannot)?;
        if spec.resources.memory < manifest.machine.memory {
            let (had, has) = (manifest.machine.memory, spec.resources.memory);
            return Err(cannot(format!("it had {had} of memory, and would have {has}")));
        }
        if !manifest.machine.agent.is_dir() {
            return Err(cannot("the envd that it runs is not there any more".to_owned()));
        }
        let number = self.take_number()?;
        let made = self.bring_back_as(criu, number, spec, images, &manifest);
        if made.is_err() {
            self.give_back(number, Fate::Discard);
        }
        made.map_err(|failed| match failed {
            Refused::Memory(Failed::Cannot(why)) => cannot(why),
            Refused::Memory(Failed::Step(step)) => step.into(),
            Refused::Runtime(error) => error,
        })
    }

    fn bring_back_as(
        &self,
        criu: &Criu,
        number: u32,
        spec: &MachineSpec,
        images: &Path,
        manifest: &Manifest,
    ) -> Result<Slot, Refused> {
        let mut record = Record {
            restored: true,
            ..Record::staked(number, spec.build)
        };
        let mut limits = spec.resources;
        limits.memory = MiB(limits.memory.0.saturating_add(WORK_MEMORY_MIB));
        let (build, cgroup) = self.stake_out(&record, spec.build, limits)?;
        match (spec.disk, build.disk) {
            (DiskOrigin::Kept, _) => self.disks.copy_kept(spec.sandbox, number)?,
            (_, Some(has)) => self.disks.copy(number, spec.build, has, spec.resources.disk)?,
            (_, None) => return Err(RuntimeError::NoBuild(spec.build).into()),
        }
        failpoint::reach("container/disk-given");
        let owner = first_user(self.instance.number, number);
        let (disk_users, users) = self.launcher.users(owner, USERS)?;
        let disk = self.disks.mount(number)?;
        let root = root::assemble(
            &self.laying,
            &self.lay(&build)?,
            disk.as_fd(),
            disk_users.as_fd(),
            users.as_fd(),
            &manifest.machine.agent,
        )?;
        drop((disk, disk_users));
        let mut mounts: Vec<(String, OwnedFd)> = root.targets.into_iter().zip(root.mounts).collect();
        for volume in &spec.volumes {
            let mount = self.lend(volume.volume, number, users.as_fd())?;
            mounts.push((volume.path.clone(), mount));
        }
        failpoint::reach("container/root-assembled");
        let mut stages = Bringing {
            house: self,
            number,
            spec,
            address: manifest.machine.address,
            record: &mut record,
            boot: self.boot_order(0, Vec::new(), spec.disk != DiskOrigin::Kept)?,
        };
        let restore = Restore {
            images,
            manifest,
            slot: number,
            owner,
            hostname: spec.sandbox.to_string(),
            cgroup: &cgroup,
            users: users.as_fd(),
            mounts,
        };
        let (pid, pidfd) = criu.restore(&self.launcher, restore, &mut stages)?;
        failpoint::reach("container/memory-restored");
        cgroup.limit(spec.resources)?;
        let socket = Slot::open_socket(pid, &pidfd)?;
        Ok(Slot {
            number,
            pid,
            pidfd,
            socket,
            cgroup,
            shape: Shape {
                build: spec.build,
                disk: spec.resources.disk,
            },
            restored: true,
        })
    }
}

/// Of what a machine is restored, in words.
fn what(spec: &MachineSpec) -> String {
    match spec.disk {
        DiskOrigin::Kept => format!("sandbox {}", spec.sandbox),
        DiskOrigin::Fresh | DiskOrigin::Single => format!("build {}", spec.build),
    }
}

/// What goes wrong on the way back.
enum Refused {
    Memory(Failed),
    Runtime(RuntimeError),
}

impl From<Failed> for Refused {
    fn from(failed: Failed) -> Self {
        Refused::Memory(failed)
    }
}
impl From<RuntimeError> for Refused {
    fn from(error: RuntimeError) -> Self {
        Refused::Runtime(error)
    }
}
impl From<Step> for Refused {
    fn from(step: Step) -> Self {
        Refused::Runtime(step.into())
    }
}

/// What is done to a machine while it comes back, before anything of it runs.
struct Bringing<'a> {
    house: &'a House,
    number: u32,
    spec: &'a MachineSpec,
    address: std::net::Ipv4Addr,
    record: &'a mut Record,
    boot: Boot,
}

impl Stages for Bringing<'_> {
    fn namespaces(&mut self, pid: u32, pidfd: BorrowedFd<'_>) -> Result<(), Step> {
        failpoint::reach("container/skeleton-made");
        self.record.process = Some(identity_of(pid)?);
        self.house.records.write(self.record)?;
        failpoint::reach("container/process-recorded");
        let net = self.house.net()?;
        net.attach(self.number, pidfd)?;
        self.house.launcher.let_ping(pidfd)?;
        failpoint::reach("container/link-attached");
        net.claim(self.number, &self.spec.network)?;
        failpoint::reach("container/policy-in-force");
        net.remember(self.number, pidfd, self.address)
    }

    fn restored(&mut self, pid: u32, pidfd: BorrowedFd<'_>) -> Result<(), Step> {
        self.house.net()?.forget(self.number, pidfd, self.address)?;
        identify(pid, pidfd, &self.boot)
    }
}

/// Gives a copy an identity of its own in those places where programs look for one, as far as they are ordinary files.
/// What goes on as what it was keeps its own.
fn identify(pid: u32, pidfd: BorrowedFd<'_>, boot: &Boot) -> Result<(), Step> {
    let root = open_root(pid, pidfd).at(format!("opening the root of process {pid}"))?;
    let servers: String = boot
        .nameservers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let resolvers = format!("{servers}options timeout:2 attempts:3\n");
    put(&root, "etc/resolv.conf", &resolvers);
    if boot.is_new {
        put(&root, "etc/machine-id", &format!("{}\n", boot.machine_id));
        put(&root, "run/atoll/boot_id", &format!("{}\n", boot.boot_id));
    }
    Ok(())
}

/// The files that are written here hold a line or two.
const FILE_BYTES_MAX: u64 = 4096;

/// Writes over a file of a machine, so that it stays whose it is. One that is something else is left alone: it is the
/// machine's own affair.
fn put(root: &OwnedFd, path: &str, text: &str) {
    let write = || -> io::Result<()> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(root, path, flags, Mode::empty(), inside)?;
        let mut file = File::from(file);
        let about = file.metadata()?;
        if !about.is_file() || about.len() > FILE_BYTES_MAX {
            return Ok(());
        }
        let mut old = String::new();
        (&file).take(FILE_BYTES_MAX).read_to_string(&mut old)?;
        if old != text {
            file.rewind()?;
            file.set_len(0)?;
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    };
    if let Err(error) = write() {
        tracing::debug!(
            path,
            error = &error as &dyn std::error::Error,
            "a file of a copy stays as it was"
        );
    }
}
