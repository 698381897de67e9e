//! What all slots of this node share, and the one place where slots are made and given back.
use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use model::{BuildId, MiB, NetworkPolicy, Resources, SandboxId};
use ports::RuntimeError;
use rand::Rng as _;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{PidfdFlags, Signal};
use tokio_util::task::TaskTracker;

use crate::Config;
use crate::build::{Build, Builds, Layer, Overlay};
use crate::cgroup::{Cgroup, Cgroups};
use crate::criu::recall::Recall;
use crate::disk::{DISK_MIN, Disks};
use crate::launcher::message::Boot;
use crate::launcher::{Launcher, Ordered};
use crate::record::{Record, Records, identity_of};
use crate::root::{Laid, Laying};
use crate::sealed::Sealed;
use crate::slot::Slot;
use crate::step::{At, Step};
use crate::users::{SLOTS_MAX, USERS, first_user};
use crate::{agent, root};
use net::{Instance, Net};
use volumes::Volumes;

/// envd listens a millisecond after its exec; a machine that swaps needs longer.
const UP_WITHIN: Duration = Duration::from_secs(15);
/// The kernel lets go of a group a moment after its last task.
const GROUP_GONE_WITHIN: Duration = Duration::from_secs(5);
/// All tasks of a killed machine end in milliseconds, unless one waits for a disk.
const DEAD_WITHIN: Duration = Duration::from_secs(20);

/// What a slot may use until it is claimed: envd takes a hundredth of it.
pub(crate) const PARKED_CPU: u32 = 1;
/// Likewise.
pub(crate) const PARKED_MEMORY_MIB: u32 = 128;

/// What a slot is prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) build: BuildId,
    pub(crate) disk: MiB,
}

/// Which disk a slot gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Give {
    Fresh,
    Kept(SandboxId),
}

/// What becomes of a slot's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep(SandboxId),
    Discard,
}

/// Everything that slots share.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) instance: Instance,
    pub(crate) records: Records,
    pub(crate) builds: Builds,
    pub(crate) disks: Disks,
    pub(crate) sealed: Sealed,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) cgroups: Cgroups,
    pub(crate) launcher: Launcher,
    pub(crate) laying: Laying,
    /// What becomes of memory.
    pub(crate) recall: Recall,
    /// All that makes slots and gives them back: whoever closes waits for it.
    pub(crate) work: TaskTracker,
    /// There from recovery to the end.
    net: RwLock<Option<Arc<Net>>>,
    numbers: Mutex<Numbers>,
    pub(crate) agent: PathBuf,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Never used by this daemon.
    fresh: u32,
    free: VecDeque<u32>,
    /// In use since before this daemon.
    taken: Vec<u32>,
}

impl Numbers {
    /// One of which nothing is left: a network goes a moment after its last process, so a freed number waits behind the others,
    /// and one that is still in use is not fresh any more.
    fn take<E>(&mut self, is_free: impl Fn(u32) -> Result<bool, E>) -> Result<Option<u32>, E> {
        if let Some(number) = self.free.front().copied()
            && is_free(number)?
        {
            self.free.pop_front();
            return Ok(Some(number));
        }
        while self.fresh < SLOTS_MAX {
            let number = self.fresh;
            self.fresh += 1;
            if self.taken.contains(&number) {
                continue;
            }
            if is_free(number)? {
                return Ok(Some(number));
            }
            self.free.push_back(number);
        }
        for i in 0..self.free.len() {
            if is_free(self.free[i])? {
                return Ok(self.free.remove(i));
            }
        }
        Ok(None)
    }

    /// Frees a number. One that this daemon never gave out, of what an earlier one left, is found among the fresh ones: in
    /// both places it would be given out twice.
    fn give_back(&mut self, number: u32) {
        let was_out = number < self.fresh || self.taken.contains(&number);
        if was_out && !self.free.contains(&number) {
            self.free.push_back(number);
        }
    }
}

impl House {
    pub(crate) fn open(config: &Config) -> Result<Self, Step> {
        let data = config.data.as_path();
        fs::create_dir_all(data).at(format!("making {}", data.display()))?;
        let instance = Instance::take(data)?;
        let disks = Disks::open(data)?;
        Ok(Self {
            records: Records::open(data)?,
            builds: Builds::open(data)?,
            sealed: Sealed::open(data)?,
            volumes: Arc::new(Volumes::open(data, disks.volume().root().join("volumes"))?),
            disks,
            cgroups: Cgroups::open(instance.number)?,
            launcher: Launcher::start(&config.launcher)?,
            laying: Laying::default(),
            recall: Recall::open(config.criu.as_deref(), data),
            work: TaskTracker::new(),
            net: RwLock::default(),
            numbers: Mutex::default(),
            agent: agent::stage(&config.envd, data)?,
            instance,
        })
    }

