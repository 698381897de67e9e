//! Machines without processes. At each step they do what was asked, or what the script says.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use model::{BuildId, ExecutionId, NetworkPolicy, SandboxId};
use ports::runtime::{Capabilities, Disk, DiskOrigin, Ended, Recovered, Usage};
use ports::{DialError, Machine, MachineSpec, RuntimeError, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};

/// What happens at a step, once.
#[derive(Clone)]
pub(crate) enum Fault {
    /// It fails and changes nothing.
    Fail,
    /// It ends all processes, and then fails.
    FailDead,
    /// The first process dies; the step is done.
    Die,
    /// The journal cannot be written from here on; the step is done.
    NoJournal,
    /// It waits for this; then the step is done.
    Wait(Arc<Notify>),
}

pub(crate) struct Runtime(Arc<Shared>);

struct Shared {
    journal: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    machines: Vec<Arc<Fake>>,
    disks: BTreeSet<SandboxId>,
    script: VecDeque<(&'static str, Fault)>,
    steps: Vec<&'static str>,
}

struct Fake {
    shared: Arc<Shared>,
    spec: MachineSpec,
    frozen: AtomicBool,
    ended: watch::Sender<Option<Ended>>,
}

impl Shared {
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

    async fn step(&self, name: &'static str, machine: Option<&Fake>) -> Result<(), RuntimeError> {
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
        })))
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

impl Fake {
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
        Capabilities {
            durable_memory: false,
            freeze: true,
            own_kernel: false,
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

    async fn has_build(&self, _: BuildId) -> bool {
        true
    }

    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, RuntimeError> {
        self.0.step("start", None).await?;
        let mut state = self.0.state();
        if spec.disk == DiskOrigin::Kept && !state.disks.remove(&spec.sandbox) {
            return Err(RuntimeError::NoDisk(spec.sandbox));
        }
        let machine = Arc::new(Fake {
            shared: Arc::clone(&self.0),
            spec,
            frozen: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        });
        state.machines.push(Arc::clone(&machine));
        Ok(Arc::new(Handle(machine)))
    }

    async fn discard(&self, sandbox: SandboxId) -> Result<(), RuntimeError> {
        self.0.step("discard", None).await?;
        self.0.state().disks.remove(&sandbox);
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
        tokio::spawn(answer(Arc::clone(&self.0), theirs));
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
        Ok(Usage::default())
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

/// An envd that says yes.
async fn answer(machine: Arc<Fake>, mut stream: tokio::io::DuplexStream) {
    let mut heard = Vec::new();
    let head = loop {
        let mut piece = [0; 1024];
        let Ok(1..) = stream
            .read(&mut piece)
            .await
            .inspect(|n| heard.extend(&piece[..*n]))
        else {
            return;
        };
        if let Some(end) = heard.windows(4).position(|four| four == b"\r\n\r\n") {
            break String::from_utf8_lossy(&heard[..end]).into_owned();
        }
    };
    let step = match head.split(' ').nth(1) {
        Some("/init") => "init",
        Some("/host/shutdown") => "shut down",
        _ => "word",
    };
    let said = machine.shared.step(step, Some(&machine)).await;
    if machine.ended.borrow().is_some() {
        return;
    }
    let status = if said.is_ok() { "200 OK" } else { "500 No" };
    let body = r#"{"next":0,"entries":[]}"#;
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
    // What else is sent is read, so that the other end finds nothing broken.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}
