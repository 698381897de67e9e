use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use microvm::agent::{Agent, Name};
use microvm::record::FORM;
use model::{ExecutionId, MiB, NetworkPolicy, Resources};
use ports::guest::{DialError, Stream};
use ports::runtime::{Disk as Fate, Ended, Recovered, Usage};
use ports::{Machine, Runtime as _};
use tokio::time::Instant;

use super::*;

mod boot;
mod network;
mod rights;
mod travel;

const SOON: Duration = Duration::from_secs(30);
/// No test takes longer, whatever hangs.
const WHOLE: Duration = Duration::from_secs(120);

/// An agent that is always there: the guests of these tests have none.
#[derive(Default)]
struct Nobody {
    resumed: AtomicUsize,
}

struct Nobodies(Arc<Nobody>);

#[async_trait]
impl Agents for Nobodies {
    async fn call(&self, socket: &Path) -> io::Result<Arc<dyn Agent>> {
        tokio::net::UnixStream::connect(socket).await?;
        Ok(Arc::clone(&self.0) as Arc<dyn Agent>)
    }
}

#[async_trait]
impl Agent for Nobody {
    async fn hello(&self) -> io::Result<String> {
        Ok("nobody".to_owned())
    }
    async fn resume(&self, _: Option<&Name>) -> io::Result<()> {
        self.resumed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    async fn usage(&self) -> io::Result<Usage> {
        Ok(Usage::default())
    }
    fn line(&self) -> Option<guest::Line> {
        None
    }
    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError> {
        Err(DialError::Closed(port))
    }
    async fn over(&self) {
        std::future::pending().await
    }
}

/// A kernel of a few bytes: at each tick of the clock it says the next letter on the serial port.
fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 16 * 1024];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x1fe, &[0x55, 0xaa]);
    // The boot protocol's header is jumped over.
    put(0x200, &[0xeb, 0x66]);
    put(0x202, b"HdrS\x02\x02");
    put(0x211, &[1]);
    #[rustfmt::skip]
    put(0x268, &[
        0xfb,             // sti
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'a',       // mov al, 'a'
        0xee,             // again: out dx, al
        0xfe, 0xc0,       // inc al
        0x3c, b'{',       // cmp al, '{'
        0x75, 0x02,       // jne wait
        0xb0, b'a',       // mov al, 'a'
        0xf4,             // wait: hlt
        0xeb, 0xf4,       // jmp again
    ]);
    kernel
}

/// A runtime of its own. Every QEMU of it dies with the test.
struct World {
    dir: tempfile::TempDir,
    nobody: Arc<Nobody>,
    build: BuildId,
    network: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        let run = fs::read_dir(self.dir.path().join("data/run"));
        for entry in run.into_iter().flatten().flatten() {
            end_all(&entry.path());
        }
    }
}

