//! What all machines of a node share.
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use model::{BuildId, ExecutionId, SandboxId};
use ports::RuntimeError;
use ports::runtime::DiskOrigin;
use ports::step::{At, Step};
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use volumes::Volumes;

use crate::disk::Files;
use crate::jail::{Jail, Jails, PROGRAM, remove_dir, take_back};
use crate::memory::{self, Fits, Known, Memory, Pages};
use crate::network::Slots;
use crate::probe::Probed;
use crate::process::{Launch, kill_if};
use crate::record::{Book, Disk, FORM, Kept, Machine};
use crate::runtime::Config;
use crate::stray::started_with;

/// The longest path of a Unix socket, with its end.
const SOCKET_PATH_MAX: usize = 107;
/// Below it nothing is started: guests that find their disks full by surprise lose what they wrote.
const FREE_MIN_BYTES: u64 = 64 << 20;
/// The kernel lets go of a cgroup a moment after its last process.
const GROUP_GONE_WITHIN: Duration = Duration::from_secs(5);
/// A jailer that was killed between two steps may have left another process: it is looked so many times.
const LOOKS_MAX: usize = 100;
/// The bundle whose files are in place, by the name of both.
const GUEST: &str = "guest";
const UNPOISONED: &str = "nothing panics while it holds the book";

/// A node's Firecrackers, disks and records.
pub(crate) struct House {
    pub(crate) config: Config,
    pub(crate) probed: Probed,
    /// The host's, as memory remembers it.
    processor: String,
    pub(crate) book: Book,
    pub(crate) images: Files,
    pub(crate) states: Files,
    pub(crate) known: Known,
    pub(crate) jails: Jails,
    pub(crate) launcher: Box<dyn Launch>,
    pub(crate) slots: Slots,
    pub(crate) volumes: Arc<Volumes>,
    /// The kernel and the initramfs, where they can be linked to.
    pub(crate) guest: (PathBuf, PathBuf),
    /// What goes on when nobody waits for it any more.
    pub(crate) work: TaskTracker,
    /// Held from looking at what a machine starts from until that is on the machine's record, and while files are swept.
    turn: Mutex<()>,
    /// Held by whoever makes memory whole: one at a time is enough for the host's disk.
    whole_turn: tokio::sync::Mutex<()>,
}