    /// The network, which recovery opens before anything else is done.
    pub(crate) fn net(&self) -> Result<Arc<Net>, Step> {
        let net = self.net.read().expect(UNPOISONED).clone();
        net.ok_or_else(|| std::io::Error::other("the runtime has not recovered, or is closed"))
            .at("using the network")
    }

    /// Opens the network, in which these slots go on with these policies.
    pub(crate) fn open_net(&self, adopted: &[(u32, NetworkPolicy)]) -> Result<(), Step> {
        let net = Net::open(self.instance.number, adopted)?;
        *self.net.write().expect(UNPOISONED) = Some(Arc::new(net));
        Ok(())
    }

    /// Takes the network back, when no sandbox is left.
    pub(crate) fn close_net(&self) {
        let net = self
            .net
            .write()
            .expect(UNPOISONED)
            .take()
            .and_then(Arc::into_inner);
        if let Some(Err(error)) = net.map(Net::close) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the network could not be taken back"
            );
        }
    }

    /// A number that names nothing on this host.
    pub(crate) fn take_number(&self) -> Result<u32, RuntimeError> {
        let net = self.net()?;
        let mut numbers = self.numbers.lock().expect(UNPOISONED);
        numbers
            .take(|number| net.is_free(number))?
            .ok_or(RuntimeError::Exhausted("slots"))
    }

    /// Notes that an adopted machine has this number.
    pub(crate) fn is_taken(&self, number: u32) {
        self.numbers.lock().expect(UNPOISONED).taken.push(number);
    }

    /// Makes a slot for nobody yet.
    pub(crate) fn park(&self, shape: Shape) -> Result<Slot, RuntimeError> {
        self.disks.has_room()?;
        let limits = Resources {
            cpu: PARKED_CPU,
            memory: MiB(PARKED_MEMORY_MIB),
            disk: shape.disk,
        };
        self.prepare(shape, Give::Fresh, limits)
    }

    /// Makes a slot, up to an envd that listens, within these limits. On failure nothing is left of it, and a kept disk is
    /// where it was.
    pub(crate) fn prepare(&self, shape: Shape, give: Give, limits: Resources) -> Result<Slot, RuntimeError> {
        if shape.disk < DISK_MIN {
            return Err(RuntimeError::Unsupported {
                runtime: "container",
                what: format!("a disk of less than {DISK_MIN}"),
            });
        }
        let number = self.take_number()?;
        let made = self.bring_up(number, shape, give, limits);
        if made.is_err() {
            let fate = match give {
                Give::Kept(sandbox) if !self.disks.is_kept(sandbox) => Fate::Keep(sandbox),
                Give::Kept(_) | Give::Fresh => Fate::Discard,
            };
            self.give_back(number, fate);
        }
        made
    }

    /// Puts a slot on record and limits what will run in it, before anything of it is there. Returns the build that it stands on.
    pub(crate) fn stake_out(
        &self,
        record: &Record,
        id: BuildId,
        limits: Resources,
    ) -> Result<(Build, Cgroup), RuntimeError> {
        let build = {
            // Once it is on record whose layers it stands on, they stay.
            let _stay = self.builds.stay();
            self.records.write(record)?;
            self.builds.get(id)?.ok_or(RuntimeError::NoBuild(id))?
        };
        failpoint::reach("container/slot-recorded");
        let cgroup = self.cgroups.of(record.slot);
        cgroup.create()?;
        // Before anything runs in it: a disk that is given again has been the machine's to write to.
        cgroup.limit(limits)?;
        failpoint::reach("container/cgroup-made");
        Ok((build, cgroup))
    }

    fn bring_up(
        &self,
        number: u32,
        shape: Shape,
        give: Give,
        limits: Resources,
    ) -> Result<Slot, RuntimeError> {
        let mut record = Record {
            disk_of: match give {
                Give::Fresh => None,
                Give::Kept(sandbox) => Some(sandbox),
            },
            ..Record::staked(number, shape.build)
        };
        let (build, cgroup) = self.stake_out(&record, shape.build, limits)?;
        match give {
            Give::Fresh => match build.disk {
                Some(has) => self.disks.copy(number, shape.build, has, shape.disk)?,
                None => self.disks.fresh(number, shape.disk)?,
            },
            Give::Kept(sandbox) if self.disks.is_kept(sandbox) => self.disks.take(sandbox, number)?,
            Give::Kept(sandbox) => return Err(RuntimeError::NoDisk(sandbox)),
        }
        failpoint::reach("container/disk-given");
        let unified = cgroup.unified()?;
        let first_user = first_user(self.instance.number, number);
        let skeleton = self
            .launcher
            .skeleton(first_user, USERS, unified.as_ref().map(AsFd::as_fd))?;
        failpoint::reach("container/skeleton-made");
        let (pid, pidfd) = (
            skeleton.pid,
            rustix::io::fcntl_dupfd_cloexec(&skeleton.pidfd, 0).at("duplicating a pidfd")?,
        );
        record.process = Some(identity_of(pid)?);
        self.records.write(&record)?;
        failpoint::reach("container/process-recorded");
        self.net()?.attach(number, pidfd.as_fd())?;
        failpoint::reach("container/link-attached");

        let users = open(&format!("/proc/{pid}/ns/user"))?;
        let disk = self.disks.mount(number)?;
        let laid = self.lay(&build)?;
        let root = root::assemble(
            &self.laying,
            &laid,
            disk.as_fd(),
            skeleton.disk_users.as_fd(),
            users.as_fd(),
            &self.agent,
        )?;
        failpoint::reach("container/root-assembled");
        let (ready, told) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).at("making a ready pipe")?;
        let tasks = cgroup.tasks()?;
        let boot = self.boot_order(tasks.len(), root.targets, give == Give::Fresh)?;
        let fds: Vec<_> = tasks
            .iter()
            .chain(&root.mounts)
            .map(AsFd::as_fd)
            .chain([told.as_fd()])
            .collect();
        let ordered = skeleton.order(&boot, &fds)?;
        drop((tasks, root.mounts, disk, told));
        failpoint::reach("container/boot-ordered");
        wait_until_up(&ready, &ordered)?;
        failpoint::reach("container/slot-up");
        let socket = Slot::open_socket(pid, &pidfd)?;
        Ok(Slot {
            number,
            pid,
            pidfd,
            socket,
            cgroup,
            shape,
            restored: false,
        })
    }

    /// Where the layers of a build lie. Sealed disks are mounted for that.
    pub(crate) fn lay(&self, build: &Build) -> Result<Vec<Laid>, Step> {
        let place = |layer: &Layer| match layer {
            Layer::Dir(dir) => Ok(dir.clone()),
            Layer::Sealed { sealed, upper } => self.sealed.upper(&self.disks, *sealed, upper),
        };
        let lay = |overlay: &Overlay| {
            Ok(Laid {
                target: overlay.target.clone(),
                layers: overlay.layers.iter().map(place).collect::<Result<_, Step>>()?,
                upper: Some(overlay.upper.clone()),
            })
        };
        build.overlays.iter().map(lay).collect()
    }

    pub(crate) fn boot_order(&self, cgroups: usize, mounts: Vec<String>, is_new: bool) -> Result<Boot, Step> {
        let random: [u8; 32] = rand::rng().random();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let b = hex(&random[16..]);
        Ok(Boot {
            cgroups,
            mounts,
            hostname: "sandbox".to_owned(),
            nameservers: self.nameservers()?,
            machine_id: hex(&random[..16]),
            is_new,
            // A random UUID, version 4.
            boot_id: format!(
                "{}-{}-4{}-a{}-{}",
                &b[..8],
                &b[8..12],
                &b[13..16],
                &b[17..20],
                &b[20..]
            ),
            envd: [
                &format!("{}/envd", agent::INSIDE),
                "--pid1",
                "--socket",
                &format!("/{}", agent::SOCKET),
                "--port",
                "49983",
            ]
            .map(str::to_owned)
            .to_vec(),
        })
    }

    /// Where there is no server, whoever asks is told so by the gateway at once.
    fn nameservers(&self) -> Result<Vec<String>, Step> {
        let net = self.net()?;
        let mut servers = net.nameservers();
        if servers.is_empty() {
            servers.push(net.nameserver());
        }
        Ok(servers.iter().map(ToString::to_string).collect())
    }

    /// Frees a slot while others go on. What that came to is logged.
    pub(crate) fn give_back_soon(self: &Arc<Self>, number: u32, fate: Fate) {
        let house = Arc::clone(self);
        // Without a runtime the daemon is ending: the slot is on record, and found by the next recovery.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.work
                .spawn_blocking_on(move || house.give_back(number, fate), &runtime);
        }
    }

    /// Frees a slot, where nobody is told what became of it. Says whether all of it is gone.
    pub(crate) fn give_back(&self, number: u32, fate: Fate) -> bool {
        let freed = self.free(number, fate);
        if let Err(error) = &freed {
            tracing::error!(
                slot = number,
                error = error as &dyn std::error::Error,
                cause = %error.source,
                "a slot could not be freed; it stays on record for the next start"
            );
        }
        freed.is_ok()
    }

    /// Ends whatever lives in a slot and frees all of it. On failure it stays on record, its number is not given out, and
    /// it is found by the next recovery, or freed by being asked again.
    pub(crate) fn free(&self, number: u32, fate: Fate) -> Result<(), Step> {
        let cgroup = self.cgroups.of(number);
        end_everything(&cgroup)?;
        failpoint::reach("container/all-ended");
        let released = self.net().and_then(|net| net.release(number));
        if let Err(error) = released {
            tracing::warn!(
                slot = number,
                error = &error as &dyn std::error::Error,
                "a slot's network could not be released"
            );
        }
        failpoint::reach("container/network-released");
        self.volumes.take_back(&number.to_string());
        match fate {
            Fate::Keep(sandbox) if self.disks.of_slot(number).exists() => {
                let over = self.records.read(number).and_then(|record| record.starts_from());
                self.disks.keep(number, sandbox, over)?;
            }
            Fate::Keep(_) => {}
            Fate::Discard => {
                self.disks.remove(number)?;
                if let Some(sandbox) = self.records.read(number).and_then(|record| record.owner()) {
                    self.disks.forget_copies(sandbox);
                }
            }
        }
        failpoint::reach("container/disk-put-away");
        let deadline = Instant::now() + GROUP_GONE_WITHIN;
        while !cgroup.remove() {
            if Instant::now() > deadline {
                return Err(rustix::io::Errno::BUSY).at(format!("removing the cgroup of slot {number}"));
            }
            #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
            std::thread::sleep(Duration::from_millis(1));
        }
        failpoint::reach("container/cgroup-removed");
        self.records.remove(number);
        failpoint::reach("container/record-removed");
        self.numbers.lock().expect(UNPOISONED).give_back(number);
        Ok(())
    }
}

