//! What all machines of a node share.
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use linux::cgroup::{Groups, Limits};
use model::{BuildId, ExecutionId, MiB, SandboxId};
use ports::RuntimeError;
use ports::runtime::DiskOrigin;
use tokio_util::task::TaskTracker;

use crate::agent::Agents;
use crate::command::{Accel, Sockets, TRANSLATED_MIB};
use crate::disk::{DEPTH_MAX, Disk, Disks, Files, Format, flatten};
use crate::memory::{Fits, Measured, Memory};
use crate::network::Network;
use crate::policy::Offered;
use crate::probe::Probed;
use crate::process::{Rights, end, threads_max};
use crate::record::{Book, FORM, Machine};
use crate::runtime::Config;
use crate::users::{self, Users};
use net::Instance;
use ports::step::{At, Step};
use volumes::Volumes;

/// The longest path of a Unix socket, with its end.
const SOCKET_PATH_MAX: usize = 107;
/// Below it nothing is started: guests that find their disks full by surprise lose what they wrote.
const FREE_MIN_BYTES: u64 = 64 << 20;
/// QEMU and its firmware, its devices, and buffers of what is read and written.
const OVERHEAD_BYTES: u64 = 192 << 20;
/// The kernel lets go of a group within milliseconds.
const LEFT_WITHIN: Duration = Duration::from_secs(5);
const UNPOISONED: &str = "nothing panics while it holds the book";

/// A node's QEMUs, disks and records.
pub(crate) struct House {
    pub(crate) config: Config,
    pub(crate) probed: Probed,
    pub(crate) book: Book,
    pub(crate) disks: Disks,
    pub(crate) states: Files,
    pub(crate) agents: Arc<dyn Agents>,
    /// `None` where machines are given none.
    pub(crate) network: Option<Network>,
    /// `None` where the daemon is not root: then all are whoever it is.
    pub(crate) users: Option<Users>,
    /// Where QEMUs are, with nobody to talk to: their networks come as files. `None`: where the daemon is, which is not root.
    netns: Option<OwnedFd>,
    /// `None` where the daemon is not root: then there are none.
    pub(crate) volumes: Option<Arc<Volumes>>,
    /// By which what QEMUs use is bounded; `None` where the daemon is not root, or the machine has none.
    pub(crate) groups: Option<Groups>,
    /// States that need not be measured again.
    pub(crate) measured: Measured,
    /// Held while this daemon lives.
    _instance: Option<Instance>,
    /// What goes on when nobody waits for it any more.
    pub(crate) work: TaskTracker,
    /// Held from looking at what a machine starts from until that is on the machine's record, and while files are swept.
    turn: Mutex<()>,
    /// Disks that are being made flat, each once.
    flattening: Mutex<Vec<String>>,
    /// Held by whoever makes disks flat: one at a time is enough for the host's disk.
    flat_turn: tokio::sync::Mutex<()>,
}

impl House {
    pub(crate) fn open(config: Config, probed: Probed, agents: Arc<dyn Agents>) -> Result<Self, Step> {
        let data = &config.data;
        let step = || format!("opening {}", data.display());
        let longest = run_dir(data).join(ExecutionId::random().to_string());
        let longest = longest.as_os_str().len() + Sockets::NAME_MAX;
        if !data.is_absolute() || data.to_str().is_none() {
            return Err(std::io::Error::other("it is to be an absolute path, in UTF-8")).at(step());
        }
        if longest > SOCKET_PATH_MAX {
            let over = longest - SOCKET_PATH_MAX;
            return Err(std::io::Error::other(format!(
                "sockets below it have paths that are {over} bytes too long; give a shorter directory"
            )))
            .at(step());
        }
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
        Ok(Self {
            book: Book::open(data)?,
            disks: Disks::open(data.join("images"))?,
            states: Files::open(data.join("states"))?,
            network: numbered.filter(|_| config.network).map(Network::of),
            users: numbered
                .filter(|_| is_root)
                .map(|number| Users::of(number, probed.accel)),
            netns: is_root
                .then(linux::netns::fresh)
                .transpose()
                .at("making a network namespace for QEMUs")?,
            volumes: is_root
                .then(|| Volumes::open(data, data.join("volumes/images")))
                .transpose()?
                .map(Arc::new),
            groups: numbered.filter(|_| is_root).and_then(groups),
            measured: Measured::default(),
            _instance: instance,
            probed,
            agents,
            work: TaskTracker::new(),
            turn: Mutex::default(),
            flattening: Mutex::default(),
            flat_turn: tokio::sync::Mutex::default(),
            config,
        })
    }

