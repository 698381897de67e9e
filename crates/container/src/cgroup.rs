//! Control groups, version 1, 2, or both side by side, as the machine has them.
//!
//! Each slot has one group, `<root>/atoll<instance>/<slot>`, in every hierarchy that is used. Where a controller lives is
//! found for each one by itself: hybrid machines keep limits in version 1 and have a bare version 2 beside it.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::{MiB, Resources};
use rustix::fs::{Mode, OFlags};

use crate::step::{At, Step};

/// Processes and threads of one sandbox, whatever its memory: a large build needs hundreds.
pub(crate) const TASKS_MAX: u64 = 4096;
/// Of one that has little memory, so many at least.
const TASKS_MIN: u64 = 1024;
/// For each MiB of memory. Sandboxes share the files of an image, and who maps or forks takes a lock of each file that is mapped.
/// Where it is held by one of a crowd that has the processor by turns, another sandbox's program waits for that turn: on two busy
/// processors a fork bomb of 4096 kept a neighbour's command for 6 to 16 s in 7 of 25 tries, and one of 1024 in none.
const TASKS_PER_MIB: u64 = 1;
/// Length of the period over which CPU time is shared out, in microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;
/// A freeze takes a tenth of a millisecond; a task in the middle of a disk write may take longer.
const FROZEN_WITHIN: Duration = Duration::from_secs(10);

/// What groups are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Controller {
    Memory,
    Cpu,
    CpuAccounting,
    Pids,
    Freezer,
}

impl Controller {
    const ALL: [(Controller, &'static str); 5] = [
        (Controller::Memory, "memory"),
        (Controller::Cpu, "cpu"),
        (Controller::CpuAccounting, "cpuacct"),
        (Controller::Pids, "pids"),
        (Controller::Freezer, "freezer"),
    ];
}

/// Where this daemon's groups are made.
#[derive(Debug)]
pub(crate) struct Cgroups {
    /// `atoll<instance>`.
    name: String,
    /// Version 1 hierarchies.
    v1: BTreeMap<Controller, PathBuf>,
    /// The version 2 hierarchy.
    v2: Option<PathBuf>,
}

/// Processes and threads of a sandbox with so much memory.
fn tasks_max(memory: MiB) -> u64 {
    (u64::from(memory.0) * TASKS_PER_MIB).clamp(TASKS_MIN, TASKS_MAX)
}

/// The groups of one slot.
#[derive(Debug)]
pub(crate) struct Cgroup {
    v1: BTreeMap<Controller, PathBuf>,
    v2: Option<PathBuf>,
}

/// What a group uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) memory_bytes: u64,
    pub(crate) cache_bytes: u64,
    pub(crate) tasks: u64,
    pub(crate) oom_kills: u64,
}

impl Cgroups {
    /// Finds the hierarchies, and makes this daemon's directory in each.
    pub(crate) fn open(instance: u32) -> Result<Self, Step> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").at("reading /proc/self/mountinfo")?;
        let found = Self {
            name: format!("atoll{instance}"),
            ..hierarchies(&mountinfo)
        };
        if let Some(lack) = found.lacks().first() {
            return Err(io::Error::other(format!("no cgroup controller for {lack}")))
                .at("looking for cgroups");
        }
        for root in found.roots() {
            if found.v2.as_ref() == Some(&root) {
                enable_controllers(&root);
            }
            let own = root.join(&found.name);
            fs::create_dir_all(&own).at(format!("making {}", own.display()))?;
            if found.v2.as_ref() == Some(&root) {
                enable_controllers(&own);
            }
        }
        Ok(found)
    }

    /// What limits cannot be set for want of a controller.
    pub(crate) fn lacks(&self) -> Vec<&'static str> {
        let in_v2: Vec<String> = self
            .v2
            .as_ref()
            .and_then(|root| fs::read_to_string(root.join("cgroup.controllers")).ok())
            .map(|list| list.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        let has = |controller: Controller, name: &str| {
            self.v1.contains_key(&controller)
                || in_v2.iter().any(|found| found == name)
                // Version 2 always freezes, and accounts for CPU time.
                || (self.v2.is_some() && matches!(controller, Controller::Freezer | Controller::CpuAccounting))
        };
        Controller::ALL
            .into_iter()
            .filter(|(controller, name)| !has(*controller, name))
            .map(|(_, name)| name)
            .collect()
    }

    /// For people: which version limits what.
    pub(crate) fn describe() -> Result<(String, Vec<&'static str>), Step> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").at("reading /proc/self/mountinfo")?;
        let found = hierarchies(&mountinfo);
        let versions = match (found.v1.is_empty(), found.v2.is_some()) {
            (true, true) => "version 2",
            (false, true) => "version 1 and 2 side by side",
            (false, false) => "version 1",
            (true, false) => "none",
        };
        Ok((versions.to_owned(), found.lacks()))
    }

    fn roots(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = self.v1.values().chain(&self.v2).cloned().collect();
        roots.sort();
        roots.dedup();
        roots
    }

    /// The groups of a slot, whether they are there or not.
    pub(crate) fn of(&self, slot: u32) -> Cgroup {
        let below = |root: &PathBuf| root.join(&self.name).join(slot.to_string());
        Cgroup {
            v1: self
                .v1
                .iter()
                .map(|(&controller, root)| (controller, below(root)))
                .collect(),
            v2: self.v2.as_ref().map(below),
        }
    }

    /// Slots that have a group somewhere.
    pub(crate) fn slots(&self) -> Vec<u32> {
        let mut slots: Vec<u32> = Vec::new();
        for root in self.roots() {
            let entries = fs::read_dir(root.join(&self.name))
                .into_iter()
                .flatten()
                .flatten();
            slots.extend(entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()));
        }
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Removes this daemon's own directories; they stay where a group is left in them.
    pub(crate) fn close(&self) {
        for root in self.roots() {
            let _ = fs::remove_dir(root.join(&self.name));
        }
    }
}

