//! Machines without processes. At each step they do what was asked, or what the script says.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use model::{BuildId, ExecutionId, Memory, NetworkPolicy, SandboxId};
use ports::runtime::{Capabilities, Disk, DiskOrigin, Ended, PartImage, PartImages, Parts, Recovered, Usage};
use ports::{DialError, Machine, MachineSpec, RuntimeError, Stream};
use tokio::sync::{Notify, watch};
use wire::init::Init;

use super::envd::{self, Ran, Script};

/// What happens at a step, once.
#[derive(Clone)]
pub(crate) enum Fault {
    /// It fails and changes nothing.
    Fail,
    /// The node has no room for it, and it changes nothing.
    NoRoom,
    /// It makes a build, and then fails.
    Half,
    /// It ends all processes, and then fails.
    FailDead,
    /// The first process dies; the step is done.
    Die,
    /// The journal cannot be written from here on; the step is done.
    NoJournal,
    /// It waits for this; then the step is done.
    Wait(Arc<Notify>),
    /// The disk is full from here on, and it fails.
    FillDisk,
    /// Something is killed for want of memory, and it fails.
    OutOfMemory,
}

/// What machines of a build begin with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// What was done to the disk.
    pub(crate) disk: Vec<String>,
    /// Layers that were imported.
    pub(crate) layers: Vec<PathBuf>,
    /// Programs that ran.
    pub(crate) memory: Option<Vec<String>>,
    /// Whether many share it.
    pub(crate) is_sealed: bool,
}

pub(crate) struct Runtime(Arc<Shared>);

pub(crate) struct Shared {
    journal: PathBuf,
    state: Mutex<State>,
    pub(crate) guest: Script,
}

