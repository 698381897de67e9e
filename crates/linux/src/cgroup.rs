//! Control groups of version 1, 2, or both side by side ([cgroups(7)]): a group each for what is to be bounded together.
//!
//! A group is `<root>/<parent>/<id>`, in every hierarchy that has one of the controllers that are used. Where a controller lives
//! is found for each by itself: hybrid machines keep limits in version 1 and have a bare version 2 beside it.
//!
//! [cgroups(7)]: https://man7.org/linux/man-pages/man7/cgroups.7.html
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// By which groups are bounded.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Length of the period over which CPU time is shared out, in microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;
/// How often it is tried whether the kernel has let go of a group.
const LOOK: Duration = Duration::from_millis(1);

/// What a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory with the page cache, in bytes, and no swap.
    pub memory_bytes: u64,
    /// CPU time: so many processors' worth.
    pub cpus: u32,
    /// Processes and threads.
    pub tasks: u64,
}

/// Groups below one parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// Which hierarchy has a controller: its root, and whether it is one of version 2.
    roots: BTreeMap<&'static str, (PathBuf, bool)>,
    parent: String,
}

impl Groups {
    /// Finds the hierarchies, and makes the parent in each.
    ///
    /// # Errors
    /// A controller is nowhere, or cannot be used by groups of ours.
    pub fn open(parent: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let groups = Self {
            roots: roots(&mounts)?,
            parent: parent.to_owned(),
        };
        groups.prepare()?;
        Ok(groups)
    }

    fn prepare(&self) -> io::Result<()> {
        for (controller, (root, is_v2)) in &self.roots {
            let parent = root.join(&self.parent);
            fs::create_dir_all(&parent).map_err(about("making", &parent))?;
            if *is_v2 {
                for group in [root, &parent] {
                    let path = group.join("cgroup.subtree_control");
                    fs::write(&path, format!("+{controller}")).map_err(about("writing", &path))?;
                }
            }
        }
        Ok(())
    }