const UNPOISONED: &str = "nothing panics while it holds this";

fn open(path: &str) -> Result<OwnedFd, Step> {
    rustix::fs::open(
        path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .at(format!("opening {path}"))
}

/// Kills what is in a group until nothing is.
fn end_everything(cgroup: &Cgroup) -> Result<(), Step> {
    let deadline = Instant::now() + DEAD_WITHIN;
    loop {
        let alive = cgroup.processes();
        if alive.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut))
                .at(format!("ending processes {alive:?}"));
        }
        cgroup.kill();
        for pid in alive
            .into_iter()
            .filter_map(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?))
        {
            // Opened first and then looked at again: the number may have been given to a stranger meanwhile.
            let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if cgroup
                .processes()
                .contains(&pid.as_raw_nonzero().get().unsigned_abs())
            {
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        let _ = cgroup.thaw();
        #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wait_until_up(ready: &OwnedFd, ordered: &Ordered) -> Result<(), RuntimeError> {
    let failed = |why: String| RuntimeError::Step {
        step: "booting a machine".to_owned(),
        source: std::io::Error::other(why),
    };
    let timeout =
        rustix::time::Timespec::try_from(UP_WITHIN).map_err(|_| failed("no such time".to_owned()))?;
    let mut polled = [PollFd::new(ready, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) => return Err(failed(format!("envd did not listen within {UP_WITHIN:?}"))),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.to_string())),
            Ok(_) => break,
        }
    }
    let mut byte = [0];
    match rustix::io::read(ready, &mut byte) {
        Ok(1) => Ok(()),
        _ => Err(failed(ordered.why())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_out_once_whoever_had_it_before() {
        let mut numbers = Numbers {
            taken: vec![1],
            ..Numbers::default()
        };
        numbers.give_back(3);
        assert!(numbers.free.is_empty(), "an earlier daemon's number is fresh");
        numbers.give_back(1);
        numbers.give_back(1);
        assert_eq!(numbers.free, [1]);
        numbers.fresh = 4;
        numbers.give_back(3);
        assert_eq!(numbers.free, [1, 3]);
    }

    #[test]
    fn a_number_of_which_something_is_left_waits_behind_the_others() {
        let mut numbers = Numbers {
            taken: vec![1],
            ..Numbers::default()
        };
        let take = |numbers: &mut Numbers, busy: &[u32]| {
            let is_free = |number| Ok::<_, ()>(!busy.contains(&number));
            numbers.take(is_free).unwrap()
        };
        assert_eq!(
            take(&mut numbers, &[0, 2]),
            Some(3),
            "what an earlier daemon left goes in a moment"
        );
        assert_eq!(take(&mut numbers, &[0]), Some(4));
        numbers.give_back(3);
        assert_eq!(take(&mut numbers, &[]), Some(0));
        numbers.fresh = SLOTS_MAX;
        assert_eq!(take(&mut numbers, &[2]), Some(3));
        assert_eq!(take(&mut numbers, &[2]), None);
        assert_eq!(take(&mut numbers, &[]), Some(2));
    }
}
