//! What a machine's QEMU may do on the host: where the daemon is root, nothing but what it was given.
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::*;
use crate::command::{SANDBOX, node, process_name};
use crate::process::{Rights, listen, start as start_qemu};
use crate::users::{User, is_root};

/// A field of `/proc/<pid>/status`.
fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line[field.len() + 1..]
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a process has open below a directory, and whether to write to it.
fn open_below(pid: u32, dir: &Path) -> Vec<(PathBuf, bool)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut open: Vec<_> = entries
        .filter_map(|entry| {
            let path = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().into_string().unwrap();
            let about = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
            let flags = about.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
            let flags = u32::from_str_radix(flags, 8).unwrap();
            path.starts_with(dir).then_some((path, flags & 0o3 != 0))
        })
        .collect();
    open.sort();
    open.dedup();
    open
}

/// Whether a line of shell succeeds as somebody.
fn can(user: User, line: &str) -> bool {
    let done = Command::new("/bin/bash")
        .args(["-c", line])
        .uid(user.uid)
        .gid(user.gid)
        .output()
        .unwrap();
    done.status.success()
}

#[tokio::test]
async fn each_machine_is_a_user_of_its_own_that_has_what_it_was_given_and_reaches_nothing_else() {
    let Some(world) = World::new() else { return };
    if !is_root() {
        crate::tests::not_run("it takes root to give users away");
        return;
    }
    whole(async {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        // What is below has to hold by itself.
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = world.begin().await;
        let (one, first) = start(&runtime, &world.spec()).await;
        let (two, second) = start(&runtime, &world.spec()).await;
        says(&one, 1).await;
        let [user, other] = [&one, &two].map(|vm| vm.record().own.user.unwrap());
        assert_ne!(user.uid, other.uid);
        let pid = one.process.identity.pid;
        let same = |id: u32| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join(" ");
        assert_eq!(status(pid, "Uid:"), same(user.uid));
        assert_eq!(status(pid, "Gid:"), same(user.gid));
        assert_eq!(status(pid, "Groups:"), "");
        for field in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(status(pid, field), "0000000000000000", "{field}");
        }
        assert_eq!(
            (status(pid, "NoNewPrivs:"), status(pid, "Seccomp:")),
            ("1".into(), "2".into())
        );
        assert_eq!(first.facts()["user"], user.uid.to_string());

        // It can talk to nobody of the host's.
        let netns = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(netns(pid), netns(std::process::id()));
        let links = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
        assert!(
            links.lines().skip(2).all(|link| link.trim().starts_with("lo:")),
            "{links}"
        );

        // It has its disk, and writes to what is its own of it.
        let data = world.dir.path().join("data");
        let image =
            |vm: &Vm, depth: usize| runtime.house.vmm.disks.image(vm.record().disk.layers[depth]).path;
        let own = image(&one, 1);
        let mut has = vec![(image(&one, 0), false), (own.clone(), false), (own.clone(), true)];
        has.sort();
        assert_eq!(open_below(pid, &data), has);

        let theirs = two.process.identity.pid;
        let sockets = runtime.house.vmm.sockets_dir(two.execution);
        let out_of_reach = [
            format!("cat {}", image(&two, 1).display()),
            format!("cat {}", own.display()),
            format!("ls {}", data.display()),
            format!("cat {}/machines/{}.json", data.display(), one.execution),
            format!("ls /proc/{theirs}/fd"),
            format!("head -c 1 /proc/{theirs}/mem"),
            format!("kill -0 {theirs}"),
            format!("ls {}", sockets.display()),
            format!("echo x > {}/x", data.display()),
        ];
        let kernel = world.dir.path().join("kernel");
        assert!(can(user, &format!("cat {} && test $UID -ne 0", kernel.display())));
        for line in &out_of_reach {
            assert!(!can(user, line), "{line}");
        }
        // Not even by a descriptor of a directory: each on the way to it is closed by itself.
        for dir in ["images", "states", "run"] {
            assert_eq!(
                fs::metadata(data.join(dir)).unwrap().mode() & 0o777,
                0o700,
                "{dir}"
            );
        }
        assert!(!can(user, &format!("echo x >> {}", kernel.display())));

        // A user is nobody else's until its machine is gone, whoever the daemon is.
        drop((first, one, second, two, runtime));
        let (runtime, recovered) = world.daemon().await;
        assert_eq!(recovered.machines.len(), 2);
        let (three, third) = start(&runtime, &world.spec()).await;
        let of_three = three.record().own.user.unwrap();
        assert!(of_three != user && of_three != other);
        for (_, machine) in &recovered.machines {
            machine.stop(Fate::Discard).await.unwrap();
        }
        let (four, fourth) = start(&runtime, &world.spec()).await;
        assert!([user, other].contains(&four.record().own.user.unwrap()));
        third.stop(Fate::Discard).await.unwrap();
        fourth.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_was_copied_from_is_not_written_to_by_its_copies() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let (vm, machine) = start(&runtime, &world.spec()).await;
        says(&vm, 1).await;
        let into = BuildId::random();
        machine.checkpoint(into, true).await.unwrap();
        let spec = MachineSpec {
            build: into,
            restore: true,
            ..world.spec()
        };
        let (copy, copied) = start(&runtime, &spec).await;
        let data = world.dir.path().join("data/images");
        let written: Vec<PathBuf> = open_below(copy.process.identity.pid, &data)
            .into_iter()
            .filter_map(|(path, writes)| writes.then_some(path))
            .collect();
        let top = *copy.record().disk.layers.last().unwrap();
        assert_eq!(written, [runtime.house.vmm.disks.image(top).path]);
        copied.stop(Fate::Discard).await.unwrap();
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

/// A machine as they were before QEMUs had users: as root, with paths on its command line, and no word of a user on record.
async fn of_an_older_daemon(world: &World, runtime: &Qemus) -> (MachineSpec, Process) {
    let house = &runtime.house;
    let spec = world.spec();
    let mut record = house.put_on_record(spec.clone()).unwrap().machine;
    house.vmm.give_back(&record.own);
    let top = *record.disk.layers.last().unwrap();
    house.vmm.disks.make(top, record.disk.size_bytes).unwrap();
    let dir = house.vmm.sockets_dir(spec.execution);
    fs::create_dir_all(&dir).unwrap();
    let kernel = house.vmm.config.guest.kernel.display().to_string();
    let name = process_name(&spec.execution.to_string());
    let mut line: Vec<String> = [
        "-name",
        &name,
        "-M",
        "q35,vmport=off,sata=off,smbus=off",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        "64M",
        "-S",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-sandbox",
        SANDBOX,
        "-kernel",
        &kernel,
        "-mon",
        "chardev=qmp,mode=control",
        "-serial",
        "chardev:serial",
        "-device",
        r#"{"driver":"virtio-blk-pci","id":"disk","drive":"disk1"}"#,
    ]
    .map(str::to_owned)
    .to_vec();
    for socket in ["qmp", "serial", "line"] {
        let path = dir.join(socket).display().to_string();
        line.extend([
            "-chardev".into(),
            format!("socket,id={socket},path={path},server=on,wait=off"),
        ]);
    }
    for (depth, image) in house.vmm.disks.images(&record.disk).iter().enumerate() {
        line.extend(["-blockdev".into(), node(image, depth, depth == 1).to_string()]);
    }
    let line: Vec<_> = line.into_iter().map(Into::into).collect();
    let rights = Rights {
        user: None,
        given: Vec::new(),
        file_bytes: 1 << 30,
        cpus: 1,
        netns: None,
        groups: Vec::new(),
    };
    let process = start_qemu(&house.vmm.config.qemu, &line, rights).unwrap();
    let sockets = Sockets::within(&dir);
    let qmp = listen(&process, &sockets.qmp, &sockets.serial).await.unwrap();
    qmp.run("cont", json!({})).await.unwrap();
    record.process = Some(process.identity.clone());
    record.up = true;
    let mut text = serde_json::to_value(&record).unwrap();
    text.as_object_mut().unwrap().remove("user").unwrap();
    let path = world
        .dir
        .path()
        .join(format!("data/machines/{}.json", spec.execution));
    fs::write(path, text.to_string()).unwrap();
    (spec, process)
}

#[tokio::test]
async fn a_machine_of_an_older_daemon_goes_on_and_its_sandbox_has_a_user_after_a_pause() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let (spec, _process) = of_an_older_daemon(&world, &runtime).await;
        drop(runtime);
        let (runtime, mut recovered) = world.daemon().await;
        let (found, machine) = recovered.machines.pop().unwrap();
        assert_eq!(
            (found, machine.facts()["user"].as_str()),
            (spec.clone(), "the daemon's")
        );
        // What is laid on its disk is given to it as to all others.
        let into = BuildId::random();
        machine.checkpoint(into, true).await.unwrap();
        machine.stop(Fate::Keep).await.unwrap();
        let (vm, machine) = start(&runtime, &again(&spec, false)).await;
        says(&vm, 1).await;
        assert_eq!(vm.record().own.user.is_some(), is_root());
        assert_eq!(vm.record().disk.layers.len(), 4);
        machine.stop(Fate::Discard).await.unwrap();
        // One that was in the middle of its start is ended, though nobody knows its process.
        let (spec, process) = of_an_older_daemon(&world, &runtime).await;
        fs::remove_file(
            world
                .dir
                .path()
                .join(format!("data/machines/{}.json", spec.execution)),
        )
        .unwrap();
        drop(runtime);
        let (_, recovered) = world.daemon().await;
        assert!(recovered.machines.is_empty());
        tokio::time::timeout(SOON, process.ended())
            .await
            .expect("it was ended");
        assert_eq!((world.files("run"), world.files("machines")), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn an_image_that_was_handed_over_and_not_laid_on_a_disk_is_not_taken_for_the_next_one() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (vm, machine) = start(&runtime, &spec).await;
        says(&vm, 1).await;
        // As if the daemon had died before it was laid on.
        let next = Disks::draw(Format::Qcow2);
        runtime.house.vmm.disks.make(next, 32 << 20).unwrap();
        vm.note(|record| record.own.next = Some(next)).await.unwrap();
        let opened = runtime.house.vmm.disks.open_image(next, true).unwrap();
        let set = vm
            .monitor
            .add(opened.write.as_ref().unwrap().as_fd(), None)
            .await
            .unwrap();
        let image = crate::disk::Image {
            path: crate::command::set_path(set),
            format: next.format,
        };
        let added = crate::command::overlay(&image, 2);
        vm.monitor.run("blockdev-add", added).await.unwrap();
        drop((vm, machine, runtime));
        let (runtime, mut recovered) = world.daemon().await;
        let (_, machine) = recovered.machines.pop().unwrap();
        assert!(
            !runtime.house.vmm.disks.is_image(next),
            "nothing names it any more"
        );
        machine.checkpoint(BuildId::random(), false).await.unwrap();
        machine.checkpoint(BuildId::random(), true).await.unwrap();
        let pid: u32 = machine.facts()["pid"].parse().unwrap();
        let top = machine.facts()["disk"].clone();
        assert!(open_below(pid, &world.dir.path().join("data/images")).contains(&(top.into(), true)));
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_a_machine_uses_of_the_host_is_bounded_and_its_groups_go_with_it() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let Some(groups) = runtime.house.vmm.groups.clone() else {
            crate::tests::not_run("there are no control groups for it");
            return;
        };
        let (vm, machine) = start(&runtime, &world.spec()).await;
        says(&vm, 1).await;
        let (id, pid) = (vm.execution.to_string(), vm.process.identity.pid);
        assert_eq!(
            (groups.ids(), groups.processes(&id)),
            (vec![id.clone()], vec![pid])
        );
        let of = |name: &str| {
            let mut files = groups.dirs(&id).into_iter().map(|dir| dir.join(name));
            files.find_map(|file| fs::read_to_string(file).ok())
        };
        let memory = of("memory.max").or_else(|| of("memory.limit_in_bytes")).unwrap();
        assert_eq!(memory.trim().parse(), Ok((64_u64 + 192 + 256) << 20));
        assert_eq!(of("pids.max").unwrap().trim(), "129");
        let time = of("cpu.max").or_else(|| of("cpu.cfs_quota_us")).unwrap();
        assert_eq!(time.split_whitespace().next(), Some("100000"));
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        for (name, bound) in [
            ("Max core file size", "0"),
            ("Max processes", "129"),
            ("Max open files", "1024"),
            ("Max file size", "335544320"),
        ] {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            assert_eq!(line.split_whitespace().nth(1), Some(bound), "{name}");
        }
        machine.stop(Fate::Discard).await.unwrap();
        assert!(groups.ids().is_empty());
        let first = (vm, machine);
        // What a daemon that died left is ended and removed, though nothing names it any more.
        let (vm, machine) = start(&runtime, &world.spec()).await;
        let id = vm.execution.to_string();
        let files = groups.create(
            "left",
            linux::cgroup::Limits {
                memory_bytes: 64 << 20,
                cpus: 1,
                tasks: 8,
            },
        );
        let mut stray = Command::new("/bin/sleep");
        stray.arg("600");
        linux::spawn::join(&mut stray, files.unwrap());
        let mut stray = tokio::process::Command::from(stray);
        let mut stray = stray.kill_on_drop(true).spawn().unwrap();
        let mut there = [id.clone(), "left".to_owned()];
        there.sort();
        assert_eq!(groups.ids(), there);
        drop((first, vm, machine, runtime));
        let (runtime, recovered) = world.daemon().await;
        let ended = tokio::time::timeout(SOON, stray.wait()).await;
        assert!(!ended.expect("it was ended").unwrap().success());
        assert_eq!((recovered.machines.len(), groups.ids()), (1, vec![id]));
        for (_, machine) in &recovered.machines {
            machine.stop(Fate::Discard).await.unwrap();
        }
        drop(recovered);
        runtime.close().await;
        assert!(groups.dirs("x").iter().all(|dir| !dir.parent().unwrap().exists()));
    })
    .await;
}
