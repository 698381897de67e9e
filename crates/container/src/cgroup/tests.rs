use super::*;

#[test]
fn hybrid_machines_keep_limits_in_version_1() {
    let found = hierarchies(
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
         35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory\n\
         41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n",
    );
    assert_eq!(
        found.v1[&Controller::CpuAccounting],
        Path::new("/sys/fs/cgroup/cpu,cpuacct")
    );
    assert_eq!(found.v1[&Controller::Memory], Path::new("/sys/fs/cgroup/memory"));
    assert!(!found.v1.contains_key(&Controller::Pids));
    assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    assert_eq!(found.roots().len(), 3);
}

/// A version 2 hierarchy as far as files go: the kernel makes these in each group.
fn fake_v2(dir: &Path) -> Cgroups {
    fs::write(
        dir.join("cgroup.controllers"),
        "cpuset cpu io memory hugetlb pids\n",
    )
    .unwrap();
    let mountinfo = format!(
        "41 31 0:38 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        dir.display()
    );
    Cgroups {
        name: "atoll7".to_owned(),
        ..hierarchies(&mountinfo)
    }
}

#[test]
fn version_2_alone_suffices() {
    let dir = tempfile::tempdir().unwrap();
    let found = fake_v2(dir.path());
    assert!(found.v1.is_empty());
    assert_eq!(found.lacks(), Vec::<&str>::new());
    assert_eq!(found.roots(), [dir.path()]);
    fs::write(dir.path().join("cgroup.controllers"), "cpu io\n").unwrap();
    assert_eq!(found.lacks(), ["memory", "pids"]);
    enable_controllers(dir.path());
    let enabled = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
    assert_eq!(
        enabled, "+pids",
        "one write for each: one that is missing does not take the others along"
    );
}

#[test]
fn tasks_grow_with_memory_within_bounds() {
    let tasks = [128, 1024, 2000, 4096, 65536].map(|mib| tasks_max(MiB(mib)));
    assert_eq!(tasks, [1024, 1024, 2000, 4096, 4096]);
}

#[test]
fn limits_and_use_of_version_2_are_in_its_own_files() {
    let dir = tempfile::tempdir().unwrap();
    let found = fake_v2(dir.path());
    fs::create_dir(dir.path().join("atoll7")).unwrap();
    let (group, at) = (found.of(3), dir.path().join("atoll7/3"));
    group.create().unwrap();
    assert_eq!(found.slots(), [3]);
    group
        .limit(Resources {
            cpu: 2,
            memory: model::MiB(512),
            disk: model::MiB(64),
        })
        .unwrap();
    let read = |name: &str| fs::read_to_string(at.join(name)).unwrap();
    assert_eq!(read("pids.max"), "1024");
    assert_eq!(read("memory.max"), "536870912");
    assert_eq!(read("memory.swap.max"), "0");
    assert_eq!(read("cpu.max"), "200000 100000");
    assert!(group.tasks().unwrap().is_empty(), "clone3 puts it there");
    assert!(group.unified().unwrap().is_some());

    group.kill();
    assert_eq!(read("cgroup.kill"), "1");
    fs::write(at.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
    group.freeze().unwrap();
    assert_eq!(read("cgroup.freeze"), "1");
    assert!(group.is_frozen());
    fs::write(at.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
    group.thaw().unwrap();
    assert_eq!(read("cgroup.freeze"), "0");
    assert!(!group.is_frozen());

    for (name, text) in [
        ("cgroup.procs", "12\n7\n"),
        ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
        ("memory.current", "5000\n"),
        ("memory.stat", "anon 3000\nfile 2000\nfile_mapped 10\n"),
        ("memory.events", "oom 4\noom_kill 3\n"),
        ("pids.current", "2\n"),
    ] {
        fs::write(at.join(name), text).unwrap();
    }
    assert_eq!(group.processes(), [7, 12]);
    assert_eq!(
        group.used(),
        Used {
            cpu: Duration::from_micros(1500),
            memory_bytes: 3000,
            cache_bytes: 2000,
            tasks: 2,
            oom_kills: 3
        }
    );
}
