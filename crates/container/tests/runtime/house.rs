//! A runtime of a test's own, and its machines.
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use container::{Config, Containers};
use model::{BuildId, ExecutionId, MiB, NetworkPolicy, Resources, SandboxId};
use ports::runtime::{Disk, DiskOrigin, Recovered};
use ports::{Machine, MachineSpec, Runtime as _, RuntimeError};

/// How long a condition may take to become true.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct House {
    pub(crate) runtime: Containers,
    pub(crate) build: BuildId,
    pub(crate) dir: PathBuf,
    machines: Mutex<Vec<Arc<dyn Machine>>>,
}

/// Runs a test in a house over this machine's `/usr`, and closes it, whatever comes of the test.
pub(crate) fn with_house(test: impl AsyncFnOnce(&House)) {
    let dir = tempfile::tempdir().expect("a directory");
    with_house_in(dir.path(), 0, test);
}

/// The same in a directory of the test's own, with so many slots ahead.
pub(crate) fn with_house_in(dir: &Path, pool: usize, test: impl AsyncFnOnce(&House)) {
    let Some(bin) = programs() else { return };
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let base = base(&tokio, &bin);
    let house = tokio.block_on(House::open(dir, &bin, pool, base));
    run_in(&tokio, house, async |house, ()| test(house).await, ());
}

/// Two daemons, one after the other in one directory: the first is gone without a word when its part is done, and what it
/// said is told to the second.
pub(crate) fn with_two_daemons<T>(first: impl AsyncFnOnce(&House) -> T, second: impl AsyncFnOnce(&House, T)) {
    let Some(bin) = programs() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let base = base(&tokio, &bin);
    let house = tokio.block_on(House::open(dir.path(), &bin, 0, base));
    let told = tokio.block_on(first(&house));
    drop(house);
    // With it end the tasks that hold what the daemon held.
    drop(tokio);
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let house = tokio.block_on(House::open(dir.path(), &bin, 0, base));
    run_in(&tokio, house, second, told);
}

/// A daemon in the directory of a scene that ended with another's death; the sandboxes of the disks that it finds are told.
pub(crate) fn with_house_after(data: &Path, test: impl AsyncFnOnce(&House, Vec<SandboxId>)) {
    let Some(bin) = programs() else { return };
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let (runtime, recovered) = tokio.block_on(House::recover(data, &bin, 0));
    let disks = recovered.disks.clone();
    let house = House::with(runtime, recovered, BuildId::random(), data);
    run_in(&tokio, house, test, disks);
}

/// The directory of the scene that this process was started to play.
pub(crate) fn scene() -> Option<PathBuf> {
    std::env::var_os("ATOLL_TEST_SCENE").map(PathBuf::from)
}

fn run_in<T>(tokio: &tokio::runtime::Runtime, house: House, test: impl AsyncFnOnce(&House, T), told: T) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tokio.block_on(test(&house, told))
    }));
    tokio.block_on(house.close(outcome.is_ok()));
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn programs() -> Option<PathBuf> {
    let Some(bin) = std::env::var_os("ATOLL_TEST_BIN_DIR").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: ATOLL_TEST_BIN_DIR names no directory with atoll-launcher, atoll-envd and atoll-sudo"
        );
        return None;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the container runtime needs root");
        return None;
    }
    Some(bin)
}

/// The base of all houses of this run, imported once: it is copied from half of `/etc`, and no machine changes it.
fn base(tokio: &tokio::runtime::Runtime, bin: &Path) -> BuildId {
    static BASE: Mutex<Option<BuildId>> = Mutex::new(None);
    let mut made = BASE.lock().expect("a base can be made");
    *made.get_or_insert_with(|| {
        // A scene is played in the house of who had it played.
        if let Ok(build) = std::env::var(SCENE_BASE) {
            return build.parse().expect("a build");
        }
        let _ = std::fs::remove_dir_all(base_dir());
        let runtime = Containers::open(config(&base_dir(), bin, 0)).expect("a runtime");
        let build = BuildId::random();
        tokio.block_on(runtime.import_host(build)).expect("a base");
        tokio.block_on(runtime.close());
        build
    })
}

/// Whether memory can be saved on this machine is found out by the first who asks.
fn pass_on_what_was_tried(from: &Path, to: &Path) {
    let (from, to) = (from.join(TRIED), to.join(TRIED));
    if from.exists() && !to.exists() {
        let _ = std::fs::create_dir_all(to.parent().expect("it lies in a directory"));
        let _ = std::fs::copy(from, to);
    }
}

const TRIED: &str = "criu/tried.json";

fn base_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("base")
}

/// Names the base of scenes, which are processes of their own.
const SCENE_BASE: &str = "ATOLL_TEST_SCENE_BASE";

/// What a scene must be told of its base; `None` where none can be played.
pub(crate) fn base_of_scenes() -> Option<(&'static str, String)> {
    let bin = programs()?;
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    Some((SCENE_BASE, base(&tokio, &bin).to_string()))
}

fn config(data: &Path, bin: &Path, pool: usize) -> Config {
    Config {
        data: data.to_owned(),
        envd: bin.join("atoll-envd"),
        sudo: bin.join("atoll-sudo"),
        launcher: bin.join("atoll-launcher"),
        pool,
        criu: criu(),
    }
}

