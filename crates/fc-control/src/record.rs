//! What there is, on disk before anything of it is made: machines, kept sandboxes, builds.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use model::{BuildId, ExecutionId, SandboxId};
use ports::MachineSpec;
use ports::step::{At, Step};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::memory::{Memory, Pages};
use linux::process::Identity;

/// An image, and how much can be written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) image: Uuid,
    pub(crate) size_bytes: u64,
}

/// A machine. Its jail and its cgroup are named by its execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// What it is started with; its policy is the one in force.
    pub(crate) spec: MachineSpec,
    /// Which user and, where there is a network, which of its slots are its.
    pub(crate) slot: u32,
    /// Whether it has a network.
    pub(crate) wired: bool,
    /// Its Firecracker, once there is one.
    pub(crate) process: Option<Identity>,
    /// Its own disk.
    pub(crate) disk: Disk,
    /// What its memory differs from as Firecracker knows it: what it was restored from, or what was last written down.
    pub(crate) base: Option<Base>,
    /// What is being written, from before that is made on.
    pub(crate) copy: Copying,
    /// It has been handed over: from here on the sandbox is this machine, and what was kept of it before is of an earlier day.
    pub(crate) up: bool,
    /// It stands only because it is being copied: whoever finds it so lets it go on.
    pub(crate) stands: bool,
    /// Its disk is to be kept, whatever comes: a stop that keeps it is under way.
    pub(crate) keep: bool,
    /// Its processes went on from memory.
    pub(crate) restored: bool,
    /// When its Firecracker was started.
    pub(crate) started_at: SystemTime,
}

/// Memory that a difference can be written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) id: Uuid,
    pub(crate) pages: crate::memory::Sealed,
}

/// What is being written of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Copying {
    pub(crate) image: Option<Uuid>,
    pub(crate) state: Option<Uuid>,
}

/// What a sandbox without a machine left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// By which of its machines.
    pub(crate) execution: ExecutionId,
    pub(crate) disk: Disk,
    pub(crate) memory: Option<Memory>,
}

/// What machines start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// How this record is to be read.
    pub(crate) form: u32,
    pub(crate) disk: Disk,
    pub(crate) memory: Option<Memory>,
}

/// The form that is written, and the only one that is read.
pub(crate) const FORM: u32 = 1;

/// Something that files are named by.
pub(crate) trait Names {
    /// The images.
    fn images(&self) -> Vec<Uuid>;
    /// The states of memory.
    fn states(&self) -> Vec<Uuid>;
}

fn of_memory(memory: Option<&Memory>) -> Vec<Uuid> {
    let Some(memory) = memory else {
        return Vec::new();
    };
    match &memory.pages {
        Pages::Whole(_) => vec![memory.id],
        Pages::Diff { base, .. } => vec![memory.id, *base],
    }
}

impl Names for Machine {
    fn images(&self) -> Vec<Uuid> {
        [Some(self.disk.image), self.copy.image]
            .into_iter()
            .flatten()
            .collect()
    }
    fn states(&self) -> Vec<Uuid> {
        let base = self.base.as_ref().map(|base| base.id);
        [base, self.copy.state].into_iter().flatten().collect()
    }
}

impl Names for Kept {
    fn images(&self) -> Vec<Uuid> {
        vec![self.disk.image]
    }
    fn states(&self) -> Vec<Uuid> {
        of_memory(self.memory.as_ref())
    }
}

impl Names for Build {
    fn images(&self) -> Vec<Uuid> {
        vec![self.disk.image]
    }
    fn states(&self) -> Vec<Uuid> {
        of_memory(self.memory.as_ref())
    }
}

/// Records of one kind: a file for each.
#[derive(Debug)]
pub(crate) struct Records<K, V> {
    dir: PathBuf,
    kind: PhantomData<fn() -> (K, V)>,
}

impl<K: ToString + FromStr, V: Serialize + DeserializeOwned + Names> Records<K, V> {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, Step> {
        fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        Ok(Self {
            dir,
            kind: PhantomData,
        })
    }

