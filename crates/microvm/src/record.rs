//! What there is, on disk before anything of it is made: machines, kept sandboxes, builds.
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use linux::process::Identity;
use model::{BuildId, ExecutionId, SandboxId};
use ports::MachineSpec;
use ports::step::{At, Step};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files::sync_dir;

/// A part of a record: a disk, memory, or what is a machine's under one VMM alone.
pub trait Part:
    Names + Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<T> Part for T where
    T: Names + Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// Something that files are named by.
pub trait Names {
    /// The images.
    fn images(&self) -> Vec<Uuid> {
        Vec::new()
    }
    /// The states of memory.
    fn states(&self) -> Vec<Uuid> {
        Vec::new()
    }
}

/// A machine. What is made of it on the host is named by its execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine<D, O> {
    /// What it is started with; its policy is the one in force.
    pub spec: MachineSpec,
    /// Its VMM, once there is one.
    pub process: Option<Identity>,
    /// Its disk.
    pub disk: D,
    /// It has been handed over: from here on the sandbox is this machine, and what was kept of it before is of an earlier day.
    pub up: bool,
    /// Its disk is to be kept, whatever comes: a stop that keeps it is under way.
    pub keep: bool,
    /// Its processes went on from memory.
    pub restored: bool,
    /// When its VMM was started.
    pub started_at: SystemTime,
    /// What it has under its VMM alone.
    #[serde(flatten)]
    pub own: O,
}

/// What a sandbox without a machine left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept<D, M> {
    /// By which of its machines.
    pub execution: ExecutionId,
    /// What that began with. Not on records of before there were origins.
    #[serde(default)]
    pub build: Option<BuildId>,
    /// Its disk.
    pub disk: D,
    /// Its memory, where that was written down.
    pub memory: Option<M>,
}

/// What machines start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Build<D, M> {
    /// How this record is to be read.
    pub form: u32,
    /// What their disks start from.
    pub disk: D,
    /// Memory that they go on from.
    pub memory: Option<M>,
    /// Whose disk it was; `None` where it was nobody's, or is not known.
    #[serde(default)]
    pub origin: Option<Origin>,
}

/// Whose disk a build's is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Of which sandbox.
    pub sandbox: SandboxId,
    /// What that began with.
    pub build: BuildId,
    /// When it was copied.
    pub at: SystemTime,
}

impl Origin {
    /// That of a copy that is made now.
    #[must_use]
    pub fn now(sandbox: SandboxId, build: BuildId) -> Self {
        Self {
            sandbox,
            build,
            at: SystemTime::now(),
        }
    }
}

/// The form that is written, and the only one that is read.
pub const FORM: u32 = 1;

impl<D: Names, O: Names> Names for Machine<D, O> {
    fn images(&self) -> Vec<Uuid> {
        [self.disk.images(), self.own.images()].concat()
    }
    fn states(&self) -> Vec<Uuid> {
        self.own.states()
    }
}

impl<M: Names> Names for Option<M> {
    fn images(&self) -> Vec<Uuid> {
        self.as_ref().map(M::images).unwrap_or_default()
    }
    fn states(&self) -> Vec<Uuid> {
        self.as_ref().map(M::states).unwrap_or_default()
    }
}

impl<D: Names, M: Names> Names for Kept<D, M> {
    fn images(&self) -> Vec<Uuid> {
        self.disk.images()
    }
    fn states(&self) -> Vec<Uuid> {
        self.memory.states()
    }
}

impl<D: Names, M: Names> Names for Build<D, M> {
    fn images(&self) -> Vec<Uuid> {
        self.disk.images()
    }
    fn states(&self) -> Vec<Uuid> {
        self.memory.states()
    }
}

/// Records of one kind: a file for each.
#[derive(Debug)]
pub struct Records<K, V> {
    dir: PathBuf,
    kind: PhantomData<fn() -> (K, V)>,
}

impl<K: ToString + FromStr, V: Serialize + DeserializeOwned + Names> Records<K, V> {
    fn open(dir: PathBuf) -> Result<Self, Step> {
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
    ///
    /// # Errors
    /// The disk failed; what was there before is there still.
    pub fn write(&self, key: &K, value: &V) -> Result<(), Step> {
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
    ///
    /// # Errors
    /// It cannot be read, or not be understood.
    pub fn read(&self, key: &K) -> Result<Option<V>, Step> {
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
    ///
    /// # Errors
    /// It is there still.
    pub fn remove(&self, key: &K) -> Result<(), Step> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => self.sync_names(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).at(format!("deleting {}", path.display())),
        }
    }

    /// Every key, with its record where that can be understood.
    #[must_use]
    pub fn all(&self) -> Vec<(K, Option<V>)> {
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
        sync_dir(&self.dir)
    }
}

/// All records of a node.
#[derive(Debug)]
pub struct Book<D, M, O> {
    /// Machines, from before anything of them is made until nothing is left of them.
    pub machines: Records<ExecutionId, Machine<D, O>>,
    /// Sandboxes without a machine.
    pub kept: Records<SandboxId, Kept<D, M>>,
    /// What machines start from.
    pub builds: Records<BuildId, Build<D, M>>,
}

impl<D: Part, M: Part, O: Part> Book<D, M, O> {
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

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Image(Uuid);

    impl Names for Image {
        fn images(&self) -> Vec<Uuid> {
            vec![self.0]
        }
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct State(Uuid);

    impl Names for State {
        fn states(&self) -> Vec<Uuid> {
            vec![self.0]
        }
    }

    #[test]
    fn what_a_record_names_is_known_and_one_that_is_not_understood_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::<Image, State, State>::open(dir.path()).unwrap();
        let [image, state] = std::array::from_fn(|_| Uuid::new_v4());
        let build = Build {
            form: FORM,
            disk: Image(image),
            memory: Some(State(state)),
            origin: Some(Origin::now(SandboxId::random(), BuildId::random())),
        };
        let id = BuildId::random();
        book.builds.write(&id, &build).unwrap();
        assert_eq!(book.builds.read(&id).unwrap(), Some(build));
        let named = (BTreeSet::from([image]), BTreeSet::from([state]));
        assert_eq!(book.named().unwrap(), named);
        fs::write(dir.path().join(format!("kept/{}.json", SandboxId::random())), "{").unwrap();
        assert!(book.named().is_err());
        book.builds.remove(&id).unwrap();
        book.builds.remove(&id).unwrap();
        assert_eq!(book.builds.read(&id).unwrap(), None);
    }
}