fn hierarchies(mountinfo: &str) -> Cgroups {
    let mut found = Cgroups {
        name: String::new(),
        v1: BTreeMap::new(),
        v2: None,
    };
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): …, the mount point is field 5; after " - " come type, source, options.
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), mut after) = (before.split(' ').nth(4), after.split(' ')) else {
            continue;
        };
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        match kind {
            "cgroup2" => found.v2 = Some(point.into()),
            "cgroup" => {
                for (controller, name) in Controller::ALL {
                    if options.split(',').any(|option| option == name) {
                        found.v1.insert(controller, point.into());
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// Lets children of a version 2 group use the controllers. What cannot be enabled is told by [`Cgroups::lacks`].
fn enable_controllers(group: &Path) {
    for controller in ["+memory", "+cpu", "+pids"] {
        let _ = fs::write(group.join("cgroup.subtree_control"), controller);
    }
}

impl Cgroup {
    fn dirs(&self) -> Vec<&PathBuf> {
        let mut dirs: Vec<&PathBuf> = self.v1.values().chain(&self.v2).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// Makes the groups.
    pub(crate) fn create(&self) -> Result<(), Step> {
        for dir in self.dirs() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.at(format!("making {}", dir.display()))?,
            }
        }
        Ok(())
    }

    /// The `tasks` files by which a process attaches itself (version 1), opened with our rights.
    pub(crate) fn tasks(&self) -> Result<Vec<OwnedFd>, Step> {
        let mut dirs: Vec<&PathBuf> = self.v1.values().collect();
        dirs.sort();
        dirs.dedup();
        let open = |dir: &PathBuf| {
            let path = dir.join("tasks");
            rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .at(format!("opening {}", path.display()))
        };
        dirs.into_iter().map(open).collect()
    }

    /// The version 2 group, for clone3(2).
    pub(crate) fn unified(&self) -> Result<Option<OwnedFd>, Step> {
        let Some(dir) = &self.v2 else { return Ok(None) };
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, Mode::empty())
            .at(format!("opening {}", dir.display()))
            .map(Some)
    }

    /// Puts limits in force.
    pub(crate) fn limit(&self, resources: Resources) -> Result<(), Step> {
        let memory = resources.memory.bytes().to_string();
        let with_swap = || {
            if let Some(dir) = self.v1.get(&Controller::Memory) {
                // Only there with swap accounting; without it there is nothing to limit.
                let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), &memory);
            } else if let Some(dir) = &self.v2 {
                let _ = fs::write(dir.join("memory.swap.max"), "0");
            }
        };
        // Version 1 lets neither limit pass the other: this one goes first where they rise, and last where they fall.
        with_swap();
        self.write(
            Controller::Memory,
            "memory.limit_in_bytes",
            "memory.max",
            memory.clone(),
            memory.clone(),
        )?;
        with_swap();
        let quota = u64::from(resources.cpu) * CPU_PERIOD_US;
        self.write(
            Controller::Cpu,
            "cpu.cfs_quota_us",
            "cpu.max",
            quota.to_string(),
            format!("{quota} {CPU_PERIOD_US}"),
        )?;
        let tasks = tasks_max(resources.memory).to_string();
        self.write(Controller::Pids, "pids.max", "pids.max", tasks.clone(), tasks)
    }

    fn write(
        &self,
        controller: Controller,
        v1: &str,
        v2: &str,
        v1_value: String,
        v2_value: String,
    ) -> Result<(), Step> {
        let (path, value) = match (self.v1.get(&controller), &self.v2) {
            (Some(dir), _) => (dir.join(v1), v1_value),
            (None, Some(dir)) => (dir.join(v2), v2_value),
            (None, None) => return Ok(()),
        };
        fs::write(&path, &value).at(format!("writing {value} to {}", path.display()))
    }

    /// Stops every task in place, and returns when they stand.
    pub(crate) fn freeze(&self) -> Result<(), Step> {
        self.set_frozen(true)?;
        let deadline = Instant::now() + FROZEN_WITHIN;
        while !self.is_frozen() {
            if Instant::now() > deadline {
                let _ = self.set_frozen(false);
                return Err(io::Error::from(io::ErrorKind::TimedOut)).at("freezing a cgroup");
            }
            #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Stops every task in place, as each comes to it: those that are traced when they are let go.
    pub(crate) fn stand(&self) -> Result<(), Step> {
        self.set_frozen(true)
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) -> Result<(), Step> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), Step> {
        let (path, value) = match (&self.v2, self.v1.get(&Controller::Freezer)) {
            (Some(dir), _) => (dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
            (None, Some(dir)) => (
                dir.join("freezer.state"),
                if frozen { "FROZEN" } else { "THAWED" },
            ),
            (None, None) => {
                return Err(io::Error::from(io::ErrorKind::Unsupported)).at("freezing without a freezer");
            }
        };
        fs::write(&path, value).at(format!("writing {value} to {}", path.display()))
    }

    /// Whether all its tasks stand.
    pub(crate) fn is_frozen(&self) -> bool {
        match (&self.v2, self.v1.get(&Controller::Freezer)) {
            (Some(dir), _) => field(&dir.join("cgroup.events"), "frozen") == Some(1),
            (None, Some(dir)) => {
                fs::read_to_string(dir.join("freezer.state")).is_ok_and(|state| state.trim() == "FROZEN")
            }
            (None, None) => false,
        }
    }

    /// Kills every task, where the kernel does that at a word (version 2).
    pub(crate) fn kill(&self) {
        if let Some(dir) = &self.v2 {
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
    }

    /// Every process in it.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        for dir in self.dirs() {
            let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What it uses now.
    pub(crate) fn used(&self) -> Used {
        let v2 = self.v2.as_deref();
        let in_v1 = |controller: Controller, file: &str| self.v1.get(&controller).map(|dir| dir.join(file));
        let cpu = match in_v1(Controller::CpuAccounting, "cpuacct.usage") {
            Some(path) => Duration::from_nanos(number(&path).unwrap_or(0)),
            None => Duration::from_micros(
                v2.and_then(|dir| field(&dir.join("cpu.stat"), "usage_usec"))
                    .unwrap_or(0),
            ),
        };
        let (current, cache, oom_kills) = match self.v1.get(&Controller::Memory) {
            Some(dir) => (
                number(&dir.join("memory.usage_in_bytes")),
                field(&dir.join("memory.stat"), "total_cache"),
                field(&dir.join("memory.oom_control"), "oom_kill"),
            ),
            None => (
                v2.and_then(|dir| number(&dir.join("memory.current"))),
                v2.and_then(|dir| field(&dir.join("memory.stat"), "file")),
                v2.and_then(|dir| field(&dir.join("memory.events"), "oom_kill")),
            ),
        };
        let tasks =
            in_v1(Controller::Pids, "pids.current").or_else(|| v2.map(|dir| dir.join("pids.current")));
        let cache_bytes = cache.unwrap_or(0);
        Used {
            cpu,
            memory_bytes: current.unwrap_or(0).saturating_sub(cache_bytes),
            cache_bytes,
            tasks: tasks.and_then(|path| number(&path)).unwrap_or(0),
            oom_kills: oom_kills.unwrap_or(0),
        }
    }

    /// Removes the groups. Says whether all are gone: the kernel lets go of a group a moment after its last task.
    pub(crate) fn remove(&self) -> bool {
        self.dirs().into_iter().fold(true, |gone, dir| {
            let removed = match fs::remove_dir(dir) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            gone && removed
        })
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