    fn path(&self, key: &K) -> PathBuf {
        self.dir.join(format!("{}.json", key.to_string()))
    }

    /// Replaces one, whole or not at all, so that it outlives a loss of power.
    pub(crate) fn write(&self, key: &K, value: &V) -> Result<(), Step> {
        let path = self.path(key);
        let step = || format!("writing {}", path.display());
        let partial = path.with_extension("partial");
        let bytes = serde_json::to_vec(value).at(step())?;
        fs::File::create(&partial)
            .and_then(|mut file| {
                io::Write::write_all(&mut file, &bytes)?;
                file.sync_all()
            })
            .at(step())?;
        fs::rename(&partial, &path).at(step())?;
        self.sync_names()
    }

    /// One; `None` when there is none.
    pub(crate) fn read(&self, key: &K) -> Result<Option<V>, Step> {
        let path = self.path(key);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes).at(format!("understanding {}", path.display()))?,
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).at(format!("reading {}", path.display())),
        }
    }

    /// One that is not there is no error.
    pub(crate) fn remove(&self, key: &K) -> Result<(), Step> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => self.sync_names(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).at(format!("deleting {}", path.display())),
        }
    }

    /// Every key, with its record where that can be understood.
    pub(crate) fn all(&self) -> Vec<(K, Option<V>)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let key: K = entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok()?;
                let value = self.read(&key).ok().flatten();
                Some((key, value))
            })
            .collect()
    }

    /// Adds what all of them name. Where one is not understood nothing is known, and nothing may be removed.
    fn named(&self, images: &mut BTreeSet<Uuid>, states: &mut BTreeSet<Uuid>) -> Result<(), Step> {
        for (key, record) in self.all() {
            // Gone since it was listed, or not understood: that is told apart here.
            let record = match record {
                Some(record) => Some(record),
                None => self.read(&key)?,
            };
            for record in record.iter() {
                images.extend(record.images());
                states.extend(record.states());
            }
        }
        Ok(())
    }

    fn sync_names(&self) -> Result<(), Step> {
        crate::disk::sync_dir(&self.dir)
    }
}

/// All records of a node.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) machines: Records<ExecutionId, Machine>,
    pub(crate) kept: Records<SandboxId, Kept>,
    pub(crate) builds: Records<BuildId, Build>,
}

impl Book {
    pub(crate) fn open(data: &Path) -> Result<Self, Step> {
        Ok(Self {
            machines: Records::open(data.join("machines"))?,
            kept: Records::open(data.join("kept"))?,
            builds: Records::open(data.join("builds"))?,
        })
    }

    /// Images and states that a record names.
    ///
    /// What goes from one record to another is in the other before it leaves the one; so they are read in that order:
    /// what machines start from first, and what they leave last. A file that is made is pinned meanwhile.
    pub(crate) fn named(&self) -> Result<(BTreeSet<Uuid>, BTreeSet<Uuid>), Step> {
        let (mut images, mut states) = (BTreeSet::new(), BTreeSet::new());
        self.builds.named(&mut images, &mut states)?;
        self.kept.named(&mut images, &mut states)?;
        self.machines.named(&mut images, &mut states)?;
        // What a machine left while it was looked elsewhere.
        self.kept.named(&mut images, &mut states)?;
        self.builds.named(&mut images, &mut states)?;
        Ok((images, states))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_record_names_is_known_and_one_that_is_not_understood_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        let build = Build {
            form: FORM,
            disk: Disk {
                image: Uuid::new_v4(),
                size_bytes: 1,
            },
            memory: None,
        };
        let id = BuildId::random();
        book.builds.write(&id, &build).unwrap();
        assert_eq!(book.builds.read(&id).unwrap(), Some(build.clone()));
        assert_eq!(book.named().unwrap().0, BTreeSet::from([build.disk.image]));
        fs::write(dir.path().join(format!("kept/{}.json", SandboxId::random())), "{").unwrap();
        assert!(book.named().is_err());
        book.builds.remove(&id).unwrap();
        book.builds.remove(&id).unwrap();
        assert_eq!(book.builds.read(&id).unwrap(), None);
    }
}
