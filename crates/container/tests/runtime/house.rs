//! A runtime of a test's own, and its machines.
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use container::{Config, Containers};
use model::{BuildId, ExecutionId, MiB, NetworkPolicy, Resources, SandboxId};
use ports::runtime::{Disk, DiskOrigin};
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
    let Some(bin) = std::env::var_os("ATOLL_TEST_BIN_DIR").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: ATOLL_TEST_BIN_DIR names no directory with atoll-launcher, atoll-envd and atoll-sudo"
        );
        return;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the container runtime needs root");
        return;
    }
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let base = base(&tokio, &bin);
    let house = tokio.block_on(House::open(dir, &bin, pool, base));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tokio.block_on(test(&house))));
    tokio.block_on(house.close());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The base of all houses of this run, imported once: it is copied from half of `/etc`, and no machine changes it.
fn base(tokio: &tokio::runtime::Runtime, bin: &Path) -> BuildId {
    static BASE: Mutex<Option<BuildId>> = Mutex::new(None);
    let mut made = BASE.lock().expect("a base can be made");
    *made.get_or_insert_with(|| {
        let _ = std::fs::remove_dir_all(base_dir());
        let runtime = Containers::open(config(&base_dir(), bin, 0)).expect("a runtime");
        let build = BuildId::random();
        tokio.block_on(runtime.import_host(build)).expect("a base");
        tokio.block_on(runtime.close());
        build
    })
}

fn base_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("base")
}

fn config(data: &Path, bin: &Path, pool: usize) -> Config {
    Config {
        data: data.to_owned(),
        envd: bin.join("atoll-envd"),
        sudo: bin.join("atoll-sudo"),
        launcher: bin.join("atoll-launcher"),
        pool,
    }
}

impl House {
    async fn open(dir: &Path, bin: &Path, pool: usize, build: BuildId) -> Self {
        let runtime = Containers::open(config(dir, bin, pool)).expect("a runtime");
        let recovered = runtime.recover().await.expect("recovery");
        assert!(recovered.machines.is_empty());
        // It names its layers by their paths.
        let known = format!("builds/{build}.json");
        std::fs::copy(base_dir().join(&known), dir.join(&known)).expect("the base is known");
        Self {
            runtime,
            build,
            dir: dir.to_owned(),
            machines: Mutex::default(),
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

    async fn close(self) {
        self.stop_all().await;
        self.runtime.close().await;
        assert_eq!(self.records(), 0, "whoever closes leaves nothing");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let below = self.dir.join("volume");
        assert!(
            !mounts.contains(&below.display().to_string()),
            "the volume is unmounted"
        );
    }
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