#[derive(Default)]
struct State {
    machines: Vec<Arc<Fake>>,
    disks: BTreeSet<SandboxId>,
    /// Of kept disks: programs that ran.
    memories: BTreeMap<SandboxId, Vec<String>>,
    is_durable: bool,
    /// Whether builds stay where they are.
    is_rooted: bool,
    builds: BTreeMap<BuildId, Content>,
    script: VecDeque<(&'static str, Fault)>,
    steps: Vec<&'static str>,
    specs: Vec<MachineSpec>,
    inits: Vec<Init>,
}

pub(crate) struct Fake {
    pub(crate) shared: Arc<Shared>,
    pub(crate) spec: MachineSpec,
    frozen: AtomicBool,
    restored: bool,
    ended: watch::Sender<Option<Ended>>,
    pub(crate) content: Mutex<Content>,
    /// Programs that run.
    pub(crate) programs: Mutex<Vec<String>>,
    disk_used: AtomicU64,
    oom_kills: AtomicU64,
}

const HALF: &str = "half";

fn is_half(outcome: &Result<(), RuntimeError>) -> bool {
    matches!(outcome, Err(RuntimeError::Step { step, .. }) if step == HALF)
}

/// The size of every disk.
const DISK_BYTES: u64 = 1 << 30;

impl Shared {
    /// An envd was told its settings.
    pub(crate) fn take(&self, init: Init) {
        self.state().inits.push(init);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn away(&self) -> PathBuf {
        self.journal.with_extension("away")
    }

    /// A file in the place of its directory: nobody can write there, root neither.
    fn break_journal(&self) {
        std::fs::rename(&self.journal, self.away()).unwrap();
        std::fs::write(&self.journal, "").unwrap();
    }

    pub(crate) async fn step(&self, name: &'static str, machine: Option<&Fake>) -> Result<(), RuntimeError> {
        let fault = {
            let mut state = self.state();
            state.steps.push(name);
            let at = state.script.iter().position(|(step, _)| *step == name);
            at.and_then(|at| state.script.remove(at))
        };
        match fault.map(|(_, fault)| fault) {
            None => return Ok(()),
            Some(Fault::NoJournal) => {
                self.break_journal();
                return Ok(());
            }
            Some(Fault::Wait(until)) => {
                until.notified().await;
                return Ok(());
            }
            Some(Fault::Die) => {
                machine.unwrap().end(Ended::Died);
                return Ok(());
            }
            Some(Fault::FailDead) => machine.unwrap().end(Ended::Stopped),
            Some(Fault::FillDisk) => machine.unwrap().disk_used.store(DISK_BYTES, Ordering::SeqCst),
            Some(Fault::OutOfMemory) => {
                machine.unwrap().oom_kills.fetch_add(1, Ordering::SeqCst);
            }
            Some(Fault::Half) => {
                return Err(RuntimeError::Step {
                    step: HALF.to_owned(),
                    source: std::io::Error::other("as the script says"),
                });
            }
            Some(Fault::NoRoom) => return Err(RuntimeError::Exhausted("disk")),
            Some(Fault::Fail) => {}
        }
        Err(RuntimeError::Step {
            step: name.to_owned(),
            source: std::io::Error::other("as the script says"),
        })
    }
}

impl Runtime {
    pub(crate) fn new(journal: PathBuf) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            journal,
            state: Mutex::default(),
            guest: Script::default(),
        })))
    }

    /// Builds stay where they are, from now on.
    pub(crate) fn set_rooted(&self) {
        self.0.state().is_rooted = true;
    }

    /// Memory can be written down from now on, or not any more.
    pub(crate) fn set_durable(&self, is_durable: bool) {
        self.0.state().is_durable = is_durable;
    }

    /// What envd is told to do.
    pub(crate) fn guest(&self) -> &Script {
        &self.0.guest
    }

    /// A build that is there.
    pub(crate) fn add_build(&self, content: Content) -> BuildId {
        let build = BuildId::random();
        self.0.state().builds.insert(build, content);
        build
    }

    pub(crate) fn content(&self, build: BuildId) -> Option<Content> {
        self.0.state().builds.get(&build).cloned()
    }

    pub(crate) fn all_builds(&self) -> BTreeSet<BuildId> {
        self.0.state().builds.keys().copied().collect()
    }

    /// Every machine that was asked for since the last look.
    pub(crate) fn specs(&self) -> Vec<MachineSpec> {
        std::mem::take(&mut self.0.state().specs)
    }

    /// The settings that envds were told since the last look.
    pub(crate) fn inits(&self) -> Vec<Init> {
        std::mem::take(&mut self.0.state().inits)
    }

    /// All machines that there are.
    pub(crate) fn machine_count(&self) -> usize {
        self.0.state().machines.len()
    }

    /// Whether the memory of a sandbox lies beside its disk.
    pub(crate) fn has_memory(&self, sandbox: SandboxId) -> bool {
        self.0.state().memories.contains_key(&sandbox)
    }

    /// Programs that ran in labs and sandboxes since the last look.
    pub(crate) fn ran(&self) -> Vec<Ran> {
        self.0.guest.ran()
    }

    /// What is to happen at the next step of this name for which nothing else is said.
    pub(crate) fn at(&self, step: &'static str, fault: Fault) {
        self.0.state().script.push_back((step, fault));
    }

    pub(crate) fn break_journal(&self) {
        self.0.break_journal();
    }

    pub(crate) fn mend_journal(&self) {
        std::fs::remove_file(&self.0.journal).unwrap();
        std::fs::rename(self.0.away(), &self.0.journal).unwrap();
    }

    /// The machines of a sandbox: how each is.
    pub(crate) fn machines(&self, sandbox: SandboxId) -> Vec<&'static str> {
        let state = self.0.state();
        let its = state
            .machines
            .iter()
            .filter(|machine| machine.spec.sandbox == sandbox);
        its.map(|machine| match () {
            () if machine.ended.borrow().is_some() => "dead",
            () if machine.is_frozen() => "frozen",
            () => "running",
        })
        .collect()
    }

    pub(crate) fn has_disk(&self, sandbox: SandboxId) -> bool {
        self.0.state().disks.contains(&sandbox)
    }

    /// Somebody ends the first process of a sandbox.
    pub(crate) fn die(&self, sandbox: SandboxId) {
        let machines = self.0.state().machines.clone();
        for machine in machines.iter().filter(|machine| machine.spec.sandbox == sandbox) {
            machine.end(Ended::Died);
        }
    }

    /// The steps since the last look.
    pub(crate) fn steps(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.state().steps)
    }
}

impl Runtime {
    fn do_seal(&self, from: BuildId, into: BuildId) -> Result<(), RuntimeError> {
        let mut state = self.0.state();
        let content = state
            .builds
            .get(&from)
            .cloned()
            .ok_or(RuntimeError::NoBuild(from))?;
        let sealed = Content {
            memory: None,
            is_sealed: true,
            ..content
        };
        assert_eq!(state.builds.insert(into, sealed), None);
        Ok(())
    }
}

impl Fake {
    pub(crate) fn is_dead(&self) -> bool {
        self.ended.borrow().is_some()
    }

    fn end(&self, how: Ended) {
        self.ended.send_if_modified(|ended| {
            let is_news = ended.is_none();
            ended.get_or_insert(how);
            is_news
        });
    }
}

#[async_trait]
impl ports::Runtime for Runtime {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> Capabilities {
        let state = self.0.state();
        Capabilities {
            durable_memory: state.is_durable,
            freeze: true,
            own_kernel: false,
            network: true,
            volumes: true,
            roots: true,
            portable_builds: !state.is_rooted,
        }
    }

