//! MicroVMs with a real kernel, agent and envd under the real Firecracker: where `ATOLL_TEST_GUEST` names a bundle's directory, and
//! `/dev/kvm` runs guests.
use std::path::Path;
use std::time::Instant;

use tokio::io::AsyncReadExt as _;

use super::*;

/// A guest boots in a few seconds under emulation, and in many times that beside others.
const BOOTS: Duration = Duration::from_secs(120);
/// The whole of a test under emulation.
const ALL: Duration = Duration::from_secs(900);

struct Booted {
    _dir: tempfile::TempDir,
    runtime: Firecrackers,
    build: BuildId,
}

fn took(what: &str, since: Instant) {
    crate::tests::tell(&format!("{what}: {:?}", since.elapsed()));
}

impl Booted {
    async fn new(network: bool) -> Option<Self> {
        let Some(bundle) = std::env::var_os("ATOLL_TEST_GUEST") else {
            crate::tests::not_run("ATOLL_TEST_GUEST names no bundle, so nothing was booted");
            return None;
        };
        let (firecracker, jailer) = crate::tests::real()?;
        let bundle = guest::Bundle::load(Path::new(&bundle)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data: dir.path().join("fc"),
            firecracker,
            jailer,
            guest: Guest::from(&bundle),
            network,
            offline: false,
            metadata: network,
            differences: true,
            accepted: ["CVE-2026-122192", "firecracker-6100", "development-build"]
                .map(str::to_owned)
                .to_vec(),
            boots_within: BOOTS,
        };
        let begun = Instant::now();
        let runtime = match Firecrackers::open(config).await {
            Ok(runtime) => runtime,
            Err(error) => panic!("{}", told(&error)),
        };
        runtime.recover().await.unwrap();
        took("open and recover", begun);
        let root = dir.path().join("root");
        for name in ["etc", "root", "tmp", "home"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        with_bash(&root);
        let passwd = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n";
        fs::write(root.join("etc/passwd"), passwd).unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
        let build = BuildId::random();
        let begun = Instant::now();
        runtime.import(build, vec![root]).await.unwrap();
        took("import", begun);
        Some(Self {
            _dir: dir,
            runtime,
            build,
        })
    }

    fn spec(&self) -> MachineSpec {
        MachineSpec {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            build: self.build,
            resources: Resources {
                cpu: 1,
                memory: MiB(128),
                disk: MiB(512),
            },
            network: NetworkPolicy {
                internet: Some(false),
                ..NetworkPolicy::default()
            },
            disk: DiskOrigin::Fresh,
            restore: false,
            volumes: Vec::new(),
        }
    }
}

/// Gives a root the host's shell, and what that is linked with.
fn with_bash(root: &Path) {
    let linked = std::process::Command::new("ldd")
        .arg("/bin/bash")
        .output()
        .unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/bin/bash"]) {
        let to = root.join(&file[1..]);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    fs::copy(root.join("bin/bash"), root.join("bin/sh")).unwrap();
}

/// The status that envd gives its health.
async fn health(machine: &dyn Machine) -> String {
    let mut stream = machine.envd().await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut said = vec![0; 12];
    stream.read_exact(&mut said).await.unwrap();
    String::from_utf8(said).unwrap()
}

async fn lives(network: bool) {
    let Some(booted) = Booted::new(network).await else {
        return;
    };
    let runtime = &booted.runtime;
    let spec = booted.spec();
    let begun = Instant::now();
    let (vm, machine) = start(runtime, &spec).await;
    took("boot until envd listens", begun);
    assert_eq!(health(&*machine).await, "HTTP/1.1 204");
    assert!(matches!(machine.dial(4321).await, Err(DialError::Closed(4321))));
    let usage = machine.usage().await.unwrap();
    assert!(
        usage.tasks > 0 && usage.memory_used_bytes > 0 && usage.disk_used_bytes > 0,
        "{usage:?}"
    );
    crate::tests::tell(&format!("{usage:?} {:?}", machine.facts()));
    let _ = vm;

    let begun = Instant::now();
    if runtime.probed().version.is_deaf_after_standing() {
        let error = machine.freeze().await.unwrap_err();
        crate::tests::not_run(&format!("a thaw: {error}"));
    } else {
        machine.freeze().await.unwrap();
        took("freeze", begun);
        let begun = Instant::now();
        machine.thaw().await.unwrap();
        took("thaw", begun);
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");
    }

    let begun = Instant::now();
    machine.hibernate().await.unwrap();
    took("hibernate, all of it", begun);
    let begun = Instant::now();
    let (_, machine) = start(runtime, &again(&spec, true)).await;
    took("restore until envd listens", begun);
    assert!(machine.is_restored());
    assert_eq!(health(&*machine).await, "HTTP/1.1 204");

    let begun = Instant::now();
    machine.hibernate().await.unwrap();
    took("hibernate, what differs", begun);
    let begun = Instant::now();
    let (vm, machine) = start(runtime, &again(&spec, true)).await;
    took("restore until envd listens, made whole before", begun);
    assert_eq!(health(&*machine).await, "HTTP/1.1 204");

    let into = BuildId::random();
    let begun = Instant::now();
    assert_eq!(
        machine.checkpoint(into, true).await.unwrap(),
        model::Memory::Durable
    );
    took("checkpoint with memory", begun);
    assert_eq!(health(&*machine).await, "HTTP/1.1 204");
    let mut forks = Vec::new();
    for _ in 0..3 {
        let fork = MachineSpec {
            build: into,
            restore: true,
            ..booted.spec()
        };
        let begun = Instant::now();
        let (_, machine) = start(runtime, &fork).await;
        took("fork until envd listens", begun);
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");
        forks.push(machine);
    }
    for fork in forks {
        fork.stop(Fate::Discard).await.unwrap();
    }
    let mut ended = machine.ended();
    vm.process.kill();
    let died = tokio::time::timeout(Duration::from_secs(1), ended.wait_for(Option::is_some)).await;
    assert_eq!(*died.unwrap().unwrap(), Some(Ended::Died));
    machine.stop(Fate::Keep).await.unwrap();
    let begun = Instant::now();
    let (_, machine) = start(runtime, &again(&spec, false)).await;
    took("boot from the disk that was kept", begun);
    assert_eq!(health(&*machine).await, "HTTP/1.1 204");
    machine.stop(Fate::Discard).await.unwrap();
    runtime.close().await;
    assert!(runtime.house.vmm.jails.ids().is_empty() && runtime.house.vmm.jails.cgroups.ids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microvm_boots_is_restored_and_forked_without_a_network() {
    tokio::time::timeout(ALL, lives(false))
        .await
        .expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microvm_boots_is_restored_and_forked_with_a_network() {
    tokio::time::timeout(ALL, lives(true))
        .await
        .expect("the test hangs");
}
