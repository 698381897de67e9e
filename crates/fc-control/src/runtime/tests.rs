use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use microvm::stray::{kill_if, started_with, words};
use model::{ExecutionId, MiB, NetworkPolicy, Resources};
use ports::guest::DialError;
use ports::runtime::{Disk as Fate, Ended, Recovered};
use ports::{Machine, Runtime as _};
use tokio::io::AsyncWriteExt as _;

use self::fake::{Fakes, Orders, until};
use super::*;
use crate::api::request::{self, InstanceState};
use crate::memory::{Pages, Place};
use crate::process::Launch;
use crate::version::Version;

mod boot;
mod deaths;
mod fake;
mod real;
mod travel;

/// No test takes longer, whatever hangs.
const WHOLE: Duration = Duration::from_secs(120);
/// Below it is the host's, and above it, here, nobody's.
static NEXT_UID: AtomicU32 = AtomicU32::new(0x7f00_0000);
/// All that a machine which boots is asked, in this order.
const BOOT: [&str; 7] = [
    "PUT /machine-config",
    "PUT /boot-source",
    "PUT /drives/root",
    "PUT /vsock",
    "PUT /entropy",
    "PUT /actions",
    "",
];
/// And one that is restored.
const RESTORE: [&str; 3] = ["PUT /snapshot/load", "PATCH /drives/root", "PATCH /vm Resumed"];

/// Where a world is.
enum Dir {
    /// It goes with the test.
    Own(tempfile::TempDir),
    /// It is whoever's who named it.
    Others(PathBuf),
}

impl Dir {
    fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Others(dir) => dir,
        }
    }
}

/// A runtime of its own. Every Firecracker of it dies with the test.
struct World {
    dir: Dir,
    fakes: Arc<Fakes>,
    build: BuildId,
    differences: bool,
    version: &'static str,
    boots_within: Duration,
    first_uid: u32,
}

struct Shared(Arc<Fakes>);

#[async_trait]
impl Launch for Shared {
    async fn launch(
        &self,
        jail: &crate::jail::Jail,
        arguments: &[std::ffi::OsString],
        output: crate::process::Output,
    ) -> Result<u32, Step> {
        self.0.launch(jail, arguments, output).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let ids = fs::read_dir(self.dir.path().join("data/jail/firecracker"));
        for id in ids.into_iter().flatten().flatten() {
            for pid in started_with(&[words("--id", &id.file_name().to_string_lossy())]) {
                kill_if(pid, |_| true);
            }
        }
    }
}

