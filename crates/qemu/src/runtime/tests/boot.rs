//! Machines with a real kernel, agent and envd: where `ATOLL_TEST_GUEST` names a bundle's directory.
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::network::{HOST, OUTSIDE, PORT, links, links_are_gone, on_a_host, rules};
use super::*;

mod client;

/// A guest boots in a few seconds under emulation, and in many times that beside others.
const BOOTS: Duration = Duration::from_secs(120);

struct Booted {
    world: World,
    runtime: Qemus,
}

impl Booted {
    async fn new() -> Option<Self> {
        let Some(bundle) = std::env::var_os("ATOLL_TEST_GUEST") else {
            crate::tests::not_run("ATOLL_TEST_GUEST names no bundle, so nothing was booted");
            return None;
        };
        Self::on(World::new()?, &bundle).await
    }

    async fn on(world: World, bundle: &std::ffi::OsStr) -> Option<Self> {
        let bundle = guest::Bundle::load(Path::new(bundle)).unwrap();
        let config = Config {
            guest: Guest::from(&bundle),
            boots_within: BOOTS,
            ..world.config()
        };
        let runtime = Qemus::open(config).await.unwrap();
        runtime.recover().await.unwrap();
        let layers = [world.dir.path().join("low"), world.dir.path().join("high")];
        for dir in ["etc", "root", "tmp", "home"] {
            fs::create_dir_all(layers[0].join(dir)).unwrap();
        }
        with_bash(&layers[0]);
        fs::create_dir_all(layers[1].join("etc")).unwrap();
        fs::write(
            layers[1].join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
        )
        .unwrap();
        fs::write(layers[1].join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
        runtime.import(world.build, layers.to_vec()).await.unwrap();
        Some(Self { world, runtime })
    }

    fn spec(&self) -> MachineSpec {
        let spec = self.world.spec();
        MachineSpec {
            resources: Resources {
                cpu: 1,
                memory: MiB(256),
                disk: MiB(512),
            },
            ..spec
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

#[tokio::test(flavor = "multi_thread")]
async fn envd_answers_after_a_boot_a_pause_a_restore_and_in_copies() {
    let Some(booted) = Booted::new().await else { return };
    let test = async {
        let runtime = &booted.runtime;
        let spec = booted.spec();
        let took = |what: &str, since: Instant| crate::tests::tell(&format!("{what}: {:?}", since.elapsed()));
        let begun = Instant::now();
        let (_, machine) = start(runtime, &spec).await;
        took("boot until envd listens", begun);
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");
        assert!(matches!(machine.dial(4321).await, Err(DialError::Closed(4321))));
        let usage = machine.usage().await.unwrap();
        assert!(
            usage.tasks > 0 && usage.memory_used_bytes > 0 && usage.disk_used_bytes > 0,
            "{usage:?}"
        );
        crate::tests::tell(&format!("{usage:?} {:?}", machine.facts()));

        let begun = Instant::now();
        machine.freeze().await.unwrap();
        took("freeze", begun);
        let begun = Instant::now();
        machine.thaw().await.unwrap();
        took("thaw", begun);
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");

        let begun = Instant::now();
        machine.hibernate().await.unwrap();
        took("hibernate", begun);
        let begun = Instant::now();
        let (_, machine) = start(runtime, &again(&spec, true)).await;
        took("restore until envd listens", begun);
        assert!(machine.is_restored());
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");

        let into = BuildId::random();
        let begun = Instant::now();
        assert_eq!(
            machine.checkpoint(into, true).await.unwrap(),
            model::Memory::Durable
        );
        took("checkpoint with memory", begun);
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");
        for _ in 0..2 {
            let fork = MachineSpec {
                build: into,
                restore: true,
                ..booted.spec()
            };
            let begun = Instant::now();
            let (_, fork) = start(runtime, &fork).await;
            took("fork until envd listens", begun);
            assert!(fork.is_restored());
            assert_eq!(health(&*fork).await, "HTTP/1.1 204");
            fork.stop(Fate::Discard).await.unwrap();
        }
        let spec = again(&spec, false);
        machine.stop(Fate::Keep).await.unwrap();
        let (_, machine) = start(runtime, &spec).await;
        assert!(!machine.is_restored());
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");
        machine.stop(Fate::Discard).await.unwrap();
    };
    tokio::time::timeout(2 * BOOTS, test)
        .await
        .expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_comes_back_talks_to_the_guests_of_the_one_before() {
    let Some(booted) = Booted::new().await else { return };
    let test = async {
        let spec = booted.spec();
        let (vm, machine) = start(&booted.runtime, &spec).await;
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");
        drop((vm, machine));
        let config = booted.runtime.house.vmm.config.clone();
        let runtime = Qemus::open(config).await.unwrap();
        let mut recovered = runtime.recover().await.unwrap();
        let (found, machine) = recovered.machines.pop().unwrap();
        assert_eq!(found, spec);
        assert_eq!(health(&*machine).await, "HTTP/1.1 204");
        machine.stop(Fate::Discard).await.unwrap();
    };
    tokio::time::timeout(2 * BOOTS, test)
        .await
        .expect("the test hangs");
}

/// What a guest hears from an address that echoes; `no` where it does not reach it.
async fn hears(machine: &dyn Machine, address: impl std::fmt::Display) -> String {
    let line = format!(
        "(exec 3<>/dev/tcp/{address}/{PORT} && echo hello >&3 && read -r -t 5 said <&3 && echo \"$said\") 2>/dev/null \
         || echo no"
    );
    client::run(machine, "root", &line).await.trim().to_owned()
}

#[test]
fn a_guest_reaches_what_its_policy_allows_and_goes_on_in_another_slot() {
    let Some(bundle) = std::env::var_os("ATOLL_TEST_GUEST") else {
        crate::tests::not_run("ATOLL_TEST_GUEST names no bundle, so nothing was booted");
        return;
    };
    on_a_host(move || async move {
        let Some(world) = World::networked() else { return };
        let Some(booted) = Booted::on(world, &bundle).await else {
            return;
        };
        let test = async {
            let runtime = &booted.runtime;
            let network = runtime.house.vmm.network.as_ref().unwrap();
            let spec = MachineSpec {
                network: NetworkPolicy::default(),
                ..booted.spec()
            };
            let (vm, machine) = start(runtime, &spec).await;
            assert_eq!(vm.record().own.slot, Some(0));
            assert_eq!(hears(&*machine, OUTSIDE).await, "hello");
            // More than a packet, both ways.
            let line = format!(
                "exec 3<>/dev/tcp/{OUTSIDE}/{PORT} && {{ printf '%0200000d' 7 >&3 & }} \
                 && read -r -t 60 -N 200000 said <&3 && echo ${{#said}}"
            );
            assert_eq!(client::run(&*machine, "root", &line).await.trim(), "200000");
            let asks = client::run(&*machine, "root", "echo \"$(</etc/resolv.conf)\"").await;
            let servers = net::resolvers_of_host().len().min(net::RESOLVERS_MAX);
            assert_eq!(asks.matches("nameserver 169.254.53.").count(), servers, "{asks}");
            let near = [
                "192.168.50.10".to_owned(),
                "172.16.0.1".to_owned(),
                "169.254.53.1".to_owned(),
                HOST[0].to_string(),
                HOST[1].to_string(),
            ];
            for address in &near {
                assert_eq!(hears(&*machine, address).await, "no", "{address}");
            }
            let closed = NetworkPolicy {
                internet: Some(false),
                ..NetworkPolicy::default()
            };
            machine.set_network(&closed).await.unwrap();
            assert_eq!(hears(&*machine, OUTSIDE).await, "no");
            machine.freeze().await.unwrap();
            machine.set_network(&NetworkPolicy::default()).await.unwrap();
            machine.thaw().await.unwrap();
            assert_eq!(hears(&*machine, OUTSIDE).await, "hello");

            let into = BuildId::random();
            assert_eq!(
                machine.checkpoint(into, true).await.unwrap(),
                model::Memory::Durable
            );
            let fork = MachineSpec {
                build: into,
                restore: true,
                network: NetworkPolicy::default(),
                ..booted.spec()
            };
            let (copied, fork) = start(runtime, &fork).await;
            assert_eq!((fork.is_restored(), copied.record().own.slot), (true, Some(1)));
            assert_eq!(hears(&*fork, OUTSIDE).await, "hello");
            assert_eq!(hears(&*machine, OUTSIDE).await, "hello");
            fork.stop(Fate::Discard).await.unwrap();

            machine.hibernate().await.unwrap();
            links_are_gone().await;
            assert_eq!(network.draw().unwrap(), 0);
            let (vm, machine) = start(runtime, &again(&spec, true)).await;
            assert_eq!((machine.is_restored(), vm.record().own.slot), (true, Some(1)));
            assert_eq!(hears(&*machine, OUTSIDE).await, "hello");
            assert_eq!(hears(&*machine, HOST[0]).await, "no");
            machine.set_network(&closed).await.unwrap();
            assert_eq!(hears(&*machine, OUTSIDE).await, "no");
            machine.stop(Fate::Discard).await.unwrap();
            links_are_gone().await;
            runtime.close().await;
            assert_eq!((links(), rules()), (Vec::new(), String::new()));
        };
        tokio::time::timeout(3 * BOOTS, test)
            .await
            .expect("the test hangs");
    });
}