/// A CRIU that the test suite has set up; without one its tests say that they do not run.
pub(crate) fn criu() -> Option<PathBuf> {
    std::env::var_os("ATOLL_TEST_CRIU").map(PathBuf::from)
}

impl House {
    async fn open(dir: &Path, bin: &Path, pool: usize, build: BuildId) -> Self {
        pass_on_what_was_tried(&base_dir(), dir);
        let (runtime, recovered) = Self::recover(dir, bin, pool).await;
        // It names its layers by their paths.
        let known = format!("builds/{build}.json");
        std::fs::copy(base_dir().join(&known), dir.join(&known)).expect("the base is known");
        Self::with(runtime, recovered, build, dir)
    }

    async fn recover(dir: &Path, bin: &Path, pool: usize) -> (Containers, Recovered) {
        let runtime = Containers::open(config(dir, bin, pool)).expect("a runtime");
        let recovered = runtime.recover().await.expect("recovery");
        (runtime, recovered)
    }

    fn with(runtime: Containers, recovered: Recovered, build: BuildId, dir: &Path) -> Self {
        let adopted = recovered
            .machines
            .into_iter()
            .map(|(_, machine)| machine)
            .collect();
        Self {
            runtime,
            build,
            dir: dir.to_owned(),
            machines: Mutex::new(adopted),
        }
    }

    pub(crate) fn spec(&self) -> MachineSpec {
        MachineSpec {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            build: self.build,
            resources: Resources {
                cpu: 2,
                memory: MiB(512),
                disk: MiB(1024),
            },
            network: NetworkPolicy::default(),
            disk: DiskOrigin::Fresh,
            restore: false,
            volumes: Vec::new(),
        }
    }

    pub(crate) async fn start(&self) -> Arc<dyn Machine> {
        self.start_from(self.spec()).await.expect("a machine")
    }

    pub(crate) async fn start_from(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, RuntimeError> {
        let machine = self.runtime.start(spec).await?;
        Ok(self.adopt(machine))
    }

    /// Sees to its end.
    pub(crate) fn adopt(&self, machine: Arc<dyn Machine>) -> Arc<dyn Machine> {
        self.machines.lock().expect("a lock").push(Arc::clone(&machine));
        machine
    }

    /// All machines that have been started, or adopted, and not been seen to their end by [`House::stop_all`].
    pub(crate) fn machines(&self) -> Vec<Arc<dyn Machine>> {
        self.machines.lock().expect("a lock").clone()
    }

    pub(crate) async fn stop_all(&self) {
        let machines = std::mem::take(&mut *self.machines.lock().expect("a lock"));
        for machine in machines {
            let _ = machine.stop(Disk::Discard).await;
        }
    }

    /// Slots on record.
    pub(crate) fn records(&self) -> usize {
        std::fs::read_dir(self.dir.join("slots"))
            .expect("records")
            .count()
    }

    /// The disk that is kept for a sandbox.
    pub(crate) fn kept(&self, sandbox: SandboxId) -> PathBuf {
        ["disks", "volume"]
            .iter()
            .map(|volume| self.dir.join(volume).join(format!("kept/{sandbox}.img")))
            .find(|path| path.exists())
            .expect("a disk is kept")
    }

    async fn close(self, is_well: bool) {
        self.stop_all().await;
        self.runtime.close().await;
        pass_on_what_was_tried(&self.dir, &base_dir());
        // What a test that failed left is told by the failure.
        if !is_well {
            return;
        }
        assert_eq!(self.records(), 0, "whoever closes leaves nothing");
        let below = self.dir.display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let left: Vec<&str> = mounts
            .lines()
            // The directory itself may be the test's own mount.
            .filter(|line| line.contains(&format!("{below}/")))
            .collect();
        assert!(left.is_empty(), "all is unmounted: {left:?}");
        eventually("no device is behind a file of this house", || {
            devices_below(&below).is_empty()
        })
        .await;
    }

    /// Mounts of images on the host, by what they are below the directory of such mounts.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let below = format!("{}/", self.dir.join("mounts").display());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4)?.strip_prefix(&below).map(str::to_owned))
            .collect()
    }

    /// Where an image is mounted on the host, or would be.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.dir.join("mounts").join(name)
    }

    /// A file on the volume where disks lie.
    pub(crate) fn on_volume(&self, name: &str) -> PathBuf {
        ["disks", "volume"]
            .iter()
            .map(|volume| self.dir.join(volume).join(name))
            .find(|path| path.parent().is_some_and(Path::exists))
            .expect("there is a volume")
    }
}

/// Files below a directory that are behind loop devices.
pub(crate) fn devices_below(dir: &str) -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").expect("devices").flatten();
    devices
        .filter(|device| device.file_name().to_string_lossy().starts_with("loop"))
        .filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok())
        .filter(|file| file.starts_with(&format!("{dir}/")))
        .collect()
}

/// A directory of a machine's slot among this machine's control groups that holds this file.
pub(crate) fn group_file(slot: &str, name: &str) -> Option<PathBuf> {
    let roots = std::fs::read_dir("/sys/fs/cgroup").ok()?.flatten();
    roots
        .map(|root| root.path())
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .map(|root| root.join(slot).join(name))
        .find(|path| path.exists())
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
