//! What a node must know again after a restart: a file for each sandbox.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::{ExecutionId, SandboxId};
use ports::Machine;
use ports::node::{HeldState, Order};
use serde::{Deserialize, Serialize};

/// A sandbox as the node holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) order: Order,
    pub(crate) state: HeldState,
    /// The machine that kept the memory of a pause is gone.
    #[serde(default)]
    pub(crate) memory_lost: bool,
    /// The execution for which its machine booted. A machine that was thawed serves a later one.
    #[serde(default)]
    pub(crate) booted: Option<ExecutionId>,
}

impl Entry {
    /// Whether a machine is the one of this entry, and not one that was to take its place.
    pub(crate) fn is_of(&self, machine: &dyn Machine) -> bool {
        self.booted.unwrap_or(self.order.execution) == machine.execution()
    }
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
        fs::write(&partial, serde_json::to_vec(entry)?)?;
        fs::rename(&partial, &path)
    }

    pub(crate) fn remove(&self, sandbox: SandboxId) {
        let _ = fs::remove_file(self.path(sandbox));
    }

    /// Every entry that can be read; what cannot is left for people to look at.
    pub(crate) fn all(&self) -> Vec<Entry> {
        let files = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| file.path());
        let entries = files.filter(|path| path.extension().is_some_and(|kind| kind == "json"));
        entries
            .filter_map(
                |path| match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
                    Ok(Ok(entry)) => Some(entry),
                    _ => {
                        tracing::error!(path = %path.display(), "a sandbox's entry cannot be read");
                        None
                    }
                },
            )
            .collect()
    }
}
