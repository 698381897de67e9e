//! The real Firecracker and jailer, where whoever runs the tests has them, as far as that goes without a processor for guests: up to
//! the boot, in a real jail, cgroup and network.
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::process;

/// Faults that the one at hand may have.
const ACCEPTED: [&str; 3] = ["CVE-2026-122192", "firecracker-6100", "development-build"];

/// `None`, said loudly, where it cannot be.
async fn open(dir: &std::path::Path, network: bool) -> Option<Firecrackers> {
    let (firecracker, jailer) = crate::tests::real()?;
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
        crate::tests::not_run("it takes root, and /dev/net/tun");
        return None;
    }
    // What it looks at before a boot.
    fs::write(dir.join("kernel"), b"\x7fELF kernel").unwrap();
    fs::write(dir.join("initrd"), "initrd").unwrap();
    let config = Config {
        data: dir.join("fc"),
        firecracker,
        jailer,
        guest: Guest {
            kernel: dir.join("kernel"),
            initrd: dir.join("initrd"),
            digest: "real".into(),
        },
        network,
        offline: true,
        metadata: network,
        differences: true,
        accepted: ACCEPTED.map(str::to_owned).to_vec(),
        boots_within: Duration::from_secs(20),
    };
    let runtime = match Firecrackers::open(config).await {
        Ok(runtime) => runtime,
        Err(error) => panic!("{}", told(&error)),
    };
    runtime.recover().await.unwrap();
    let disk = dir.join("root.ext4");
    fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    Some(runtime)
}

fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn jailed(network: bool) {
    let dir = tempfile::tempdir().unwrap();
    let Some(runtime) = open(dir.path(), network).await else {
        return;
    };
    let house = Arc::clone(&runtime.house);
    let build = BuildId::random();
    import::image_of(&house, build, &dir.path().join("root.ext4")).unwrap();
    let spec = MachineSpec {
        sandbox: SandboxId::random(),
        execution: ExecutionId::random(),
        build,
        resources: Resources {
            cpu: 2,
            memory: MiB(128),
            disk: MiB(16),
        },
        network: NetworkPolicy::default(),
        disk: DiskOrigin::Fresh,
        restore: false,
        volumes: Vec::new(),
    };
    let (execution, id) = (spec.execution, spec.execution.to_string());
    let plan = house.put_on_record(spec.clone()).unwrap();
    let (jail, record) = (house.vmm.jail(&plan.machine), plan.machine.clone());
    let namespace = start::furnish(&house, &jail, &record, plan.from, None).unwrap();
    let ready = jail.listen().unwrap();
    let arguments = house
        .vmm
        .jails
        .arguments(execution, jail.uid, &namespace.path(), record.spec.resources);
    let begun = std::time::Instant::now();
    let process = match process::start(&*house.vmm.launcher, &jail, &arguments).await {
        Ok(process) => process,
        Err(error) => panic!("{}", told(&error)),
    };
    let api = process::listen(&process, &jail.host(Inside::Api)).await.unwrap();
    let listens = begun.elapsed();
    start::configure(&house.vmm, &api, &record)
        .await
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    crate::tests::tell(&format!(
        "its API listens after {listens:?}, and it was told its machine after {:?}",
        begun.elapsed()
    ));
    jail.lock().unwrap();
    let instance = api.instance(Duration::from_secs(5)).await.unwrap();
    assert_eq!(
        (instance.id, instance.state),
        (id.clone(), InstanceState::NotStarted)
    );
    assert_eq!(api.version().await.unwrap(), house.vmm.probed.version.to_string());

    // As whom it runs, with what, and where.
    let pid = process.identity.pid;
    let uid = jail.uid.to_string();
    assert_eq!(status(pid, "Uid"), [&*uid; 4].join(" "));
    assert_eq!(status(pid, "Gid"), [&*uid; 4].join(" "));
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    assert!(
        status(pid, "NSpid").ends_with(" 1"),
        "it is alone in its namespace"
    );
    let inode = |path: String| fs::metadata(path).unwrap().ino();
    assert_eq!(
        inode(format!("/proc/{pid}/ns/net")),
        inode(namespace.path().display().to_string())
    );
    for kind in ["mnt", "net", "pid"] {
        assert_ne!(
            inode(format!("/proc/{pid}/ns/{kind}")),
            inode(format!("/proc/self/ns/{kind}"))
        );
    }
    assert_eq!(house.vmm.jails.cgroups.processes(&id), [pid]);
    assert_eq!(house.vmm.jails.cgroups.ids(), [&*id]);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.contains("Max open files            4096"), "{limits}");

    // Only errors are told twice: nothing boots from this kernel, and that is said.
    let error = api.start().await.unwrap_err();
    let crate::api::ApiError::Refused {
        status: 400, fault, ..
    } = &error
    else {
        panic!("{error}")
    };
    crate::tests::tell(&format!("it says: {fault}"));
    assert!(!fault.is_empty());

    drop((ready, namespace));
    let struck = Arc::clone(&house);
    blocking(move || struck.strike(&record)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), process.ended())
        .await
        .unwrap();
    assert!(house.vmm.jails.ids().is_empty() && house.vmm.jails.cgroups.ids().is_empty());
    // And the same through the front door: it does not come up, and nothing is left.
    let again = MachineSpec {
        execution: ExecutionId::random(),
        ..spec
    };
    let error = runtime.start(again).await.map(drop).unwrap_err();
    crate::tests::tell(&told(&error));
    assert!(house.vmm.jails.ids().is_empty() && house.vmm.jails.cgroups.ids().is_empty());
    assert!(house.book.machines.all().is_empty());
    runtime.close().await;
}

#[tokio::test]
async fn a_jail_is_what_it_is_said_to_be_without_a_network() {
    whole(jailed(false)).await;
}

#[tokio::test]
async fn a_jail_is_what_it_is_said_to_be_with_a_network() {
    whole(jailed(true)).await;
}
