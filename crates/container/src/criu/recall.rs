//! Whether memory can be written down and brought back on this machine: found out once, by doing it.
//!
//! What came of it is kept in `<data>/criu/tried.json`, and counts for the same kernel, processor and CRIU.
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use model::{ExecutionId, NetworkPolicy, Resources, SandboxId};
use ports::MachineSpec;
use ports::RuntimeError;
use ports::runtime::DiskOrigin;
use serde::{Deserialize, Serialize};

use super::{Criu, kept, memory};
use crate::house::{Fate, House, PARKED_CPU, PARKED_MEMORY_MIB, Shape};
use crate::slot::Slot;
use crate::step::{At, Step};

/// envd of a machine that was brought back answers in a millisecond.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The form of machines: what was tried with another counts for nothing.
const FORM: u32 = 1;

/// What is known of this machine's CRIU.
#[derive(Debug)]
pub(crate) struct Recall {
    tried_at: PathBuf,
    state: RwLock<State>,
    /// Held by whoever tries.
    trying: Mutex<()>,
}

#[derive(Debug, Clone)]
enum State {
    Untried(Arc<Criu>),
    Works(Arc<Criu>),
    /// Why not.
    Not(String),
}

/// What came of trying.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tried {
    form: u32,
    kernel: String,
    cpu: String,
    /// CRIU's version.
    pub(crate) criu: String,
    /// Why it does not work, if it does not.
    pub(crate) why_not: Option<String>,
}

impl Tried {
    /// What was found out on this machine, by its daemon.
    pub(crate) fn read(data: &Path) -> Option<Self> {
        let text = std::fs::read(path(data)).ok()?;
        let tried: Self = serde_json::from_slice(&text).ok()?;
        tried.counts().then_some(tried)
    }

    fn counts(&self) -> bool {
        self.form == FORM && self.kernel == memory::kernel() && memory::cpu().is_ok_and(|cpu| cpu == self.cpu)
    }
}

fn path(data: &Path) -> PathBuf {
    data.join("criu/tried.json")
}

impl Recall {
    /// Looks for a program, and for what was found out about it.
    pub(crate) fn open(program: Option<&Path>, data: &Path) -> Self {
        let state = match program.map(|program| Criu::open(program, data)) {
            None => State::Not("CRIU is not installed here; `atoll doctor` says how to get it".to_owned()),
            Some(Err(failed)) => State::Not(format!("{failed}: {}", failed.source)),
            Some(Ok(criu)) => {
                let criu = Arc::new(criu);
                match Tried::read(data).filter(|tried| tried.criu == criu.version()) {
                    Some(Tried { why_not: None, .. }) => State::Works(criu),
                    // What did not work is tried again: it may have been for want of memory or disk.
                    Some(_) | None => State::Untried(criu),
                }
            }
        };
        Self {
            tried_at: path(data),
            state: RwLock::new(state),
            trying: Mutex::default(),
        }
    }

    fn state(&self) -> State {
        self.state.read().expect(UNPOISONED).clone()
    }

    /// Whether it is known to work.
    pub(crate) fn works(&self) -> bool {
        matches!(self.state(), State::Works(_))
    }

    /// Why it does not.
    pub(crate) fn why_not(&self) -> String {
        match self.state() {
            State::Not(why) => why,
            State::Untried(_) => "it was not tried yet".to_owned(),
            State::Works(_) => "it works".to_owned(),
        }
    }

    /// The program, if there is one that is not known to fail.
    pub(crate) fn program(&self) -> Option<Arc<Criu>> {
        match self.state() {
            State::Untried(criu) | State::Works(criu) => Some(criu),
            State::Not(_) => None,
        }
    }

