//! What there is, on disk before anything of it is made: machines, kept sandboxes, builds.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use linux::process::Identity;
use model::{BuildId, ExecutionId, SandboxId};
use ports::MachineSpec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::{Disk, Layer};
use crate::memory::Memory;
use crate::users::User;
use ports::step::{At, Step};

/// A machine. Its directory of sockets is named by its execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// What it is started with; its policy is the one in force.
    pub(crate) spec: MachineSpec,
    /// Its QEMU, once there is one.
    pub(crate) process: Option<Identity>,
    /// Which slot of the network is its, from before anything of it is made on; `None` where there is no network.
    #[serde(default)]
    pub(crate) slot: Option<u32>,
    /// Whom its QEMU runs as; `None`: as whoever the daemon was, as all did before there were users.
    #[serde(default)]
    pub(crate) user: Option<User>,
    /// Its disk, its own image at the end.
    pub(crate) disk: Disk,
    /// The image that is being laid on its disk, from before that is made on.
    pub(crate) next: Option<Layer>,
    /// The memory that is being written.
    pub(crate) state: Option<Uuid>,
    /// It has been handed over: from here on the sandbox is this machine, and what was kept of it before is of an earlier day.
    pub(crate) up: bool,
    /// It stands only because it is being copied: whoever finds it so lets it go on.
    pub(crate) copying: bool,
    /// Its disk is to be kept, whatever comes: a stop that keeps it is under way.
    pub(crate) keep: bool,
    /// Its processes went on from memory.
    pub(crate) restored: bool,
    /// When its QEMU was started.
    pub(crate) started_at: SystemTime,
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
    fn layers(&self) -> Vec<Uuid>;
    /// The states of memory.
    fn states(&self) -> Vec<Uuid>;
}

fn ids(disk: &Disk) -> Vec<Uuid> {
    disk.layers.iter().map(|layer| layer.id).collect()
}

impl Names for Machine {
    fn layers(&self) -> Vec<Uuid> {
        ids(&self.disk)
            .into_iter()
            .chain(self.next.map(|next| next.id))
            .collect()
    }
    fn states(&self) -> Vec<Uuid> {
        self.state.into_iter().collect()
    }
}

impl Names for Kept {
    fn layers(&self) -> Vec<Uuid> {
        ids(&self.disk)
    }
    fn states(&self) -> Vec<Uuid> {
        self.memory.iter().map(|memory| memory.state).collect()
    }
}

impl Names for Build {
    fn layers(&self) -> Vec<Uuid> {
        ids(&self.disk)
    }
    fn states(&self) -> Vec<Uuid> {
        self.memory.iter().map(|memory| memory.state).collect()
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
    fn named(&self, layers: &mut BTreeSet<Uuid>, states: &mut BTreeSet<Uuid>) -> Result<(), Step> {
        for (key, record) in self.all() {
            // Gone since it was listed, or not understood: that is told apart here.
            let record = match record {
                Some(record) => Some(record),
                None => self.read(&key)?,
            };
            for record in record.iter() {
                layers.extend(record.layers());
                states.extend(record.states());
            }
        }
        Ok(())
    }

    fn sync_names(&self) -> Result<(), Step> {
        fs::File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .at(format!("writing {} through", self.dir.display()))
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
        let (mut layers, mut states) = (BTreeSet::new(), BTreeSet::new());
        self.builds.named(&mut layers, &mut states)?;
        self.kept.named(&mut layers, &mut states)?;
        self.machines.named(&mut layers, &mut states)?;
        // What a machine left while it was looked elsewhere.
        self.kept.named(&mut layers, &mut states)?;
        self.builds.named(&mut layers, &mut states)?;
        Ok((layers, states))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disks, Format};

    #[test]
    fn what_a_record_names_is_known_and_one_that_is_not_understood_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        let build = Build {
            form: FORM,
            disk: Disk {
                layers: vec![Disks::draw(Format::Raw)],
                size_bytes: 1,
            },
            memory: None,
        };
        let id = BuildId::random();
        book.builds.write(&id, &build).unwrap();
        assert_eq!(book.builds.read(&id).unwrap(), Some(build.clone()));
        assert_eq!(book.named().unwrap().0, BTreeSet::from([build.disk.layers[0].id]));
        fs::write(dir.path().join(format!("kept/{}.json", SandboxId::random())), "{").unwrap();
        assert!(book.named().is_err());
        book.builds.remove(&id).unwrap();
        book.builds.remove(&id).unwrap();
        assert_eq!(book.builds.read(&id).unwrap(), None);
    }
}