/// Directories of a runtime, made and guarded.
pub(crate) fn prepare(data: &Path) -> Result<(), Step> {
    let step = || format!("opening {}", data.display());
    if !data.is_absolute() || data.to_str().is_none() {
        return Err(io::Error::other("it is to be an absolute path, in UTF-8")).at(step());
    }
    let longest = Jails::longest_socket(data);
    if longest > SOCKET_PATH_MAX {
        let over = longest - SOCKET_PATH_MAX;
        return Err(io::Error::other(format!(
            "sockets below it have paths that are {over} bytes too long; give a shorter directory"
        )))
        .at(step());
    }
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

impl House {
    pub(crate) fn open(
        config: Config,
        probed: Probed,
        jails: Jails,
        launcher: Box<dyn Launch>,
        slots: Slots,
    ) -> Result<Self, Step> {
        let data = &config.data;
        Ok(Self {
            book: Book::open(data)?,
            images: Files::open(data.join("images"))?,
            states: Files::open(data.join("states"))?,
            known: Known::default(),
            guest: guest_in_place(&config, &probed)?,
            processor: crate::probe::processor(),
            probed,
            jails,
            launcher,
            slots,
            volumes: Arc::new(Volumes::open(data, data.join("volumes/images"))?),
            work: TaskTracker::new(),
            turn: Mutex::default(),
            whole_turn: tokio::sync::Mutex::default(),
            config,
        })
    }

    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect(UNPOISONED)
    }

    /// While it is held, no memory is made whole.
    #[cfg(test)]
    pub(crate) async fn whole_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.whole_turn.lock().await
    }

    pub(crate) fn jail(&self, machine: &Machine) -> Jail {
        self.jails
            .of(machine.spec.execution, self.slots.uid(machine.slot))
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
            network: machine.wired,
            metadata: machine.wired && self.config.metadata,
        }
    }

    pub(crate) fn has_room(&self) -> Result<(), RuntimeError> {
        let (_, free) = self.images.space().at("looking for room for disks")?;
        if free < FREE_MIN_BYTES {
            return Err(RuntimeError::Exhausted("disk"));
        }
        Ok(())
    }

    /// What a machine starts from: a disk to be copied, and memory where there is some.
    pub(crate) fn origin(
        &self,
        build: BuildId,
        sandbox: SandboxId,
        disk: DiskOrigin,
    ) -> Result<(Disk, Option<Memory>), RuntimeError> {
        Ok(match disk {
            DiskOrigin::Fresh | DiskOrigin::Single => {
                let build = self.build(build)?.ok_or(RuntimeError::NoBuild(build))?;
                (build.disk, build.memory)
            }
            DiskOrigin::Kept => {
                let kept = self.book.kept.read(&sandbox)?;
                let kept = kept.ok_or(RuntimeError::NoDisk(sandbox))?;
                (kept.disk, kept.memory)
            }
        })
    }

    /// The record of a build, if it is one that is understood and its disk is there.
    pub(crate) fn build(&self, build: BuildId) -> Result<Option<crate::record::Build>, Step> {
        let record = self.book.builds.read(&build)?;
        Ok(record.filter(|record| record.form == FORM && self.images.path(record.disk.image).exists()))
    }

    /// Puts a machine on record, with what it is started from and with.
    pub(crate) fn stake(&self, machine: &Machine) -> Result<(), Step> {
        self.book.machines.write(&machine.spec.execution, machine)
    }

    /// Removes images and states that no record names.
    pub(crate) fn sweep(&self) {
        let _turn = self.turn();
        match self.book.named() {
            Ok((images, states)) => {
                self.images.sweep(&images);
                self.states.sweep(&states);
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                cause = %error.source,
                "disks that nothing needs stay, because a record cannot be read"
            ),
        }
    }

    /// The same, when there is time.
    pub(crate) fn sweep_soon(self: &Arc<Self>) {
        let house = Arc::clone(self);
        self.work.spawn_blocking(move || house.sweep());
    }

    /// Ends every process of a machine, whether or not it is on record which they are. Blocks.
    pub(crate) fn end_all(&self, id: &str) {
        for _ in 0..LOOKS_MAX {
            let in_group = self.jails.cgroups.processes(id);
            let named = started_with("--id", id);
            if in_group.is_empty() && named.is_empty() {
                return;
            }
            for pid in in_group {
                kill_if(pid, |pid| self.jails.cgroups.processes(id).contains(&pid));
            }
            for pid in named {
                kill_if(pid, |pid| started_with("--id", id).contains(&pid));
            }
        }
        tracing::error!(execution = id, "processes of a machine do not end");
    }

    /// Removes all of a machine that is not its record: processes, cgroup, jail. Blocks.
    pub(crate) fn clear(&self, id: &str) -> Result<(), Step> {
        self.end_all(id);
        self.jails.cgroups.remove(id, GROUP_GONE_WITHIN)?;
        self.jails.remove(id)
    }

    /// Takes a machine's network away, clears it away, and then removes its record; its number is free from then on. Blocks.
    pub(crate) fn strike(&self, execution: ExecutionId, slot: Option<u32>) -> Result<(), Step> {
        if let Some(slot) = slot {
            self.slots.unplug(slot)?;
        }
        self.clear(&execution.to_string())?;
        self.book.machines.remove(&execution)?;
        self.volumes.take_back(&execution.to_string());
        if let Some(slot) = slot {
            self.slots.give_back(slot);
        }
        Ok(())
    }

    /// Makes the memory of a kept sandbox whole, if it is a difference.
    pub(crate) async fn whole_kept(self: &Arc<Self>, sandbox: SandboxId) -> Result<(), RuntimeError> {
        let _one = self.whole_turn.lock().await;
        let house = Arc::clone(self);
        crate::machine::blocking(move || {
            let (memory, _pins) = {
                let _turn = house.turn();
                let kept = house.book.kept.read(&sandbox)?;
                let memory = kept.and_then(|kept| kept.memory);
                let Some(memory) = memory.filter(|memory| matches!(memory.pages, Pages::Diff { .. })) else {
                    return Ok(());
                };
                let Pages::Diff { base, .. } = memory.pages else {
                    return Ok(());
                };
                let pins = [memory.id, base].map(|id| house.states.pin(id));
                (memory, pins)
            };
            if let Some(why) = memory::is_damaged(&house.known, &house.states, &memory)? {
                // Whoever wants it back is told so.
                return Err(io::Error::other(why)).at(format!("looking at the memory of sandbox {sandbox}"));
            }
            let into = Uuid::new_v4();
            let _pin = house.states.pin(into);
            let Some(whole) = memory::rebase(&house.known, &house.states, &memory, into)? else {
                return Ok(());
            };
            let _turn = house.turn();
            match house.book.kept.read(&sandbox)? {
                Some(kept) if kept.memory.as_ref() == Some(&memory) => {
                    let memory = Some(whole);
                    house.book.kept.write(&sandbox, &Kept { memory, ..kept })
                }
                // It was started, discarded or written down again meanwhile.
                _ => Ok(()),
            }
        })
        .await
    }

    /// The same, when there is time.
    pub(crate) fn whole_kept_soon(self: &Arc<Self>, sandbox: SandboxId) {
        let house = Arc::clone(self);
        self.work.spawn(async move {
            if let Err(error) = house.whole_kept(sandbox).await {
                tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "memory that is a difference could not be made whole");
            }
            house.sweep_soon();
        });
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
            fs::File::open(file)
                .and_then(|file| file.sync_all())
                .at(format!("writing {} through", file.display()))?;
            take_back(file)?;
        }
        fs::rename(&partial, &own).at(format!("making {}", own.display()))?;
        crate::disk::sync_dir(&dir)?;
    }
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        if entry.file_name() != *name {
            remove_dir(&entry.path())?;
        }
    }
    Ok(both)
}
