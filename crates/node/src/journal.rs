//! What a node must know again after a restart: a file for each sandbox.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::{ExecutionId, Memory, PauseMode, SandboxId};
use ports::Machine;
use ports::node::{HeldState, Order, PauseOutcome};
use serde::{Deserialize, Serialize};

/// The form in which entries are written. One of a later form is not read: what it means is not known here.
const VERSION: u32 = 1;

/// A sandbox as the node holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) order: Order,
    pub(crate) state: HeldState,
    /// The execution for which its machine booted. A machine that was thawed serves a later one.
    #[serde(default)]
    pub(crate) booted: Option<ExecutionId>,
    /// What its pause is to keep, from the intent on; entries of before there was a choice have none.
    #[serde(default)]
    pub(crate) kept: Option<Kept>,
}

/// What a pause keeps, beside its name and its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Where memory is, where it is kept at all.
    pub(crate) memory: Memory,
    /// envd did not answer before it.
    #[serde(default)]
    pub(crate) envd_unresponsive: bool,
}

impl Entry {
    /// What its pause has kept, if it is paused.
    pub(crate) fn outcome(&self) -> Option<PauseOutcome> {
        let HeldState::Paused(_, mode) = self.state else {
            return None;
        };
        Some(PauseOutcome {
            mode,
            memory: match mode {
                // Before there was a choice it stayed in the machine's.
                PauseMode::Full => self.kept.map_or(Memory::Volatile, |kept| kept.memory),
                PauseMode::Filesystem => Memory::None,
            },
            envd_unresponsive: self.kept.is_some_and(|kept| kept.envd_unresponsive),
        })
    }

    /// Whether the memory of a pause lies on the disk, or is to lie there.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.kept.is_some_and(|kept| kept.memory == Memory::Durable)
    }

    /// Notes that memory which was to lie on the disk stays in the machine's.
    pub(crate) fn stay_in_memory(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.memory = Memory::Volatile;
        }
    }

    /// Whether a machine is the one of this entry, and not one that was to take its place.
    pub(crate) fn is_of(&self, machine: &dyn Machine) -> bool {
        self.booted.unwrap_or(self.order.execution) == machine.execution()
    }
}

/// An entry on file.
#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// What every form of an entry says of itself.
#[derive(Deserialize)]
struct Form {
    #[serde(default = "first")]
    version: u32,
}

/// Entries that do not tell their form are of the first.
fn first() -> u32 {
    1
}

/// Why a file is not understood.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it does not parse")]
    Broken(#[from] serde_json::Error),
    #[error("it is of version {0}, and a newer atoll wrote it: this one knows {VERSION}")]
    Newer(u32),
    #[error("it is the entry of {0}")]
    Misnamed(SandboxId),
}

/// What the files say.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) entries: Vec<Entry>,
    /// Sandboxes whose files are not understood. Nobody knows what they hold, so nothing of theirs is thrown away.
    pub(crate) unreadable: Vec<SandboxId>,
}

/// The files.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
}

impl Journal {
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = data.join("sandboxes");
        fs::create_dir_all(&dir)?;
        // Entries hold tokens and environments.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        Ok(Self { dir })
    }

    fn path(&self, sandbox: SandboxId) -> PathBuf {
        self.dir.join(format!("{sandbox}.json"))
    }

    /// Replaces an entry, whole or not at all. A few tens of microseconds: it is not worth another thread.
    pub(crate) fn write(&self, entry: &Entry) -> io::Result<()> {
        let path = self.path(entry.order.sandbox);
        let partial = path.with_extension("partial");
        let bytes = serde_json::to_vec(&Written {
            version: VERSION,
            entry,
        })?;
        let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, &path));
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }

    pub(crate) fn remove(&self, sandbox: SandboxId) {
        let path = self.path(sandbox);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start finds that there is nothing behind it, and tries again.
                tracing::error!(path = %path.display(), %error, "a sandbox's entry could not be removed");
            }
            _ => {}
        }
    }

    /// Everything that is on file. Writes that were cut short are swept away.
    ///
    /// # Errors
    /// The directory cannot be read: that it seems empty says nothing about sandboxes.
    pub(crate) fn all(&self) -> io::Result<Contents> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("reading {}: {error}", self.dir.display()))
        };
        let mut contents = Contents::default();
        for file in fs::read_dir(&self.dir).map_err(named)? {
            let path = file.map_err(named)?.path();
            match path.extension().and_then(|kind| kind.to_str()) {
                Some("json") => take(&path, &mut contents),
                Some("partial") => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        Ok(contents)
    }
}

fn take(path: &Path, contents: &mut Contents) {
    let shown = path.display();
    let Some(sandbox) = path
        .file_stem()
        .and_then(|name| name.to_str())
        .and_then(|name| name.parse().ok())
    else {
        tracing::error!(path = %shown, "a file among the sandboxes' entries is named after no sandbox; it is left alone");
        return;
    };
    match read(path, sandbox) {
        Ok(entry) => contents.entries.push(entry),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(%sandbox, path = %shown, error, "a sandbox's entry is not understood: the sandbox is lost, and its disk is kept; to have the disk cleared away, remove this file and start again");
            contents.unreadable.push(sandbox);
        }
    }
}

fn read(path: &Path, sandbox: SandboxId) -> Result<Entry, Unreadable> {
    let bytes = fs::read(path)?;
    // First the form: what else a later one says need not parse.
    let form: Form = serde_json::from_slice(&bytes)?;
    if form.version > VERSION {
        return Err(Unreadable::Newer(form.version));
    }
    let entry: Entry = serde_json::from_slice(&bytes)?;
    if entry.order.sandbox != sandbox {
        return Err(Unreadable::Misnamed(entry.order.sandbox));
    }
    Ok(entry)
}