    /// The program, if it is known to work; else it is tried first, with a machine of this shape.
    pub(crate) fn proven(&self, house: &House, shape: Shape) -> Option<Arc<Criu>> {
        let _one = self.trying.lock().expect(UNPOISONED);
        let criu = match self.state() {
            State::Works(criu) => return Some(criu),
            State::Not(_) => return None,
            State::Untried(criu) => criu,
        };
        let came_of_it = house.go_there_and_back(&criu, shape);
        let why_not = came_of_it.err().map(|error| explain(&error));
        if let Some(why) = &why_not {
            tracing::warn!(
                why,
                "memory cannot be saved on this machine: pauses keep it in RAM, and copies are of disks alone"
            );
        } else {
            tracing::info!(criu = criu.version(), "memory can be saved on this machine");
        }
        self.note(&criu, why_not.clone());
        let state = match why_not {
            None => State::Works(Arc::clone(&criu)),
            Some(why) => State::Not(why),
        };
        *self.state.write().expect(UNPOISONED) = state;
        self.works().then_some(criu)
    }

    fn note(&self, criu: &Criu, why_not: Option<String>) {
        let Ok(cpu) = memory::cpu() else { return };
        let tried = Tried {
            form: FORM,
            kernel: memory::kernel(),
            cpu,
            criu: criu.version().to_owned(),
            why_not,
        };
        if let Err(failed) = crate::record::write(&self.tried_at, &tried) {
            tracing::warn!(
                error = &failed as &dyn std::error::Error,
                "it is tried again at the next start"
            );
        }
    }
}

fn explain(error: &RuntimeError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

impl House {
    /// Finds out whether memory can be written down and brought back, if that is not known. For somebody who has time.
    pub(crate) fn try_memory(&self, shape: Shape) {
        let _ = self.recall.proven(self, shape);
    }

    /// Writes a machine down that nobody has, brings it back, and asks whether it answers.
    fn go_there_and_back(&self, criu: &Criu, shape: Shape) -> Result<(), RuntimeError> {
        let spec = MachineSpec {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            build: shape.build,
            resources: Resources {
                cpu: PARKED_CPU,
                memory: model::MiB(PARKED_MEMORY_MIB),
                disk: shape.disk,
            },
            network: NetworkPolicy::default(),
            disk: DiskOrigin::Kept,
            restore: true,
            volumes: Vec::new(),
        };
        let slot = self.park(shape)?;
        let written = self.write_down(criu, &slot, (spec.sandbox, spec.resources.memory));
        self.give_back(slot.number, Fate::Discard);
        let images = self.disks.kept_memory(spec.sandbox);
        let back = written.and_then(|()| self.bring_back(criu, &spec, &images));
        let answered = back.and_then(|slot| {
            let answered = answers(&slot);
            self.give_back(slot.number, Fate::Discard);
            Ok(answered?)
        });
        self.let_go_of_kept(spec.sandbox);
        answered
    }

    /// Deletes what is kept for a sandbox, which needs it no more.
    pub(crate) fn let_go_of_kept(&self, sandbox: SandboxId) {
        match self.disks.set_kept_aside(sandbox) {
            Ok(gone) => {
                let delete = move || gone.iter().for_each(kept::delete);
                match tokio::runtime::Handle::try_current() {
                    Ok(runtime) => drop(self.work.spawn_blocking_on(delete, &runtime)),
                    Err(_) => delete(),
                }
            }
            Err(failed) => tracing::error!(
                error = &failed as &dyn std::error::Error,
                cause = %failed.source,
                "what was kept of a sandbox that runs stays"
            ),
        }
    }
}

/// Whether envd of a slot answers.
fn answers(slot: &Slot) -> Result<(), Step> {
    let ask = || -> std::io::Result<bool> {
        let mut line = UnixStream::connect(slot.socket_path())?;
        line.set_read_timeout(Some(ANSWERS_WITHIN))?;
        line.set_write_timeout(Some(ANSWERS_WITHIN))?;
        line.write_all(b"GET /health HTTP/1.1\r\nHost: envd\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        line.read_exact(&mut answer)?;
        Ok(answer.starts_with(b"HTTP/1.1 2"))
    };
    let wrong = || std::io::Error::other("envd answers something else");
    ask()
        .and_then(|well| well.then_some(()).ok_or_else(wrong))
        .at("asking a machine that was brought back")
}

const UNPOISONED: &str = "nothing panics while it holds this";