impl World {
    /// `None`, said loudly, where it cannot be.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            crate::tests::not_run("it takes root to give files away");
            return None;
        }
        let dir = Dir::Own(tempfile::tempdir().unwrap());
        Some(Self::on(dir, NEXT_UID.fetch_add(4096, Ordering::SeqCst)))
    }

    /// One that is in a directory already, or from now on.
    fn on(dir: Dir, first_uid: u32) -> Self {
        fs::write(dir.path().join("kernel"), b"\x7fELF kernel").unwrap();
        fs::write(dir.path().join("initrd"), "initrd").unwrap();
        Self {
            fakes: Arc::new(Fakes::new(&dir.path().join("fakes"))),
            dir,
            build: BuildId::random(),
            differences: true,
            version: "1.16.2",
            boots_within: Duration::from_secs(20),
            first_uid,
        }
    }

    fn config(&self) -> Config {
        Config {
            data: self.dir.path().join("data"),
            firecracker: "/nowhere/firecracker".into(),
            jailer: "/nowhere/jailer".into(),
            guest: Guest {
                kernel: self.dir.path().join("kernel"),
                initrd: self.dir.path().join("initrd"),
                digest: "guest".into(),
            },
            network: false,
            offline: false,
            metadata: false,
            differences: self.differences,
            accepted: Vec::new(),
            boots_within: self.boots_within,
        }
    }

    /// A daemon, as it comes up.
    async fn daemon(&self) -> (Firecrackers, Recovered) {
        let config = self.config();
        prepare(&config.data).unwrap();
        let cgroups = ["memory", "cpu"].map(|name| self.dir.path().join("cgroup").join(name));
        let cgroups = Cgroups::below(cgroups.to_vec());
        let program = config.data.join("program/firecracker");
        let jails = Jails::open(&config.data, program, cgroups).unwrap();
        let probed = Probed {
            version: self.version.parse().unwrap(),
            snapshot_format: "11.0.0".to_owned(),
        };
        let numbers = Numbers::new(Slots::new(0, false), self.first_uid);
        let launcher = Box::new(Shared(Arc::clone(&self.fakes)));
        let house = house::open(config, probed, jails, launcher, numbers, None).unwrap();
        let runtime = Firecrackers::of(house);
        let recovered = runtime.recover().await.unwrap();
        (runtime, recovered)
    }

    /// A daemon with a build.
    async fn begin(&self) -> Firecrackers {
        let (runtime, _) = self.daemon().await;
        let disk = self.dir.path().join("root.ext4");
        fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        import::image_of(&runtime.house, self.build, &disk).unwrap();
        runtime
    }

    fn spec(&self) -> MachineSpec {
        MachineSpec {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            build: self.build,
            resources: Resources {
                cpu: 1,
                memory: MiB(64),
                disk: MiB(16),
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

    fn files(&self, kind: &str) -> usize {
        fs::read_dir(self.dir.path().join("data").join(kind))
            .unwrap()
            .count()
    }

    /// Nothing is left but so many images, states and kept sandboxes.
    async fn is_left(&self, images: usize, states: usize, kept: usize) {
        let found =
            || ["machines", "jail/firecracker", "images", "states", "kept"].map(|kind| self.files(kind));
        let wanted = [0, 0, images, states, kept];
        // What nobody needs is removed when there is time.
        let _ = tokio::time::timeout(Duration::from_secs(5), until("no more", || found() == wanted)).await;
        assert_eq!(found(), wanted);
        for hierarchy in ["memory", "cpu"] {
            let parent = self.dir.path().join("cgroup").join(hierarchy).join("parent");
            // It goes with the runtime.
            assert_eq!(fs::read_dir(parent).map_or(0, Iterator::count), 0);
        }
    }

    fn has_no_violation(&self, execution: ExecutionId) {
        let calls = self.fakes.calls(execution);
        let bad = calls.iter().find(|call| call.starts_with("VIOLATION"));
        assert_eq!(bad, None, "{calls:?}");
    }
}

async fn start(runtime: &Firecrackers, spec: &MachineSpec) -> (Arc<Vm>, Arc<dyn Machine>) {
    let started = match runtime.house.bring_up(spec.clone()).await {
        Ok(started) => started,
        Err(error) => {
            let calls = runtime.house.vmm.config.data.with_file_name("fakes");
            let calls = fs::read_to_string(calls.join(spec.execution.to_string()));
            panic!("{}; it was asked {calls:?}", told(&error));
        }
    };
    let vm = Arc::clone(started.vm());
    (vm, started.hand_over().unwrap())
}

async fn refused(runtime: &Firecrackers, spec: &MachineSpec) -> RuntimeError {
    runtime.start(spec.clone()).await.map(drop).unwrap_err()
}

fn again(spec: &MachineSpec, restore: bool) -> MachineSpec {
    MachineSpec {
        execution: ExecutionId::random(),
        disk: DiskOrigin::Kept,
        restore,
        ..spec.clone()
    }
}

/// How often a guest has done something, as its memory says, and as its disk does.
async fn did(machine: &dyn Machine) -> (u64, String) {
    (
        machine.usage().await.unwrap().tasks,
        machine.facts()["guest"].clone(),
    )
}

async fn whole(test: impl Future<Output = ()>) {
    tokio::time::timeout(WHOLE, test).await.expect("the test hangs");
}

#[tokio::test]
async fn a_machine_boots_stands_goes_on_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (vm, machine) = start(&runtime, &spec).await;
        let house = &runtime.house;
        assert_eq!(world.fakes.calls(spec.execution), BOOT[..6]);
        assert_eq!(
            fs::metadata(house.images.path(vm.record().disk.image))
                .unwrap()
                .len(),
            16 << 20
        );
        machine.freeze().await.unwrap();
        machine.freeze().await.unwrap();
        assert!(machine.is_frozen());
        machine.thaw().await.unwrap();
        machine.thaw().await.unwrap();
        let after = ["PATCH /vm Paused", "PATCH /vm Resumed", "resume false"];
        assert_eq!(world.fakes.calls(spec.execution)[6..], after);
        assert!(matches!(machine.dial(81).await, Err(DialError::Closed(81))));
        let mut stream = machine.dial(80).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let _envd = machine.envd().await.unwrap();
        let usage = machine.usage().await.unwrap();
        assert_eq!(
            (usage.memory_total_bytes, usage.disk_total_bytes, usage.tasks),
            (64 << 20, 16 << 20, 1)
        );
        assert_eq!(machine.facts()["user"], world.first_uid.to_string());
        machine.stop(Fate::Discard).await.unwrap();
        machine.stop(Fate::Discard).await.unwrap();
        assert!(machine.stop(Fate::Keep).await.is_err());
        assert_eq!(*machine.ended().borrow(), Some(Ended::Stopped));
        assert!(matches!(machine.dial(80).await, Err(DialError::Gone)));
        world.has_no_violation(spec.execution);
        runtime.close().await;
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn what_hibernates_goes_on_where_it_was_in_all_and_in_parts() {
    for differences in [true, false] {
        let Some(mut world) = World::new() else { return };
        world.differences = differences;
        whole(async {
            let runtime = world.begin().await;
            let spec = world.spec();
            let (_, machine) = start(&runtime, &spec).await;
            machine.hibernate().await.unwrap();
            machine.hibernate().await.unwrap();
            assert_eq!(*machine.ended().borrow(), Some(Ended::Stopped));
            for n in 1..=3 {
                let spec = again(&spec, true);
                let (_, machine) = start(&runtime, &spec).await;
                assert!(machine.is_restored() && !machine.is_frozen());
                // It is not told its name, which this guest's memory does not hold: it is who it was.
                let name = format!("agent  on disk {n}, Linux {n}");
                assert_eq!(did(&*machine).await, (n, name));
                let calls = world.fakes.calls(spec.execution);
                assert_eq!(calls, [RESTORE[0], RESTORE[1], RESTORE[2], "resume false"]);
                machine.hibernate().await.unwrap();
                let kept = runtime.house.book.kept.read(&spec.sandbox).unwrap().unwrap();
                let pages = kept.memory.unwrap().pages;
                // It may have been made whole already.
                assert!(differences || matches!(pages, Pages::Whole(_)), "{pages:?}");
                world.has_no_violation(spec.execution);
            }
            runtime.close().await;
            let kept = runtime.house.book.kept.read(&spec.sandbox).unwrap().unwrap();
            assert!(matches!(kept.memory.unwrap().pages, Pages::Whole(_)));
            world.is_left(2, 1, 1).await;
            runtime.discard(spec.sandbox).await.unwrap();
            world.is_left(1, 0, 0).await;
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_restored_is_written_down_as_a_difference_unless_nobody_knows_from_what() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let kinds = |vm: &Arc<Vm>| vm.record().own.base.is_some();
        let (vm, machine) = start(&runtime, &spec).await;
        assert!(!kinds(&vm), "one that boots differs from nothing");
        machine.hibernate().await.unwrap();
        let (vm, machine) = start(&runtime, &again(&spec, true)).await;
        assert!(kinds(&vm));
        // A copy without memory changes nothing about that, one with memory is what it differs from then.
        machine.checkpoint(BuildId::random(), false).await.unwrap();
        let before = vm.record().own.base;
        let into = BuildId::random();
        machine.checkpoint(into, true).await.unwrap();
        let now = vm.record().own.base.unwrap();
        assert_ne!(before, Some(now.clone()));
        let build = runtime.house.build(into).unwrap().unwrap();
        assert_eq!(build.memory.unwrap().id, now.id);
        // One that failed in its middle is nothing to differ from.
        world.fakes.order(&Orders {
            refuse: Some("PUT /snapshot/create".to_owned()),
            ..Orders::default()
        });
        assert!(machine.hibernate().await.is_err());
        assert!(!kinds(&vm));
        world.fakes.order(&Orders::default());
        machine.hibernate().await.unwrap();
        let (_, machine) = start(&runtime, &again(&spec, true)).await;
        assert!(did(&*machine).await.0 >= 4);
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn copies_of_a_machine_go_on_each_for_itself() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        for (memory, frozen) in [(true, false), (false, false), (true, true), (false, true)] {
            if frozen {
                machine.freeze().await.unwrap();
            }
            let into = BuildId::random();
            let kept = machine.checkpoint(into, memory).await.unwrap();
            assert_eq!(kept, runtime.memory_of(into).await);
            assert_eq!(kept == model::Memory::Durable, memory);
            assert_eq!(machine.is_frozen(), frozen);
            if frozen {
                machine.thaw().await.unwrap();
            }
            let (now, _) = did(&*machine).await;
            let copies = [(); 3].map(|()| MachineSpec {
                build: into,
                restore: true,
                ..world.spec()
            });
            let started = copies.iter().map(|copy| start(&runtime, copy));
            let mut users = BTreeSet::new();
            let mut running = Vec::new();
            for started in started {
                let (vm, copied) = started.await;
                users.insert(vm.monitor.jail.uid);
                running.push(copied);
            }
            assert_eq!(users.len(), 3);
            for (copied, spec) in running.iter().zip(&copies) {
                assert_eq!(copied.is_restored(), memory);
                let (did, told) = did(&**copied).await;
                assert_eq!(did, if memory { now } else { 0 });
                let name = if memory {
                    spec.sandbox.to_string()
                } else {
                    String::new()
                };
                assert_eq!(told, format!("agent {name} on disk {now}, Linux {did}"));
                // Each goes its own way.
                copied.freeze().await.unwrap();
                copied.thaw().await.unwrap();
                let (then, _) = self::did(&**copied).await;
                assert_eq!(then, did + 1);
                world.has_no_violation(spec.execution);
            }
            assert_eq!(did(&*machine).await.0, now);
            for copied in running {
                copied.stop(Fate::Discard).await.unwrap();
            }
            let sealed = BuildId::random();
            runtime.seal(into, sealed).await.unwrap();
            runtime.remove_builds(&[into]).await.unwrap();
            assert!(runtime.has_build(sealed).await && !runtime.has_build(into).await);
            assert_eq!(runtime.memory_of(sealed).await, model::Memory::None);
            runtime.remove_builds(&[sealed]).await.unwrap();
        }
        machine.stop(Fate::Keep).await.unwrap();
        let (_, machine) = start(&runtime, &again(&spec, false)).await;
        let (did, told) = did(&*machine).await;
        assert!(did == 0 && !told.contains("on disk 0"), "{told}");
        machine.stop(Fate::Discard).await.unwrap();
        runtime.close().await;
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn whatever_firecracker_refuses_or_dies_at_nothing_is_left_of_a_start() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let kept = world.spec();
        let (_, machine) = start(&runtime, &kept).await;
        machine.hibernate().await.unwrap();
        let record = runtime.house.book.kept.read(&kept.sandbox).unwrap();
        let orders = |request: &str, dies: usize| {
            let request = Some(request.to_owned());
            let orders = Orders::default();
            match dies {
                0 => Orders {
                    refuse: request,
                    ..orders
                },
                1 => Orders {
                    die: request,
                    ..orders
                },
                _ => Orders {
                    die_after: request,
                    ..orders
                },
            }
        };
        for how in 0..3 {
            for request in BOOT.iter().take(6) {
                world.fakes.order(&orders(request, how));
                let error = refused(&runtime, &world.spec()).await;
                assert!(
                    matches!(error, RuntimeError::Step { .. } | RuntimeError::NotUp { .. }),
                    "{request}: {error}"
                );
                world.is_left(2, 1, 1).await;
            }
            for request in RESTORE {
                world.fakes.order(&orders(request, how));
                let error = refused(&runtime, &again(&kept, true)).await;
                let is_told = match &error {
                    RuntimeError::CannotRestore { what, why } => {
                        what.contains(kept.sandbox.as_str()) && (how > 0 || why.contains("ordered"))
                    }
                    RuntimeError::Step { .. } | RuntimeError::NotUp { .. } => request == RESTORE[2],
                    _ => false,
                };
                assert!(is_told, "{request}: {error}");
                world.is_left(2, 1, 1).await;
                assert_eq!(runtime.house.book.kept.read(&kept.sandbox).unwrap(), record);
            }
        }
        world.fakes.order(&Orders {
            no_jail: true,
            ..Orders::default()
        });
        let error = refused(&runtime, &world.spec()).await;
        assert!(error.to_string().contains("jailer"), "{error}");
        world.is_left(2, 1, 1).await;
        world.fakes.order(&Orders::default());
        let (_, machine) = start(&runtime, &again(&kept, true)).await;
        machine.stop(Fate::Discard).await.unwrap();
        runtime.close().await;
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_does_not_come_up_or_does_not_become_itself_is_never_served() {
    let Some(mut world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let kept = world.spec();
        let (_, machine) = start(&runtime, &kept).await;
        machine.hibernate().await.unwrap();
        runtime.close().await;
        drop(runtime);
        world.boots_within = Duration::from_millis(300);
        let (runtime, _) = world.daemon().await;
        for orders in [
            Orders {
                silent: true,
                ..Orders::default()
            },
            Orders {
                stubborn: true,
                ..Orders::default()
            },
        ] {
            world.fakes.order(&orders);
            let spec = if orders.silent {
                world.spec()
            } else {
                again(&kept, true)
            };
            let begun = std::time::Instant::now();
            let error = refused(&runtime, &spec).await;
            assert!(matches!(error, RuntimeError::NotUp { .. }), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(5));
            world.is_left(2, 1, 1).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_given_back() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        for _ in 0..3 {
            let spec = world.spec();
            let waits = runtime.start(spec);
            let _ = tokio::time::timeout(Duration::from_millis(1), waits).await;
        }
        runtime.close().await;
        until("an end", || world.files("machines") == 0).await;
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn memory_that_does_not_fit_or_was_changed_is_not_brought_back() {
    let Some(mut world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        machine.hibernate().await.unwrap();
        let why = |error: RuntimeError| match error {
            RuntimeError::CannotRestore { what, why } => {
                assert!(what.contains(spec.sandbox.as_str()), "{what}");
                why
            }
            other => panic!("{other}"),
        };
        let kept = runtime.house.book.kept.read(&spec.sandbox).unwrap().unwrap();
        let place = Place::of(&runtime.house.states, kept.memory.as_ref().unwrap().id);
        let mut larger = again(&spec, true);
        larger.resources.memory = MiB(128);
        assert!(why(refused(&runtime, &larger).await).contains("its size"));
        let mut wider = again(&spec, true);
        wider.resources.cpu = 2;
        assert!(why(refused(&runtime, &wider).await).contains("processors"));
        let change = |path: &std::path::Path, change: &dyn Fn(&fs::File)| {
            // Root may, whatever the file says.
            change(&fs::File::options().read(true).write(true).open(path).unwrap());
        };
        use std::os::unix::fs::FileExt as _;
        type Damage<'a> = (&'a str, PathBuf, &'a dyn Fn(&fs::File), &'a dyn Fn(&fs::File));
        let memory = [0; 8];
        let damages: [Damage<'_>; 3] = [
            (
                "its memory: its content has changed",
                place.memory(),
                &|file| file.write_all_at(&[0x80], 9 * 4096).unwrap(),
                &|file| file.write_all_at(&[1], 9 * 4096).unwrap(),
            ),
            (
                "its memory: it has 1048576 bytes",
                place.memory(),
                &|file| file.set_len(1 << 20).unwrap(),
                &|file| {
                    file.set_len(64 << 20).unwrap();
                    file.write_all_at(&memory, 32 << 20).unwrap();
                },
            ),
            (
                "the state of its devices: its content has changed",
                place.state(),
                &|file| file.write_all_at(b"[", 0).unwrap(),
                &|file| file.write_all_at(b"{", 0).unwrap(),
            ),
        ];
        for (expected, path, damage, mend) in damages {
            change(&path, damage);
            let spec = again(&spec, true);
            let told = why(refused(&runtime, &spec).await);
            assert!(told.starts_with(expected), "{told}");
            assert!(
                world.fakes.calls(spec.execution).is_empty(),
                "nothing was started"
            );
            change(&path, mend);
        }
        // What was kept is as it was.
        assert_eq!(runtime.house.book.kept.read(&spec.sandbox).unwrap(), Some(kept));
        runtime.close().await;
        drop(runtime);
        for (version, expected) in [("1.16.1", "must not become older"), ("1.16.3", "")] {
            world.version = version;
            let (runtime, recovered) = world.daemon().await;
            assert_eq!(recovered.disks, [spec.sandbox]);
            if expected.is_empty() {
                let (_, machine) = start(&runtime, &again(&spec, true)).await;
                machine.hibernate().await.unwrap();
            } else {
                assert!(why(refused(&runtime, &again(&spec, true)).await).contains(expected));
            }
            runtime.close().await;
        }
        // And boots, whatever becomes of its memory.
        let (runtime, _) = world.daemon().await;
        let (_, machine) = start(&runtime, &again(&spec, false)).await;
        assert!(!machine.is_restored());
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_difference_whose_ground_was_changed_is_not_brought_back() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        let into = BuildId::random();
        machine.checkpoint(into, true).await.unwrap();
        // It stays a difference until somebody wants it whole.
        let turn = runtime.house.vmm.whole_turn.lock().await;
        machine.hibernate().await.unwrap();
        let kept = runtime.house.book.kept.read(&spec.sandbox).unwrap().unwrap();
        let Pages::Diff { base, .. } = kept.memory.as_ref().unwrap().pages else {
            panic!("{kept:?}")
        };
        assert_eq!(
            base,
            runtime.house.build(into).unwrap().unwrap().memory.unwrap().id
        );
        // What it stands on stays, also when nobody else needs it.
        runtime.remove_builds(&[into]).await.unwrap();
        let ground = Place::of(&runtime.house.states, base).memory();
        let mut bytes = fs::read(&ground).unwrap();
        bytes[5 << 20] = 1;
        fs::write(&ground, bytes).unwrap();
        drop(turn);
        let error = refused(&runtime, &again(&spec, true)).await;
        let RuntimeError::CannotRestore { why, .. } = &error else {
            panic!("{error}")
        };
        assert!(why.contains("its memory of before"), "{why}");
        assert_eq!(runtime.house.book.kept.read(&spec.sandbox).unwrap(), Some(kept));
        let (_, machine) = start(&runtime, &again(&spec, false)).await;
        machine.stop(Fate::Discard).await.unwrap();
        runtime.close().await;
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_written_down_goes_on() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        for request in ["PATCH /vm Paused", "PUT /snapshot/create"] {
            world.fakes.order(&Orders {
                refuse: Some(request.to_owned()),
                ..Orders::default()
            });
            let error = machine.hibernate().await.unwrap_err();
            assert!(matches!(error, RuntimeError::CannotCheckpoint { .. }), "{error}");
            let into = BuildId::random();
            let error = machine.checkpoint(into, true).await.unwrap_err();
            assert!(matches!(error, RuntimeError::CannotCheckpoint { .. }), "{error}");
            assert!(!runtime.has_build(into).await && !machine.is_frozen());
            assert!(machine.ended().borrow().is_none());
            world.fakes.order(&Orders::default());
            // It runs: its guest answers.
            machine.usage().await.unwrap();
        }
        let into = BuildId::random();
        assert_eq!(
            machine.checkpoint(into, true).await.unwrap(),
            model::Memory::Durable
        );
        machine.stop(Fate::Discard).await.unwrap();
        runtime.close().await;
        world.is_left(2, 1, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_firecracker_that_dies_is_told_within_a_second_and_its_disk_can_be_kept() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let ended = |machine: &Arc<dyn Machine>| {
            let mut ended = machine.ended();
            async move {
                let ended =
                    tokio::time::timeout(Duration::from_secs(1), ended.wait_for(Option::is_some)).await;
                *ended.expect("an end is noticed within a second").unwrap()
            }
        };
        let spec = world.spec();
        let (vm, machine) = start(&runtime, &spec).await;
        vm.process.kill();
        assert_eq!(ended(&machine).await, Some(Ended::Died));
        assert!(matches!(machine.dial(80).await, Err(DialError::Gone)));
        assert!(machine.hibernate().await.is_err());
        machine.stop(Fate::Discard).await.unwrap();
        world.is_left(1, 0, 0).await;
        // While it is written down, before and after it did that.
        for after in [false, true] {
            let spec = world.spec();
            let (_, machine) = start(&runtime, &spec).await;
            let request = Some("PUT /snapshot/create".to_owned());
            world.fakes.order(&if after {
                Orders {
                    die_after: request,
                    ..Orders::default()
                }
            } else {
                Orders {
                    die: request,
                    ..Orders::default()
                }
            });
            assert!(machine.hibernate().await.is_err());
            world.fakes.order(&Orders::default());
            assert_eq!(ended(&machine).await, Some(Ended::Died));
            machine.stop(Fate::Keep).await.unwrap();
            let (_, machine) = start(&runtime, &again(&spec, true)).await;
            assert!(!machine.is_restored());
            assert!(machine.facts()["guest"].contains("on disk 1"));
            machine.stop(Fate::Discard).await.unwrap();
        }
        runtime.close().await;
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_daemon_that_comes_back_finds_its_machines() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let [runs, stands, dies, copies] = [(); 4].map(|()| world.spec());
        let (first, _) = start(&runtime, &runs).await;
        let (_, machine) = start(&runtime, &stands).await;
        machine.freeze().await.unwrap();
        let (dead, _) = start(&runtime, &dies).await;
        let (copied, _) = start(&runtime, &copies).await;
        // As if it had died while this one was copied.
        copied.monitor.api.pause().await.unwrap();
        let state = Uuid::new_v4();
        copied
            .note(|record| {
                record.own.stands = true;
                record.own.copy.state = Some(state);
            })
            .await
            .unwrap();
        let place = Place::of(&runtime.house.states, state);
        place.make().unwrap();
        copied
            .monitor
            .jail
            .lend_out(&place.state(), &place.memory())
            .unwrap();
        dead.process.kill();
        dead.process.ended().await;
        drop((first, dead, copied, machine, runtime));

        let (runtime, recovered) = world.daemon().await;
        assert_eq!((recovered.disks, recovered.reclaimed), (vec![dies.sandbox], 1));
        assert_eq!(recovered.machines.len(), 3);
        assert_eq!(world.files("states"), 0);
        let users: BTreeSet<String> = recovered
            .machines
            .iter()
            .map(|(_, machine)| machine.facts()["user"].clone())
            .collect();
        assert_eq!(users.len(), 3);
        // Nobody gets the number of one that lives on.
        let (other, machine) = start(&runtime, &world.spec()).await;
        assert!(!users.contains(&other.monitor.jail.uid.to_string()));
        machine.stop(Fate::Discard).await.unwrap();
        for (spec, machine) in &recovered.machines {
            assert_eq!(machine.is_frozen(), spec.sandbox == stands.sandbox);
            machine.thaw().await.unwrap();
            machine.usage().await.unwrap();
            machine.checkpoint(BuildId::random(), true).await.unwrap();
            machine.stop(Fate::Discard).await.unwrap();
        }
        let (_, machine) = start(&runtime, &again(&dies, false)).await;
        machine.stop(Fate::Discard).await.unwrap();
        runtime.close().await;
        world.is_left(1 + 3, 3, 0).await;
    })
    .await;
}

#[tokio::test]
async fn what_a_daemon_that_died_in_a_start_left_is_ended_and_the_kept_disk_is_as_it_was() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        machine.hibernate().await.unwrap();
        runtime.close().await;
        let kept = runtime.house.book.kept.read(&spec.sandbox).unwrap();
        // It runs, and nobody has said so: neither which process it is, nor that it is up.
        let started = runtime.house.bring_up(again(&spec, true)).await.unwrap();
        let vm = Arc::clone(started.vm());
        vm.note(|record| record.process = None).await.unwrap();
        std::mem::forget(started);
        // And of this one there is not even a record any more.
        let stray = runtime.house.bring_up(world.spec()).await.unwrap();
        let lost = Arc::clone(stray.vm());
        runtime.house.book.machines.remove(&lost.execution).unwrap();
        std::mem::forget(stray);
        let (later, recovered) = world.daemon().await;
        assert_eq!(
            (recovered.machines.len(), recovered.disks, recovered.reclaimed),
            (0, vec![spec.sandbox], 1)
        );
        for vm in [vm, lost] {
            let ended = tokio::time::timeout(Duration::from_secs(10), vm.process.ended()).await;
            ended.expect("it was ended");
        }
        world.is_left(2, 1, 1).await;
        assert_eq!(later.house.book.kept.read(&spec.sandbox).unwrap(), kept);
        let (_, machine) = start(&later, &again(&spec, true)).await;
        assert!(machine.is_restored());
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn one_that_lives_and_does_not_answer_as_itself_is_ended_and_its_disk_kept() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (vm, _machine) = start(&runtime, &spec).await;
        world.fakes.order(&Orders {
            refuse: Some("GET /".to_owned()),
            ..Orders::default()
        });
        let (_later, recovered) = world.daemon().await;
        assert_eq!(
            (recovered.machines.len(), recovered.disks, recovered.reclaimed),
            (0, vec![spec.sandbox], 1)
        );
        let ended = tokio::time::timeout(Duration::from_secs(10), vm.process.ended()).await;
        ended.expect("it was ended");
        world.is_left(2, 0, 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_or_a_hibernation_that_was_cut_off_is_brought_to_its_end() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let [stops, hibernates] = [(); 2].map(|()| world.spec());
        let (stopping, _) = start(&runtime, &stops).await;
        stopping.note(|record| record.keep = true).await.unwrap();
        let (hibernating, _) = start(&runtime, &hibernates).await;
        // All was written, and it lives on for a moment.
        let state = Uuid::new_v4();
        let record = hibernating.record();
        hibernating.monitor.api.pause().await.unwrap();
        let place = Place::of(&runtime.house.states, state);
        place.make().unwrap();
        hibernating
            .monitor
            .jail
            .lend_out(&place.state(), &place.memory())
            .unwrap();
        let create = request::SnapshotCreate {
            snapshot_type: request::SnapshotType::Full,
            snapshot_path: Inside::OutState.path(),
            mem_file_path: Inside::OutMemory.path(),
        };
        hibernating.monitor.api.snapshot(&create).await.unwrap();
        for file in [place.state(), place.memory()] {
            take_back(&file).unwrap();
        }
        let house = &runtime.house;
        let fits = house.vmm.fits(&record);
        let whole = memory::Written::Whole;
        let memory = memory::seal(&house.vmm.known, &house.states, state, whole, fits).unwrap();
        house.keep(&record, Some(memory)).unwrap();
        drop((stopping, hibernating, runtime));
        let (later, mut recovered) = world.daemon().await;
        recovered.disks.sort();
        let mut both = vec![stops.sandbox, hibernates.sandbox];
        both.sort();
        assert_eq!((recovered.machines.len(), recovered.disks), (0, both));
        world.is_left(3, 1, 2).await;
        let (_, machine) = start(&later, &again(&hibernates, true)).await;
        assert!(machine.is_restored());
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_is_not_offered_is_refused_by_name_before_anything_is_made() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let mut wired = world.spec();
        wired.network = NetworkPolicy::default();
        let mut odd = world.spec();
        odd.resources.cpu = 3;
        for (spec, what) in [(wired, "internet access"), (odd, "vCPUs")] {
            let error = refused(&runtime, &spec).await;
            assert!(
                matches!(&error, RuntimeError::Unsupported { runtime: "firecracker", what: told } if told.contains(what)),
                "{error}"
            );
        }
        let nowhere = MachineSpec {
            build: BuildId::random(),
            ..world.spec()
        };
        assert!(matches!(refused(&runtime, &nowhere).await, RuntimeError::NoBuild(_)));
        let nothing = again(&world.spec(), true);
        assert!(matches!(refused(&runtime, &nothing).await, RuntimeError::NoDisk(_)));
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_second_machine_of_one_execution_is_refused_and_the_first_lives_on() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        let error = refused(&runtime, &spec).await;
        assert!(error.to_string().contains("a second time"), "{error}");
        machine.usage().await.unwrap();
        machine.stop(Fate::Discard).await.unwrap();
        world.is_left(1, 0, 0).await;
    })
    .await;
}

#[tokio::test]
async fn what_would_be_lost_after_it_stood_does_not_stand() {
    let Some(mut world) = World::new() else { return };
    world.version = "1.16.1";
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        let without_memory = machine.checkpoint(BuildId::random(), false).await.map(drop);
        for refused in [machine.freeze().await, without_memory] {
            let error = refused.unwrap_err();
            assert!(error.to_string().contains("firecracker-6100"), "{error}");
        }
        assert!(!machine.is_frozen());
        machine.checkpoint(BuildId::random(), true).await.unwrap();
        machine.hibernate().await.unwrap();
        let (_, machine) = start(&runtime, &again(&spec, true)).await;
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[test]
fn a_directory_that_cannot_be_is_told() {
    let told = |data: &str| {
        prepare(std::path::Path::new(data))
            .unwrap_err()
            .source
            .to_string()
    };
    assert!(told("relative").contains("absolute"));
    assert!(told(&format!("/tmp/{}", "x".repeat(60))).contains("bytes too long"));
}

#[test]
fn the_kernel_of_a_version_that_boots_no_bzimage_is_unpacked() {
    let one: Version = "1.16.2".parse().unwrap();
    let other: Version = "1.17.0".parse().unwrap();
    assert!(!one.boots_bzimage() && other.boots_bzimage());
}