    /// Makes a group, or finds it, and puts limits in force. Answers with the files by which a process joins
    /// ([`crate::spawn::join`]), open with our rights.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn create(&self, id: &str, limits: Limits) -> io::Result<Vec<OwnedFd>> {
        if self.parents().iter().any(|parent| !parent.exists()) {
            // It was closed, and there is more to come.
            self.prepare()?;
        }
        for dir in self.dirs(id) {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(about("making", &dir))?,
            }
        }
        let quota = u64::from(limits.cpus) * CPU_PERIOD_US;
        let memory = limits.memory_bytes.to_string();
        self.set(
            id,
            "memory",
            "memory.limit_in_bytes",
            "memory.max",
            &memory,
            &memory,
        )?;
        // Only there where there is swap, and it is accounted for.
        let _ = self.set(
            id,
            "memory",
            "memory.memsw.limit_in_bytes",
            "memory.swap.max",
            &memory,
            "0",
        );
        let (v1, v2) = (quota.to_string(), format!("{quota} {CPU_PERIOD_US}"));
        self.set(id, "cpu", "cpu.cfs_quota_us", "cpu.max", &v1, &v2)?;
        let tasks = limits.tasks.to_string();
        self.set(id, "pids", "pids.max", "pids.max", &tasks, &tasks)?;
        let open = |dir: PathBuf| {
            let path = dir.join("cgroup.procs");
            let file = fs::File::options().write(true).open(&path);
            file.map(OwnedFd::from).map_err(about("opening", &path))
        };
        self.dirs(id).into_iter().map(open).collect()
    }

    fn set(
        &self,
        id: &str,
        controller: &str,
        v1: &str,
        v2: &str,
        v1_value: &str,
        v2_value: &str,
    ) -> io::Result<()> {
        let Some((root, is_v2)) = self.roots.get(controller) else {
            return Ok(());
        };
        let (name, value) = if *is_v2 { (v2, v2_value) } else { (v1, v1_value) };
        let path = root.join(&self.parent).join(id).join(name);
        fs::write(&path, value).map_err(about("writing", &path))
    }

    /// Every process in a group.
    #[must_use]
    pub fn processes(&self, id: &str) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        for dir in self.dirs(id) {
            let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Removes a group whose processes have ended: the kernel lets go of it a moment after the last. One that is not there is no
    /// error. Blocks.
    ///
    /// # Errors
    /// It is still in use after `within`.
    pub fn remove(&self, id: &str, within: Duration) -> io::Result<()> {
        let deadline = Instant::now() + within;
        for dir in self.dirs(id) {
            loop {
                match fs::remove_dir(&dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if Instant::now() >= deadline => return Err(about("removing", &dir)(error)),
                    Err(_) => {}
                }
                #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Groups that are there, in any of the hierarchies.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        for parent in self.parents() {
            let entries = fs::read_dir(parent).into_iter().flatten().flatten();
            let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            ids.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Removes the parent, where no group is left in it.
    pub fn close(&self) {
        for parent in self.parents() {
            let _ = fs::remove_dir(parent);
        }
    }

    /// A group's directories.
    #[must_use]
    pub fn dirs(&self, id: &str) -> Vec<PathBuf> {
        self.parents().into_iter().map(|parent| parent.join(id)).collect()
    }

    fn parents(&self) -> Vec<PathBuf> {
        let mut parents: Vec<PathBuf> = self
            .roots
            .values()
            .map(|(root, _)| root.join(&self.parent))
            .collect();
        parents.sort();
        parents.dedup();
        parents
    }
}

fn about<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> io::Error + 'a {
    move |error| io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn roots(mounts: &str) -> io::Result<BTreeMap<&'static str, (PathBuf, bool)>> {
    let (mut found, mut v2) = (BTreeMap::new(), None);
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
                for controller in CONTROLLERS {
                    if options.split(',').any(|option| option == controller) {
                        found.insert(controller, (PathBuf::from(point), false));
                    }
                }
            }
            _ => {}
        }
    }
    if let Some(root) = v2 {
        let here = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        for controller in CONTROLLERS {
            if here.split_whitespace().any(|own| own == controller) {
                found.entry(controller).or_insert_with(|| (root.clone(), true));
            }
        }
    }
    match CONTROLLERS
        .into_iter()
        .find(|controller| !found.contains_key(controller))
    {
        Some(lack) => Err(io::Error::other(format!("no cgroup controller for {lack}"))),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        memory_bytes: 1 << 30,
        cpus: 2,
        tasks: 100,
    };

    #[test]
    fn hybrid_machines_keep_limits_in_version_1() {
        let mounts = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 25 0:29 / /nowhere rw - cgroup2 cgroup2 rw
";
        let found = roots(mounts).unwrap();
        assert_eq!(found["cpu"], ("/sys/fs/cgroup/cpu,cpuacct".into(), false));
        assert_eq!(found["memory"], ("/sys/fs/cgroup/memory".into(), false));
        let (without, _) = mounts.split_once("32 25").unwrap();
        assert!(roots(without).unwrap_err().to_string().contains("pids"));
    }

    /// As far as files go: the kernel makes these in each group.
    fn groups(dir: &Path, is_v2: bool) -> Groups {
        let controllers = if is_v2 { "cpuset cpu io memory pids\n" } else { "" };
        fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
        let kind = if is_v2 {
            "cgroup2 cgroup2 rw"
        } else {
            "cgroup cgroup rw,memory,cpu,pids"
        };
        let groups = Groups {
            roots: roots(&format!("41 31 0:38 / {} rw - {kind}\n", dir.display())).unwrap(),
            parent: "p".to_owned(),
        };
        groups.prepare().unwrap();
        fs::create_dir(dir.join("p/a")).unwrap();
        fs::write(dir.join("p/a/cgroup.procs"), "12\n7\n").unwrap();
        groups
    }

    #[test]
    fn limits_are_in_the_files_of_their_version() {
        for (is_v2, expected) in [
            (
                true,
                [
                    ("memory.max", "1073741824"),
                    ("memory.swap.max", "0"),
                    ("cpu.max", "200000 100000"),
                    ("pids.max", "100"),
                ],
            ),
            (
                false,
                [
                    ("memory.limit_in_bytes", "1073741824"),
                    ("memory.memsw.limit_in_bytes", "1073741824"),
                    ("cpu.cfs_quota_us", "200000"),
                    ("pids.max", "100"),
                ],
            ),
        ] {
            let dir = tempfile(is_v2);
            let groups = groups(&dir, is_v2);
            assert_eq!(groups.create("a", LIMITS).unwrap().len(), 1);
            for (name, value) in expected {
                assert_eq!(fs::read_to_string(dir.join("p/a").join(name)).unwrap(), value);
            }
            assert_eq!(
                (groups.ids(), groups.processes("a")),
                (vec!["a".into()], vec![7, 12])
            );
            assert!(groups.remove("a", Duration::from_millis(3)).is_err());
            groups.remove("b", Duration::ZERO).unwrap();
            fs::remove_dir_all(dir).unwrap();
        }
    }

    fn tempfile(is_v2: bool) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("atoll-cgroup-{}-{is_v2}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn who_joins_a_group_is_held_to_it_from_its_first_instruction() {
        let Ok(groups) = Groups::open(&format!("atoll-test-{}", std::process::id())) else {
            // Not everybody may make groups.
            return;
        };
        let id = "one";
        let files = groups.create(id, LIMITS).unwrap();
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "cat /proc/self/cgroup; read x"]);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        crate::spawn::join(&mut command, files);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while groups.processes(id) != [child.id()] {
            assert!(Instant::now() < deadline);
        }
        assert!(groups.remove(id, Duration::ZERO).is_err());
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.lines().any(|line| line.ends_with("/one")), "{said}");
        groups.remove(id, Duration::from_secs(10)).unwrap();
        assert!(groups.ids().is_empty());
        groups.close();
    }
}
