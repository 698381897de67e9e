//! What a slot is and was, on disk before anything of it is made.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use linux::process::Identity;
use model::{BuildId, SandboxId};
use ports::MachineSpec;
use serde::{Deserialize, Serialize};

use crate::step::{At, Step};

/// A slot's record. Every host resource of a slot is named by the daemon's instance and the slot's number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Which slot.
    pub(crate) slot: u32,
    /// Its first process, once there is one.
    pub(crate) process: Option<Identity>,
    /// What it was claimed for; `None` while it is prepared.
    pub(crate) spec: Option<MachineSpec>,
    /// Its disk is to be kept, whatever comes: a stop that keeps it is under way.
    #[serde(default)]
    pub(crate) keep: bool,
    /// Whose kept disk it is given, from before it is given on.
    #[serde(default)]
    pub(crate) disk_of: Option<SandboxId>,
    /// What it starts from, from before that is looked at on: nothing of it is cleared away meanwhile.
    #[serde(default)]
    pub(crate) build: Option<BuildId>,
    /// It stands only because it is being copied: whoever finds it so lets it go on.
    #[serde(default)]
    pub(crate) copying: bool,
    /// Its processes went on from memory.
    #[serde(default)]
    pub(crate) restored: bool,
}

impl Record {
    /// Of a slot that is about to be made for `build`, and has nothing yet.
    pub(crate) fn staked(slot: u32, build: BuildId) -> Self {
        Self {
            slot,
            process: None,
            spec: None,
            keep: false,
            disk_of: None,
            build: Some(build),
            copying: false,
            restored: false,
        }
    }

    /// Who may still want its disk.
    pub(crate) fn owner(&self) -> Option<SandboxId> {
        self.spec.as_ref().map(|spec| spec.sandbox).or(self.disk_of)
    }

    /// What it started from.
    pub(crate) fn starts_from(&self) -> Option<BuildId> {
        self.spec.as_ref().map(|spec| spec.build).or(self.build)
    }
}

/// Who a process is that lives.
pub(crate) fn identity_of(pid: u32) -> Result<Identity, Step> {
    Identity::of(pid).at(format!("reading the start time of process {pid}"))
}

/// All records of this node.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(data: &Path) -> Result<Self, Step> {
        let dir = data.join("slots");
        fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn path(&self, slot: u32) -> PathBuf {
        self.dir.join(format!("{slot}.json"))
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), Step> {
        write(&self.path(record.slot), record)
    }

    /// That of one slot, if it can be read.
    pub(crate) fn read(&self, slot: u32) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.path(slot)).ok()?).ok()
    }

    /// Whether a slot is on record.
    pub(crate) fn has(&self, slot: u32) -> bool {
        self.path(slot).exists()
    }

    pub(crate) fn remove(&self, slot: u32) {
        let _ = fs::remove_file(self.path(slot));
    }

    /// Every record; what cannot be read is told by its number alone.
    pub(crate) fn all(&self) -> Vec<(u32, Option<Record>)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok();
        let read = |entry: &fs::DirEntry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok();
        entries
            .filter_map(|entry| Some((number(&entry)?, read(&entry))))
            .collect()
    }
}

/// Replaces a file by a JSON value, whole or not at all, as far as the life of this machine goes: what it describes does
/// not outlive a loss of power either.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<(), Step> {
    let step = || format!("writing {}", path.display());
    let partial = path.with_extension("partial");
    let bytes = serde_json::to_vec(value).at(step())?;
    fs::write(&partial, bytes).at(step())?;
    fs::rename(&partial, path).at(step())
}

/// The same, so that it outlives a loss of power.
pub(crate) fn write_durably(path: &Path, value: &impl Serialize) -> Result<(), Step> {
    let step = || format!("writing {}", path.display());
    let partial = path.with_extension("partial");
    let bytes = serde_json::to_vec(value).at(step())?;
    fs::File::create(&partial)
        .and_then(|mut file| {
            io::Write::write_all(&mut file, &bytes)?;
            file.sync_all()
        })
        .at(step())?;
    fs::rename(&partial, path).at(step())?;
    sync_names(path)
}

/// Writes the directory that a path lies in through to the host's disk.
pub(crate) fn sync_names(path: &Path) -> Result<(), Step> {
    let names = path.parent().unwrap_or(path);
    fs::File::open(names)
        .and_then(|names| names.sync_all())
        .at(format!("writing {} through", names.display()))
}