    /// Where a machine's sockets are.
    pub(crate) fn sockets_dir(&self, execution: ExecutionId) -> PathBuf {
        self.run_dir().join(execution.to_string())
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        run_dir(&self.config.data)
    }

    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect(UNPOISONED)
    }

    /// Which policies a machine is given that has a network, or has none.
    pub(crate) fn offered(&self, has_network: bool) -> Offered {
        if has_network {
            Offered::Network
        } else {
            Offered::Nothing {
                agreed: self.config.offline,
            }
        }
    }

    /// What memory of a machine fits, or has to fit to be brought back as one.
    pub(crate) fn fits(&self, machine: &Machine) -> Fits {
        let accel = self.probed.accel;
        Fits {
            qemu: self.probed.version.clone(),
            accel,
            processor: (accel == crate::command::Accel::Kvm).then(crate::probe::processor),
            memory: machine.spec.resources.memory,
            cpus: machine.spec.resources.cpu,
            bundle: self.config.guest.digest.clone(),
            disk_bytes: machine.disk.size_bytes,
            network: machine.slot.is_some(),
        }
    }

    pub(crate) fn has_room(&self) -> Result<(), RuntimeError> {
        let (_, free) = self.disks.files.space().at("looking for room for disks")?;
        if free < FREE_MIN_BYTES {
            return Err(RuntimeError::Exhausted("disk"));
        }
        Ok(())
    }

    /// What a machine starts from: a disk to lie on, and memory where there is some.
    pub(crate) fn origin(
        &self,
        build: BuildId,
        sandbox: SandboxId,
        disk: DiskOrigin,
    ) -> Result<(Disk, Option<Memory>), RuntimeError> {
        let (disk, memory) = match disk {
            DiskOrigin::Fresh | DiskOrigin::Single => {
                let build = self.build(build)?.ok_or(RuntimeError::NoBuild(build))?;
                (build.disk, build.memory)
            }
            DiskOrigin::Kept => {
                let kept = self
                    .book
                    .kept
                    .read(&sandbox)?
                    .ok_or(RuntimeError::NoDisk(sandbox))?;
                (kept.disk, kept.memory)
            }
        };
        Ok((disk, memory))
    }

    /// The record of a build, if it is one that is understood and all of it is there.
    pub(crate) fn build(&self, build: BuildId) -> Result<Option<crate::record::Build>, Step> {
        let record = self.book.builds.read(&build)?;
        Ok(record.filter(|record| record.form == FORM && self.disks.is_whole(&record.disk)))
    }

    /// Puts a machine on record, with an image of its own on what it starts from.
    pub(crate) fn stake(&self, machine: &Machine) -> Result<(), Step> {
        self.book.machines.write(&machine.spec.execution, machine)
    }

    /// Removes images and states that no record names.
    pub(crate) fn sweep(&self) {
        let _turn = self.turn();
        match self.book.named() {
            Ok((layers, states)) => {
                self.disks.files.sweep(&layers);
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

    /// Takes the network away of a machine whose process has ended and removes its sockets, then its record; its slot and its user
    /// are free from then on.
    pub(crate) fn strike(&self, record: &Machine) -> Result<(), Step> {
        let execution = record.spec.execution;
        let slot = self.network.as_ref().zip(record.slot);
        if let Some((network, slot)) = slot {
            network.unplug(slot)?;
        }
        failpoint::reach("qemu/network-unplugged");
        self.clear_away(execution)?;
        self.give_back(record);
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
    fn rights_without_machine(&self, id: ExecutionId) -> Result<Rights, Step> {
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
    fn leave(&self, id: ExecutionId) -> Result<(), Step> {
        match &self.groups {
            Some(groups) => groups
                .remove(&id.to_string(), LEFT_WITHIN)
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
                end(pid, || groups.processes(&id).contains(&pid));
            }
            groups
                .remove(&id, LEFT_WITHIN)
                .at(format!("removing the control groups of QEMU {id}"))?;
        }
        Ok(())
    }

    /// Removes the sockets and control groups of a machine that is over, then its record.
    pub(crate) fn clear_away(&self, execution: ExecutionId) -> Result<(), Step> {
        self.leave(execution)?;
        failpoint::reach("qemu/groups-removed");
        remove_dir(&self.sockets_dir(execution))?;
        failpoint::reach("qemu/sockets-removed");
        self.book.machines.remove(&execution)
    }

    /// The slot and the user of a machine that is on no record any more are free.
    pub(crate) fn give_back(&self, record: &Machine) {
        if let Some((network, slot)) = self.network.as_ref().zip(record.slot) {
            network.give_back(slot);
        }
        if let Some((users, user)) = self.users.as_ref().zip(record.user) {
            users.give_back(user);
        }
        if let Some(volumes) = &self.volumes {
            volumes.take_back(&record.spec.execution.to_string());
        }
    }

    /// Makes the disk of a kept sandbox flat, if it is too deep.
    pub(crate) async fn flatten_kept(&self, sandbox: SandboxId) -> Result<(), Step> {
        let read = move |house: &House| Ok(house.book.kept.read(&sandbox)?.map(|kept| kept.disk));
        let write = move |house: &House, was: &Disk, is: Disk| match house.book.kept.read(&sandbox)? {
            Some(kept) if kept.disk == *was => house
                .book
                .kept
                .write(&sandbox, &crate::record::Kept { disk: is, ..kept }),
            _ => Ok(()),
        };
        self.flatten(read, write).await
    }

    /// The same for a build.
    pub(crate) async fn flatten_build(&self, build: BuildId) -> Result<(), Step> {
        let read = move |house: &House| Ok(house.book.builds.read(&build)?.map(|record| record.disk));
        let write = move |house: &House, was: &Disk, is: Disk| match house.book.builds.read(&build)? {
            Some(record) if record.disk == *was => house
                .book
                .builds
                .write(&build, &crate::record::Build { disk: is, ..record }),
            _ => Ok(()),
        };
        self.flatten(read, write).await
    }

    /// The same, when there is time.
    pub(crate) fn flatten_kept_soon(self: &Arc<Self>, sandbox: SandboxId) {
        let house = Arc::clone(self);
        self.flatten_soon(
            sandbox.to_string(),
            async move { house.flatten_kept(sandbox).await },
        );
    }

    /// The same, when there is time.
    pub(crate) fn flatten_build_soon(self: &Arc<Self>, build: BuildId) {
        let house = Arc::clone(self);
        self.flatten_soon(build.to_string(), async move { house.flatten_build(build).await });
    }

    fn flatten_soon(
        self: &Arc<Self>,
        name: String,
        flatten: impl Future<Output = Result<(), Step>> + Send + 'static,
    ) {
        let mut under_way = self.flattening.lock().expect(UNPOISONED);
        if under_way.contains(&name) {
            return;
        }
        under_way.push(name.clone());
        drop(under_way);
        let house = Arc::clone(self);
        self.work.spawn(async move {
            let flat = flatten.await;
            house.flattening.lock().expect(UNPOISONED).retain(|other| *other != name);
            if let Err(error) = flat {
                tracing::warn!(of = name, error = &error as &dyn std::error::Error, cause = %error.source, "a deep disk could not be made flat");
            }
            house.sweep_soon();
        });
    }

    async fn flatten(
        &self,
        read: impl Fn(&House) -> Result<Option<Disk>, Step>,
        write: impl FnOnce(&House, &Disk, Disk) -> Result<(), Step>,
    ) -> Result<(), Step> {
        let _flat = self.flat_turn.lock().await;
        let (disk, _pins) = {
            let _turn = self.turn();
            let Some(disk) = read(self)?.filter(|disk| disk.layers.len() > DEPTH_MAX) else {
                return Ok(());
            };
            let pins: Vec<_> = disk
                .layers
                .iter()
                .map(|layer| self.disks.files.pin(layer.id))
                .collect();
            (disk, pins)
        };
        let into = Disks::draw(Format::Qcow2);
        let _pin = self.disks.files.pin(into.id);
        let id = ExecutionId::random();
        let dir = self.sockets_dir(id);
        fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        let rights = self.rights_without_machine(id);
        let flat = match rights {
            Ok(rights) => flatten::flatten(&self.config.qemu, &self.disks, &disk, into, &dir, rights).await,
            Err(error) => Err(error),
        };
        let _ = remove_dir(&dir);
        let _ = self.leave(id);
        let flat = flat?;
        self.disks.files.sync_names()?;
        let _turn = self.turn();
        write(self, &disk, flat)
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

/// One that is not there is no error.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), Step> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(format!("deleting {}", dir.display())),
    }
}
