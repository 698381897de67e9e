//! Disks that are kept beside the memory that belongs to them.
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use model::{BuildId, SandboxId};

use super::memory;
use crate::disk::Disks;
use crate::record::sync_names;
use crate::step::{At, Step};
use crate::volume;

/// Endings of what is not finished, or no longer wanted.
const NOBODYS: [&str; 3] = ["copy", "partial", "gone"];

impl Disks {
    fn beside_memory(&self, sandbox: SandboxId, ending: &str) -> PathBuf {
        self.kept_memory(sandbox).with_extension(ending)
    }

    /// Copies a slot's disk as it is at this instant, under a name that nobody looks for.
    pub(crate) fn begin_kept(&self, slot: u32, sandbox: SandboxId) -> Result<(), Step> {
        let copy = self.beside_memory(sandbox, "copy");
        let _ = fs::remove_file(&copy);
        volume::clone(&self.of_slot(slot), &copy).at(format!("cloning the disk of slot {slot}"))
    }

    /// Finishes the copy, so that it outlives a loss of power.
    pub(crate) fn settle_kept(&self, sandbox: SandboxId) -> Result<(), Step> {
        self.settle_through(&self.beside_memory(sandbox, "copy"))
    }

    /// Does what is in a copy's journal, and brings it to the host's disk.
    pub(crate) fn settle_through(&self, copy: &Path) -> Result<(), Step> {
        self.settle(copy)?;
        File::open(copy)
            .and_then(|copy| copy.sync_all())
            .at(format!("writing {} through", copy.display()))
    }

    /// Keeps the copy, which is over a build, and the memory that was written beside it. Whoever finds a disk without its
    /// memory has a machine that lives.
    pub(crate) fn commit_kept(&self, sandbox: SandboxId, over: BuildId) -> Result<(), Step> {
        let kept = self.kept_memory(sandbox);
        memory::remove(&kept)?;
        self.note(sandbox, over)?;
        for (from, to) in [("copy", "img"), ("partial", "memory")] {
            let (from, to) = (self.beside_memory(sandbox, from), self.beside_memory(sandbox, to));
            fs::rename(&from, &to).at(format!("keeping {}", to.display()))?;
        }
        sync_names(&kept)
    }

    /// Gives a slot a copy of the disk that is kept for a sandbox.
    pub(crate) fn copy_kept(&self, sandbox: SandboxId, slot: u32) -> Result<(), Step> {
        let image = self.of_slot(slot);
        let _ = fs::remove_file(&image);
        volume::clone(&self.beside_memory(sandbox, "img"), &image)
            .at(format!("cloning the disk kept for {sandbox}"))
    }

    /// Renames what is kept for a sandbox, so that it is nobody's, and says what is to be deleted. The memory first: without
    /// its disk it is nothing.
    pub(crate) fn set_kept_aside(&self, sandbox: SandboxId) -> Result<Vec<PathBuf>, Step> {
        let mut gone = Vec::new();
        for ending in ["memory", "img"] {
            let path = self.beside_memory(sandbox, ending);
            let aside = path.with_extension(format!("{ending}.gone"));
            match fs::rename(&path, &aside) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                renamed => {
                    renamed.at(format!("setting {} aside", path.display()))?;
                    gone.push(aside);
                }
            }
        }
        let _ = fs::remove_file(self.beside_memory(sandbox, "build"));
        Ok(gone)
    }

    /// Deletes what was never finished, or set aside, and memory without a disk.
    pub(crate) fn sweep_kept(&self) {
        let Some(dir) = self.kept_memory_dir() else { return };
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let ending = path
                .extension()
                .and_then(|ending| ending.to_str())
                .unwrap_or_default();
            let is_lost = ending == "memory" && !path.with_extension("img").exists();
            if is_lost || NOBODYS.contains(&ending) {
                delete(&path);
            }
        }
    }

    fn kept_memory_dir(&self) -> Option<PathBuf> {
        self.kept_memory(SandboxId::random()).parent().map(PathBuf::from)
    }
}

/// Deletes a file or a directory, if it is there. What stays is found by the next recovery.
pub(crate) fn delete(path: &PathBuf) {
    let deleted = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
    if let Err(error) = deleted.or_else(|error| if path.exists() { Err(error) } else { Ok(()) }) {
        tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "something stays that nobody wants");
    }
}