    async fn recover(&self) -> Result<Recovered, RuntimeError> {
        self.0.step("recover", None).await?;
        let mut state = self.0.state();
        // Whether the disk of a dead one is wanted is not the runtime's to know.
        let (dead, alive) = std::mem::take(&mut state.machines)
            .into_iter()
            .partition::<Vec<_>, _>(|machine| machine.ended.borrow().is_some());
        state
            .disks
            .extend(dead.into_iter().map(|machine| machine.spec.sandbox));
        state.machines = alive;
        let machines = state.machines.iter().map(|machine| {
            let handle = Handle(Arc::clone(machine));
            (machine.spec.clone(), Arc::new(handle) as Arc<dyn Machine>)
        });
        Ok(Recovered {
            machines: machines.collect(),
            disks: state.disks.iter().copied().collect(),
            reclaimed: 0,
        })
    }

    async fn has_build(&self, build: BuildId) -> bool {
        self.0.state().builds.contains_key(&build)
    }

    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, RuntimeError> {
        self.0.state().specs.push(spec.clone());
        self.0.step("start", None).await?;
        let cannot = |why: &str| RuntimeError::CannotRestore {
            what: spec.sandbox.to_string(),
            why: why.to_owned(),
        };
        if spec.restore && self.0.step("restore", None).await.is_err() {
            return Err(cannot("as the script says"));
        }
        let mut state = self.0.state();
        if spec.disk == DiskOrigin::Kept && !state.disks.contains(&spec.sandbox) {
            return Err(RuntimeError::NoDisk(spec.sandbox));
        }
        let content = state.builds.get(&spec.build).cloned().unwrap_or_default();
        let memory = match spec.disk {
            _ if !spec.restore => None,
            DiskOrigin::Kept => Some(
                state
                    .memories
                    .get(&spec.sandbox)
                    .cloned()
                    .ok_or_else(|| cannot("there is none"))?,
            ),
            DiskOrigin::Fresh | DiskOrigin::Single => content.memory.clone(),
        };
        if spec.disk == DiskOrigin::Kept {
            // It is the machine's now.
            state.disks.remove(&spec.sandbox);
            state.memories.remove(&spec.sandbox);
        }
        let machine = Arc::new(Fake {
            shared: Arc::clone(&self.0),
            spec,
            frozen: AtomicBool::new(false),
            restored: memory.is_some(),
            ended: watch::Sender::new(None),
            content: Mutex::new(content),
            programs: Mutex::new(memory.unwrap_or_default()),
            disk_used: AtomicU64::new(0),
            oom_kills: AtomicU64::new(0),
        });
        state.machines.push(Arc::clone(&machine));
        Ok(Arc::new(Handle(machine)))
    }

    async fn import(&self, build: BuildId, layers: Vec<PathBuf>) -> Result<(), RuntimeError> {
        self.0.step("import", None).await?;
        let content = Content {
            layers,
            ..Content::default()
        };
        assert_eq!(self.0.state().builds.insert(build, content), None);
        Ok(())
    }

    async fn seal(&self, from: BuildId, into: BuildId) -> Result<(), RuntimeError> {
        let said = self.0.step("seal", None).await;
        if said.is_err() && !is_half(&said) {
            return said;
        }
        self.do_seal(from, into)?;
        said
    }

    async fn builds(&self) -> Vec<BuildId> {
        self.all_builds().into_iter().collect()
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), RuntimeError> {
        self.0.step("remove", None).await?;
        self.0.state().builds.retain(|build, _| !builds.contains(build));
        Ok(())
    }

    async fn parts(&self, build: BuildId) -> Result<Parts, RuntimeError> {
        self.0.step("parts", None).await?;
        let content = self.content(build).ok_or(RuntimeError::NoBuild(build))?;
        let mut disk = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut disk, content.disk.join("\n").as_bytes()).unwrap();
        Ok(Parts {
            record: serde_json::json!({}),
            given: content.layers,
            images: [(PartImage::Own, disk)].into(),
        })
    }

    async fn assemble(
        &self,
        build: BuildId,
        _: &serde_json::Value,
        given: Vec<PathBuf>,
        images: &dyn PartImages,
    ) -> Result<(), RuntimeError> {
        self.0.step("assemble", None).await?;
        let mut disk = tempfile::tempfile().unwrap();
        let written = images.write(PartImage::Own, disk.try_clone().unwrap()).await;
        written.map_err(|source| RuntimeError::CannotAssemble {
            build,
            why: "its disk is not to be had".to_owned(),
            source: Some(source.into()),
        })?;
        let mut text = String::new();
        std::io::Seek::rewind(&mut disk).unwrap();
        std::io::Read::read_to_string(&mut disk, &mut text).unwrap();
        let content = Content {
            disk: text.lines().map(str::to_owned).collect(),
            layers: given,
            ..Content::default()
        };
        self.0.state().builds.insert(build, content);
        Ok(())
    }

    async fn memory_of(&self, build: BuildId) -> Memory {
        let state = self.0.state();
        match state
            .builds
            .get(&build)
            .is_some_and(|build| build.memory.is_some())
        {
            true => Memory::Durable,
            false => Memory::None,
        }
    }

    async fn copy_kept(&self, sandbox: SandboxId, into: BuildId) -> Result<(), RuntimeError> {
        self.0.step("copy kept", None).await?;
        let mut state = self.0.state();
        if !state.disks.contains(&sandbox) {
            return Err(RuntimeError::NoDisk(sandbox));
        }
        assert_eq!(state.builds.insert(into, Content::default()), None);
        Ok(())
    }

    async fn discard(&self, sandbox: SandboxId) -> Result<(), RuntimeError> {
        self.0.step("discard", None).await?;
        let mut state = self.0.state();
        state.disks.remove(&sandbox);
        state.memories.remove(&sandbox);
        Ok(())
    }

    async fn close(&self) {}
}

