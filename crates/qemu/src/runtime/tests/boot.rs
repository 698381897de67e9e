//! Machines with a real kernel, agent and envd: where `ATOLL_TEST_GUEST` names a bundle's directory.
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

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
        let world = World::new()?;
        let bundle = guest::Bundle::load(Path::new(&bundle)).unwrap();
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
        let config = booted.runtime.house.config.clone();
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
