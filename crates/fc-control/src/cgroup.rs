//! Control groups, of version 1 or 2: the jailer makes one for each machine and puts it in, and leaves it behind.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Resources;
use ports::step::{At, Step};

/// What Firecracker takes beside the guest's memory, with what its disk leaves in the page cache until that is needed.
const OVERHEAD_BYTES: u64 = 128 << 20;
/// Length of the period over which CPU time is shared out, in microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;
/// A thread for each processor and four beside them; no more are made, whatever happens.
const THREADS_BESIDE: u32 = 16;
/// The controllers by which machines are bounded.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Where this daemon's groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    hierarchy: Hierarchy,
    /// The group that all machines' are in.
    parent: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    /// Where each of the controllers is mounted.
    V1(Vec<PathBuf>),
    V2(PathBuf),
}

impl Cgroups {
    /// Finds the hierarchies. Version 2 is taken where it has all controllers.
    pub(crate) fn find(parent: &str) -> Result<Self, Step> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").at("reading /proc/self/mountinfo")?;
        let controllers = |root: &Path| {
            let list = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            list.split_whitespace().map(str::to_owned).collect()
        };
        Ok(Self {
            hierarchy: hierarchy(&mounts, controllers).at("looking for cgroups")?,
            parent: parent.to_owned(),
        })
    }

    /// Hierarchies that are none, for tests.
    #[cfg(test)]
    pub(crate) fn below(roots: Vec<PathBuf>) -> Self {
        Self {
            hierarchy: Hierarchy::V1(roots),
            parent: "parent".to_owned(),
        }
    }

    /// Makes the group that machines' are in.
    pub(crate) fn prepare(&self) -> Result<(), Step> {
        for root in self.roots() {
            let parent = root.join(&self.parent);
            fs::create_dir_all(&parent).at(format!("making {}", parent.display()))?;
            if let Hierarchy::V2(_) = self.hierarchy {
                for group in [root, &parent] {
                    for controller in CONTROLLERS {
                        // One that has it already refuses nothing, and one that cannot is told by the jailer.
                        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes it, where no machine's is left in it.
    pub(crate) fn close(&self) {
        for root in self.roots() {
            let _ = fs::remove_dir(root.join(&self.parent));
        }
    }

    /// The jailer's arguments for a machine's group.
    pub(crate) fn arguments(&self, resources: Resources) -> Vec<String> {
        let memory = resources.memory.bytes() + OVERHEAD_BYTES;
        let quota = u64::from(resources.cpu) * CPU_PERIOD_US;
        let threads = resources.cpu.saturating_add(THREADS_BESIDE);
        let mut arguments = vec!["--parent-cgroup".to_owned(), self.parent.clone()];
        let (version, values) = match &self.hierarchy {
            Hierarchy::V1(_) => {
                let values = vec![
                    format!("memory.limit_in_bytes={memory}"),
                    "memory.swappiness=0".to_owned(),
                    format!("cpu.cfs_quota_us={quota}"),
                    format!("pids.max={threads}"),
                ];
                ("1", values)
            }
            Hierarchy::V2(root) => {
                let mut values = vec![
                    format!("memory.max={memory}"),
                    format!("cpu.max={quota} {CPU_PERIOD_US}"),
                    format!("pids.max={threads}"),
                ];
                // Not there without swap.
                if root.join(&self.parent).join("memory.swap.max").exists() {
                    values.push("memory.swap.max=0".to_owned());
                }
                ("2", values)
            }
        };
        arguments.extend(["--cgroup-version".to_owned(), version.to_owned()]);
        for value in values {
            arguments.extend(["--cgroup".to_owned(), value]);
        }
        arguments
    }

    /// Every process in a machine's group.
    pub(crate) fn processes(&self, id: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for dir in self.dirs(id) {
            let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Removes a machine's group, whose processes have ended: the kernel lets go of it a moment after the last. One that is not
    /// there is no error. Blocks.
    pub(crate) fn remove(&self, id: &str, within: Duration) -> Result<(), Step> {
        let deadline = std::time::Instant::now() + within;
        for dir in self.dirs(id) {
            loop {
                match fs::remove_dir(&dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if std::time::Instant::now() >= deadline => {
                        return Err(error).at(format!("removing {}", dir.display()));
                    }
                    Err(_) => {}
                }
                #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Machines that have a group somewhere.
    pub(crate) fn ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        for root in self.roots() {
            let entries = fs::read_dir(root.join(&self.parent))
                .into_iter()
                .flatten()
                .flatten();
            let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            ids.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Where a machine is, for people.
    pub(crate) fn shown(&self, id: &str) -> String {
        let dirs = self.dirs(id);
        let dirs = dirs.iter().map(|dir| dir.display().to_string());
        dirs.collect::<Vec<_>>().join(" ")
    }

    fn dirs(&self, id: &str) -> Vec<PathBuf> {
        self.roots()
            .into_iter()
            .map(|root| root.join(&self.parent).join(id))
            .collect()
    }

    fn roots(&self) -> Vec<&PathBuf> {
        match &self.hierarchy {
            Hierarchy::V1(roots) => roots.iter().collect(),
            Hierarchy::V2(root) => vec![root],
        }
    }
}

fn hierarchy(mounts: &str, controllers_of: impl Fn(&Path) -> Vec<String>) -> io::Result<Hierarchy> {
    let (mut v1, mut v2) = (Vec::new(), None);
    for line in mounts.lines() {
        // proc_pid_mountinfo(5): …, the mount point is field 5; after " - " come type, source, options.
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(point), mut after) = (before.split(' ').nth(4), after.split(' ')) else {
            continue;
        };
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        match kind {
            "cgroup2" => v2 = Some(PathBuf::from(point)),
            "cgroup" => {
                let own = options.split(',').filter(|option| CONTROLLERS.contains(option));
                v1.extend(own.map(|option| (option.to_owned(), PathBuf::from(point))));
            }
            _ => {}
        }
    }
    if let Some(root) = v2 {
        let here = controllers_of(&root);
        let has = |controller: &&str| here.iter().any(|own| own == controller);
        if CONTROLLERS.iter().all(has) {
            return Ok(Hierarchy::V2(root));
        }
    }
    let lacks = |controller: &&&str| !v1.iter().any(|(own, _)| own == **controller);
    if let Some(lack) = CONTROLLERS.iter().find(lacks) {
        return Err(io::Error::other(format!("no cgroup controller for {lack}")));
    }
    let mut roots: Vec<PathBuf> = v1.into_iter().map(|(_, root)| root).collect();
    roots.sort();
    roots.dedup();
    Ok(Hierarchy::V1(roots))
}

#[cfg(test)]
mod tests {
    use model::MiB;

    use super::*;

    const V1: &str = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
    const V2: &str = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn found(mounts: &str, controllers: &str) -> io::Result<Hierarchy> {
        hierarchy(mounts, |_| controllers.split(' ').map(str::to_owned).collect())
    }

    fn resources() -> Resources {
        Resources {
            cpu: 2,
            memory: MiB(512),
            disk: MiB(1024),
        }
    }

    #[test]
    fn each_version_is_taken_where_it_bounds_machines() {
        let all = "cpuset cpu io memory pids";
        let paths = [
            "/sys/fs/cgroup/cpu,cpuacct",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/pids",
        ];
        let v1 = Hierarchy::V1(paths.map(PathBuf::from).to_vec());
        assert_eq!(found(V1, "").unwrap(), v1);
        assert_eq!(found(V2, all).unwrap(), Hierarchy::V2("/sys/fs/cgroup".into()));
        assert_eq!(
            found(V1, all).unwrap(),
            Hierarchy::V2("/sys/fs/cgroup/unified".into())
        );
        assert!(
            found(V2, "cpu memory")
                .unwrap_err()
                .to_string()
                .contains("memory")
        );
        assert!(found("", all).is_err());
    }

    #[test]
    fn what_the_jailer_is_told_is_what_that_version_has() {
        let told = |hierarchy| {
            let cgroups = Cgroups {
                hierarchy,
                parent: "atoll0-fc".to_owned(),
            };
            cgroups.arguments(resources()).join(" ")
        };
        assert_eq!(
            told(found(V1, "").unwrap()),
            "--parent-cgroup atoll0-fc --cgroup-version 1 --cgroup memory.limit_in_bytes=671088640 --cgroup \
             memory.swappiness=0 --cgroup cpu.cfs_quota_us=200000 --cgroup pids.max=18"
        );
        assert_eq!(
            told(Hierarchy::V2("/nowhere".into())),
            "--parent-cgroup atoll0-fc --cgroup-version 2 --cgroup memory.max=671088640 --cgroup cpu.max=200000 100000 \
             --cgroup pids.max=18"
        );
    }

    #[test]
    fn groups_are_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["memory", "pids"].map(|name| dir.path().join(name)).to_vec();
        let cgroups = Cgroups {
            hierarchy: Hierarchy::V1(roots.clone()),
            parent: "p".to_owned(),
        };
        cgroups.prepare().unwrap();
        fs::create_dir(roots[0].join("p/a")).unwrap();
        fs::create_dir(roots[1].join("p/b")).unwrap();
        fs::write(roots[1].join("p/tasks"), "").unwrap();
        assert_eq!(cgroups.ids(), ["a", "b"]);
        fs::write(roots[0].join("p/a/cgroup.procs"), "12\n7\n").unwrap();
        assert_eq!(cgroups.processes("a"), [7, 12]);
        assert!(cgroups.remove("a", Duration::from_millis(5)).is_err());
        fs::remove_file(roots[0].join("p/a/cgroup.procs")).unwrap();
        for id in ["a", "b", "c"] {
            cgroups.remove(id, Duration::ZERO).unwrap();
        }
        assert!(cgroups.ids().is_empty());
        fs::remove_file(roots[1].join("p/tasks")).unwrap();
        cgroups.close();
        cgroups.close();
        assert!(roots.iter().all(|root| !root.join("p").exists()));
    }
}