struct Handle(Arc<Fake>);

impl std::ops::Deref for Handle {
    type Target = Fake;
    fn deref(&self) -> &Fake {
        &self.0
    }
}

impl Fake {
    fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Machine for Handle {
    fn sandbox(&self) -> SandboxId {
        self.spec.sandbox
    }

    fn execution(&self) -> ExecutionId {
        self.spec.execution
    }

    async fn envd(&self) -> Result<Box<dyn Stream>, DialError> {
        if self.ended.borrow().is_some() {
            return Err(DialError::Gone);
        }
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(envd::serve(Arc::clone(&self.0), theirs));
        Ok(Box::new(ours))
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError> {
        Err(DialError::Closed(port))
    }

    async fn set_network(&self, _: &NetworkPolicy) -> Result<(), RuntimeError> {
        self.shared.step("network", Some(self)).await
    }

    async fn freeze(&self) -> Result<(), RuntimeError> {
        self.shared.step("freeze", Some(self)).await?;
        self.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), RuntimeError> {
        self.shared.step("thaw", Some(self)).await?;
        self.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn is_frozen(&self) -> bool {
        self.0.is_frozen()
    }

    async fn checkpoint(&self, into: BuildId, memory: bool) -> Result<Memory, RuntimeError> {
        let step = if memory { "checkpoint memory" } else { "checkpoint" };
        let said = self.shared.step(step, Some(self)).await;
        if said.is_err() && !is_half(&said) {
            return said
                .map(|()| Memory::None)
                .map_err(|error| if memory { cannot_checkpoint() } else { error });
        }
        let programs = self.programs.lock().unwrap().clone();
        let content = Content {
            memory: memory.then_some(programs),
            is_sealed: false,
            ..self.content.lock().unwrap().clone()
        };
        assert_eq!(self.shared.state().builds.insert(into, content), None);
        said?;
        Ok(if memory { Memory::Durable } else { Memory::None })
    }

    async fn hibernate(&self) -> Result<(), RuntimeError> {
        if let Err(error) = self.shared.step("hibernate", Some(self)).await {
            let is_alive = self.ended.borrow().is_none();
            return Err(if is_alive { cannot_checkpoint() } else { error });
        }
        self.end(Ended::Stopped);
        let mut state = self.shared.state();
        state.machines.retain(|machine| !Arc::ptr_eq(machine, &self.0));
        state.disks.insert(self.spec.sandbox);
        let programs = self.programs.lock().unwrap().clone();
        state.memories.insert(self.spec.sandbox, programs);
        Ok(())
    }

    fn is_restored(&self) -> bool {
        self.restored
    }

    async fn stop(&self, disk: Disk) -> Result<(), RuntimeError> {
        let step = match disk {
            Disk::Keep => "keep",
            Disk::Discard => "stop",
        };
        self.shared.step(step, Some(self)).await?;
        self.end(Ended::Stopped);
        let mut state = self.shared.state();
        let there = state.machines.len();
        state.machines.retain(|machine| !Arc::ptr_eq(machine, &self.0));
        if disk == Disk::Keep && state.machines.len() < there {
            state.disks.insert(self.spec.sandbox);
        }
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        Ok(Usage {
            disk_used_bytes: self.disk_used.load(Ordering::SeqCst),
            disk_total_bytes: DISK_BYTES,
            memory_total_bytes: 512 << 20,
            oom_kills: self.oom_kills.load(Ordering::SeqCst),
            ..Usage::default()
        })
    }

    fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.subscribe()
    }

    fn started_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn facts(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::new()
    }
}

fn cannot_checkpoint() -> RuntimeError {
    RuntimeError::CannotCheckpoint {
        why: "as the script says".to_owned(),
    }
}