impl World {
    /// `None`, said loudly, where there is no QEMU.
    fn new() -> Option<Self> {
        for program in ["qemu-system-x86_64", "qemu-img"] {
            if std::process::Command::new(program)
                .arg("--version")
                .output()
                .is_err()
            {
                crate::tests::not_run(&format!("{program} is not on PATH"));
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kernel"), kernel()).unwrap();
        fs::write(dir.path().join("initrd"), "none").unwrap();
        Some(Self {
            dir,
            nobody: Arc::default(),
            build: BuildId::random(),
            network: false,
        })
    }

    fn config(&self) -> Config {
        Config {
            data: self.dir.path().join("data"),
            qemu: "qemu-system-x86_64".into(),
            guest: Guest {
                kernel: self.dir.path().join("kernel"),
                initrd: self.dir.path().join("initrd"),
                digest: "letters".into(),
            },
            network: self.network,
            offline: false,
            boots_within: SOON,
        }
    }

    /// A daemon, as it comes up.
    async fn daemon(&self) -> (Qemus, Recovered) {
        let agents = Arc::new(Nobodies(Arc::clone(&self.nobody)));
        let runtime = Qemus::of(open_with(self.config(), agents).await.unwrap());
        let recovered = runtime.recover().await.unwrap();
        (runtime, recovered)
    }

    /// A daemon with a build.
    async fn begin(&self) -> Qemus {
        let (runtime, _) = self.daemon().await;
        let house = &runtime.house;
        let layer = Disks::draw(Format::Raw);
        fs::File::create(house.images.path(layer.id))
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let build = Build {
            form: FORM,
            disk: Disk {
                layers: vec![layer],
                size_bytes: 16 << 20,
            },
            memory: None,
            origin: None,
        };
        house.book.builds.write(&self.build, &build).unwrap();
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
                disk: MiB(32),
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
}

async fn start(runtime: &Qemus, spec: &MachineSpec) -> (Arc<Vm>, Arc<dyn Machine>) {
    let started = runtime.house.bring_up(spec.clone()).await.unwrap();
    let vm = Arc::clone(started.vm());
    (vm, started.hand_over().unwrap())
}

fn again(spec: &MachineSpec, restore: bool) -> MachineSpec {
    MachineSpec {
        execution: ExecutionId::random(),
        disk: DiskOrigin::Kept,
        restore,
        ..spec.clone()
    }
}

/// The letters that a guest has said. What firmware says before is none of it.
fn letters(vm: &Vm) -> String {
    let said = vm.process.log.tail(usize::MAX);
    let from = said
        .rfind(|c: char| !c.is_ascii_lowercase())
        .map_or(0, |at| at + 1);
    said[from..].to_owned()
}

async fn says(vm: &Vm, at_least: usize) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let said = letters(vm);
        if said.len() >= at_least {
            return said;
        }
        assert!(
            Instant::now() < deadline,
            "said {said:?} of {:?}",
            vm.process.log.tail(usize::MAX)
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The letter that a guest says at some place, counted from its boot.
fn letter_at(place: usize) -> char {
    (b'a'..=b'z').cycle().map(char::from).nth(place).unwrap()
}

fn after(letter: char) -> char {
    if letter == 'z' {
        'a'
    } else {
        char::from(letter as u8 + 1)
    }
}

fn last(said: &str) -> char {
    said.chars().next_back().unwrap()
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
        assert!(says(&vm, 2).await.starts_with('a'));
        machine.freeze().await.unwrap();
        machine.freeze().await.unwrap();
        assert!(machine.is_frozen());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stood = letters(&vm);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(letters(&vm), stood);
        machine.thaw().await.unwrap();
        machine.thaw().await.unwrap();
        assert!(says(&vm, stood.len() + 1).await.starts_with(&stood));
        assert!(matches!(machine.dial(80).await, Err(DialError::Closed(80))));
        machine.stop(Fate::Discard).await.unwrap();
        machine.stop(Fate::Discard).await.unwrap();
        assert_eq!(*machine.ended().borrow(), Some(Ended::Stopped));
        runtime.close().await;
        for (kind, files) in [
            ("run", 0),
            ("machines", 0),
            ("kept", 0),
            ("images", 1),
            ("states", 0),
        ] {
            assert_eq!(world.files(kind), files, "{kind}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_hibernates_goes_on_where_it_was() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (vm, machine) = start(&runtime, &spec).await;
        let mut said = says(&vm, 3).await;
        machine.hibernate().await.unwrap();
        assert_eq!(*machine.ended().borrow(), Some(Ended::Stopped));
        tokio::time::sleep(Duration::from_millis(50)).await;
        said.clone_from(&letters(&vm));
        // Again and again: each time one image more lies on its disk, until they are made one.
        for n in 1..=crate::disk::DEPTH_MAX + 2 {
            let (vm, machine) = start(&runtime, &again(&spec, true)).await;
            assert!(machine.is_restored() && !machine.is_frozen());
            assert_eq!(world.nobody.resumed.load(Ordering::SeqCst), n);
            assert_eq!(says(&vm, 1).await.chars().next().unwrap(), after(last(&said)));
            machine.hibernate().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            said = letters(&vm);
        }
        runtime.close().await;
        let kept = runtime.house.book.kept.read(&spec.sandbox).unwrap().unwrap();
        // Made one while it ran on: by what came meanwhile it is more.
        assert!(kept.disk.layers.len() < crate::disk::DEPTH_MAX, "{kept:?}");
        assert_eq!(
            (world.files("images"), world.files("states")),
            (kept.disk.layers.len(), 1)
        );
        runtime.discard(spec.sandbox).await.unwrap();
        assert_eq!((world.files("images"), world.files("states")), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn copies_of_a_machine_go_on_each_for_itself() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (vm, machine) = start(&runtime, &spec).await;
        says(&vm, 2).await;
        for (memory, frozen) in [(true, false), (false, false), (true, true), (false, true)] {
            if frozen {
                machine.freeze().await.unwrap();
            }
            let into = BuildId::random();
            let said = letters(&vm).len();
            let kept = machine.checkpoint(into, memory).await.unwrap();
            // A letter may be on its way.
            let copied_at = said..=letters(&vm).len() + 1;
            assert_eq!(kept, runtime.memory_of(into).await);
            assert_eq!(kept == model::Memory::Durable, memory);
            assert_eq!(machine.is_frozen(), frozen);
            if frozen {
                machine.thaw().await.unwrap();
            }
            let before = letters(&vm).len();
            says(&vm, before + 2).await;
            let copies = [(); 2].map(|()| MachineSpec {
                build: into,
                restore: true,
                ..world.spec()
            });
            for copy in &copies {
                let (copied, machine) = start(&runtime, copy).await;
                assert_eq!(machine.is_restored(), memory);
                let first = says(&copied, 1).await.remove(0);
                if memory {
                    assert!(
                        copied_at.clone().any(|place| letter_at(place) == first),
                        "{first} of {copied_at:?}"
                    );
                } else {
                    assert_eq!(first, 'a');
                }
                machine.stop(Fate::Discard).await.unwrap();
            }
            runtime.remove_builds(&[into]).await.unwrap();
        }
        assert_eq!(vm.record().disk.layers.len(), 2 + 4);
        machine.stop(Fate::Keep).await.unwrap();
        let (vm, machine) = start(&runtime, &again(&spec, false)).await;
        assert!(says(&vm, 1).await.starts_with('a'));
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn memory_that_does_not_fit_or_was_changed_is_not_brought_back() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (_, machine) = start(&runtime, &spec).await;
        machine.hibernate().await.unwrap();
        let kept = runtime.house.book.kept.read(&spec.sandbox).unwrap().unwrap();
        let mut larger = again(&spec, true);
        larger.resources.memory = MiB(65);
        let refused = runtime.start(larger).await.map(drop).unwrap_err();
        assert!(matches!(refused, RuntimeError::CannotRestore { .. }), "{refused}");
        let state = runtime.house.states.path(kept.memory.as_ref().unwrap().state);
        let mut bytes = fs::read(&state).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&state, bytes).unwrap();
        let refused = runtime.start(again(&spec, true)).await.map(drop).unwrap_err();
        let RuntimeError::CannotRestore { what, why } = &refused else {
            panic!("{refused}");
        };
        assert!(
            what.contains(spec.sandbox.as_str()) && why.contains("changed"),
            "{refused}"
        );
        // What was kept is as it was, and boots.
        assert_eq!(runtime.house.book.kept.read(&spec.sandbox).unwrap(), Some(kept));
        let (vm, machine) = start(&runtime, &again(&spec, false)).await;
        assert!(says(&vm, 1).await.starts_with('a') && !machine.is_restored());
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_daemon_that_comes_back_finds_its_machines() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let [runs, stands, dies, copies] = [(); 4].map(|()| world.spec());
        let (vm, _) = start(&runtime, &runs).await;
        let (_, machine) = start(&runtime, &stands).await;
        machine.freeze().await.unwrap();
        let (dead, _) = start(&runtime, &dies).await;
        let (copied, _) = start(&runtime, &copies).await;
        says(&copied, 2).await;
        // As if it had died while this one was copied.
        copied.monitor.run("stop", json!({})).await.unwrap();
        copied.note(|record| record.own.copying = true).await.unwrap();
        dead.process.kill();
        let mut ended = dead.ended_receiver();
        let how = tokio::time::timeout(Duration::from_secs(1), ended.wait_for(Option::is_some)).await;
        assert_eq!(
            *how.expect("an end is noticed within a second").unwrap(),
            Some(Ended::Died)
        );
        says(&vm, 1).await;
        drop((vm, dead, copied, machine, runtime));

        let (runtime, recovered) = world.daemon().await;
        assert_eq!((recovered.disks, recovered.reclaimed), (vec![dies.sandbox], 1));
        assert_eq!(recovered.machines.len(), 3);
        for (spec, machine) in &recovered.machines {
            assert_eq!(machine.is_frozen(), spec.sandbox == stands.sandbox);
            machine.thaw().await.unwrap();
            machine.stop(Fate::Discard).await.unwrap();
        }
        let (_, machine) = start(&runtime, &again(&dies, false)).await;
        machine.stop(Fate::Discard).await.unwrap();
        runtime.close().await;
        for (kind, files) in [
            ("run", 0),
            ("machines", 0),
            ("kept", 0),
            ("images", 1),
            ("states", 0),
        ] {
            assert_eq!(world.files(kind), files, "{kind}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_and_what_is_not_offered_is_refused_by_name() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let refused = |spec: MachineSpec| async { runtime.start(spec).await.map(drop).unwrap_err() };
        let online = MachineSpec {
            network: NetworkPolicy::default(),
            ..world.spec()
        };
        assert!(refused(online).await.to_string().contains("internet access"));
        let unknown = MachineSpec {
            build: BuildId::random(),
            ..world.spec()
        };
        assert!(matches!(refused(unknown).await, RuntimeError::NoBuild(_)));
        let spec = world.spec();
        assert!(matches!(
            refused(again(&spec, true)).await,
            RuntimeError::NoDisk(_)
        ));
        fs::remove_file(world.dir.path().join("initrd")).unwrap();
        let failed = refused(spec).await;
        let cause = std::error::Error::source(&failed)
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(failed.to_string().contains("initrd"), "{failed}: {cause}");
        runtime.close().await;
        for (kind, files) in [("run", 0), ("machines", 0), ("images", 1)] {
            assert_eq!(world.files(kind), files, "{kind}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_long_directory_is_refused_before_anything_is_made() {
    let Some(world) = World::new() else { return };
    let data = world.dir.path().join("x".repeat(60));
    let config = Config {
        data: data.clone(),
        ..world.config()
    };
    let refused = Qemus::open(config).await.map(drop).unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("too long") && !data.exists(), "{cause}");
}

#[tokio::test]
async fn a_machine_that_cannot_be_written_down_goes_on() {
    let Some(world) = World::new() else { return };
    whole(async {
        let runtime = world.begin().await;
        let spec = world.spec();
        let (vm, machine) = start(&runtime, &spec).await;
        says(&vm, 1).await;
        let states = world.dir.path().join("data/states");
        fs::remove_dir(&states).unwrap();
        let refused = machine.hibernate().await.unwrap_err();
        assert!(
            matches!(refused, RuntimeError::CannotCheckpoint { .. }),
            "{refused}"
        );
        let into = BuildId::random();
        let refused = machine.checkpoint(into, true).await.unwrap_err();
        assert!(
            matches!(refused, RuntimeError::CannotCheckpoint { .. }),
            "{refused}"
        );
        assert!(!runtime.has_build(into).await && !machine.is_frozen());
        assert!(machine.ended().borrow().is_none());
        let said = letters(&vm).len();
        says(&vm, said + 2).await;
        fs::create_dir(&states).unwrap();
        assert_eq!(
            machine.checkpoint(into, true).await.unwrap(),
            model::Memory::Durable
        );
        machine.stop(Fate::Discard).await.unwrap();
        runtime.close().await;
        assert_eq!(
            (world.files("images"), world.files("states"), world.files("kept")),
            (2, 1, 0)
        );
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
        let (later, recovered) = world.daemon().await;
        assert_eq!(
            (recovered.machines.len(), recovered.disks, recovered.reclaimed),
            (0, vec![spec.sandbox], 1)
        );
        let ended = tokio::time::timeout(SOON, vm.process.ended()).await;
        ended.expect("it was ended");
        // Both are in this process, so that the later one has a number of its own, by which it finds groups.
        vm.house.vmm.clear_groups(&BTreeSet::new()).unwrap();
        assert_eq!(later.house.book.kept.read(&spec.sandbox).unwrap(), kept);
        let (_, machine) = start(&later, &again(&spec, true)).await;
        assert!(machine.is_restored());
        machine.stop(Fate::Discard).await.unwrap();
    })
    .await;
}
