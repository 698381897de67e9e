//! Builds: what machines start from, on this node.
//!
//! ```text
//! <data>/builds/<id>.json          the record: what the others are there for
//! <data>/layers/<id>/              layers that were made for the build
//! <volume>/builds/<id>.img         the disk that its machines begin with a copy of
//! <volume>/builds/<id>.<MiB>.img   the same, grown
//! <volume>/sealed/<id>.img         a disk whose uppers are layers, of this build and of those made from it
//! <volume>/builds/<id>.memory/     what the processes of its machines go on from
//! ```
//!
//! **Invariants.** A record is written when all that it names is there, and is the first to go. What no record names is
//! cleared away.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use model::{BuildId, Memory, MiB};
use serde::{Deserialize, Serialize};

use crate::step::{At, Step};

/// The form of records that is written. An older one, which has no number, names overlays alone.
pub(crate) const FORM: u32 = 1;
/// Layers of one root. Images have at most 127; each costs every look-up of a name that is not there.
pub(crate) const LAYERS_MAX: usize = 128;

/// What a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// See [`FORM`].
    #[serde(default)]
    pub(crate) form: u32,
    /// The root first, then what is mounted below it.
    pub(crate) overlays: Vec<Overlay>,
    /// The size of the disk that its machines begin with a copy of; a blank one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<MiB>,
    /// What it holds of processes.
    #[serde(default)]
    pub(crate) memory: Memory,
    /// Builds of whose disks its own, or the one that was sealed for it, is a later form: see [`lineage`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lineage: Vec<BuildId>,
}

/// Ancestors that are remembered: one of them is likely to be in the blobs, where most copies never come.
pub(crate) const LINEAGE_MAX: usize = 16;

/// The lineage of a disk, its nearest relative first: `copies` were copied from the same disk, the newest first, which began as
/// a copy of that of `from`. They are no more than a hint: any of them may be gone.
pub(crate) fn lineage(copies: &[BuildId], from: Option<(BuildId, &Build)>) -> Vec<BuildId> {
    let from = from.filter(|(_, build)| build.disk.is_some());
    let before = from
        .into_iter()
        .flat_map(|(id, build)| [&[id], &*build.lineage].concat());
    let mut known = BTreeSet::new();
    let all = copies.iter().copied().chain(before);
    all.filter(|id| known.insert(*id)).take(LINEAGE_MAX).collect()
}

/// Read-only layers at one place, with an upper of the sandbox's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Overlay {
    /// Where it is mounted.
    pub(crate) target: String,
    /// The topmost first.
    pub(crate) layers: Vec<Layer>,
    /// Which upper of the disk it writes to.
    pub(crate) upper: String,
}

/// A read-only layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Layer {
    /// A directory of the host.
    Dir(PathBuf),
    /// An upper of a disk that nobody writes to any more.
    Sealed {
        /// The build for which it was sealed.
        sealed: BuildId,
        /// Which of its uppers.
        upper: String,
    },
}

impl Build {
    /// One that machines begin blank disks over.
    pub(crate) fn of(overlays: Vec<Overlay>) -> Self {
        Self {
            form: FORM,
            overlays,
            disk: None,
            memory: Memory::None,
            lineage: Vec::new(),
        }
    }

    /// Builds whose disks its own are likely to share blocks with, the likeliest first.
    pub(crate) fn kin(&self, id: BuildId) -> Vec<BuildId> {
        let below = self.sealed().into_iter().filter(|sealed| *sealed != id);
        self.lineage.iter().copied().chain(below).collect()
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.overlays.iter().flat_map(|overlay| &overlay.layers)
    }

    /// The sealed disks that it stands on.
    pub(crate) fn sealed(&self) -> BTreeSet<BuildId> {
        self.layers()
            .filter_map(|layer| match layer {
                Layer::Sealed { sealed, .. } => Some(*sealed),
                Layer::Dir(_) => None,
            })
            .collect()
    }

    /// The directories that it stands on.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.layers().filter_map(|layer| match layer {
            Layer::Dir(dir) => Some(dir.as_path()),
            Layer::Sealed { .. } => None,
        })
    }

    /// Refuses a root of more layers than a machine is given.
    pub(crate) fn is_bounded(&self) -> Result<(), String> {
        let most = self.overlays.iter().map(|overlay| overlay.layers.len()).max();
        let most = most.unwrap_or(0);
        if most <= LAYERS_MAX {
            return Ok(());
        }
        Err(format!(
            "a root of {most} layers: at most {LAYERS_MAX} can be laid on one another, so start from an image with fewer \
             layers, or from a template with fewer templates below it"
        ))
    }
}

/// Where builds are kept.
#[derive(Debug)]
pub(crate) struct Builds {
    data: PathBuf,
    /// Held by whoever makes use of a record, or of what is to have one, until that is on record itself; and by whoever
    /// clears away what no record names, alone.
    settled: RwLock<()>,
    /// Those that somebody makes, or makes others from: they are not cleared away, on record or not.
    under_way: Mutex<Vec<BuildId>>,
    /// Held by whoever makes layers of ours: two may make those of one image.
    making: Mutex<()>,
}

/// Builds under way; no longer when this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay<'a> {
    builds: &'a Builds,
    ids: Vec<BuildId>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.builds.under_way.lock().expect(UNPOISONED);
        for id in &self.ids {
            if let Some(i) = under_way.iter().position(|other| other == id) {
                under_way.swap_remove(i);
            }
        }
    }
}

impl Builds {
    pub(crate) fn open(data: &Path) -> Result<Self, Step> {
        for dir in ["builds", "layers"] {
            let dir = data.join(dir);
            fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        }
        Ok(Self {
            data: data.to_owned(),
            settled: RwLock::default(),
            under_way: Mutex::default(),
            making: Mutex::default(),
        })
    }

    /// Notes that somebody makes a build, or another from it.
    pub(crate) fn begin(&self, ids: &[BuildId]) -> UnderWay<'_> {
        let _stay = self.stay();
        self.under_way.lock().expect(UNPOISONED).extend_from_slice(ids);
        UnderWay {
            builds: self,
            ids: ids.to_vec(),
        }
    }

    /// Held while layers of ours are made.
    pub(crate) fn making(&self) -> MutexGuard<'_, ()> {
        // What a panic left half made is made anew.
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that somebody makes, or makes others from.
    pub(crate) fn under_way(&self) -> BTreeSet<BuildId> {
        self.under_way.lock().expect(UNPOISONED).iter().copied().collect()
    }

    /// While it is held, nothing of a build is cleared away.
    pub(crate) fn stay(&self) -> RwLockReadGuard<'_, ()> {
        self.settled.read().expect(UNPOISONED)
    }

    /// While it is held, nobody begins to use a build.
    pub(crate) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.settled.write().expect(UNPOISONED)
    }

    fn path(&self, build: BuildId) -> PathBuf {
        self.data.join("builds").join(format!("{build}.json"))
    }

    /// Where the layers of all builds are made.
    pub(crate) fn all_layers(&self) -> PathBuf {
        self.data.join("layers")
    }

    /// Where the layers of a build are made.
    pub(crate) fn layers(&self, build: BuildId) -> PathBuf {
        self.all_layers().join(build.to_string())
    }

    pub(crate) fn has(&self, build: BuildId) -> bool {
        self.path(build).exists()
    }

    pub(crate) fn get(&self, build: BuildId) -> Result<Option<Build>, Step> {
        let path = self.path(build);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.at(format!("reading {}", path.display()))?,
        };
        let build: Build = serde_json::from_slice(&text).at(format!("parsing {}", path.display()))?;
        if build.form > FORM {
            let newer = format!("it has form {}, and this Atoll knows {FORM}", build.form);
            return Err(io::Error::other(newer)).at(format!("reading {}", path.display()));
        }
        Ok(Some(build))
    }

    /// Makes a build known, also after a loss of power; from then on machines start from it.
    pub(crate) fn put(&self, id: BuildId, build: &Build) -> Result<(), Step> {
        crate::record::write_durably(&self.path(id), build)
    }

    /// Every one that is known.
    pub(crate) fn all(&self) -> Vec<BuildId> {
        let entries = fs::read_dir(self.data.join("builds"))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
            .collect()
    }

    /// Makes a build unknown. None is no error. What it named is removed when [`Builds::write_through`] is done.
    pub(crate) fn forget(&self, id: BuildId) -> Result<(), Step> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.at(format!("deleting {}", path.display())),
        }
    }

    /// Lets what was forgotten be forgotten after a loss of power as well.
    pub(crate) fn write_through(&self) -> Result<(), Step> {
        crate::record::sync_names(&self.data.join("builds").join("any"))
    }

    /// What all builds stand on: sealed disks, and builds whose layers were made here. Fails where a record cannot be read,
    /// because then nobody knows.
    pub(crate) fn in_use(&self) -> Result<InUse, Step> {
        let own = self.all_layers();
        let mut used = InUse::default();
        for id in self.all() {
            let Some(build) = self.get(id)? else { continue };
            used.known.insert(id);
            used.sealed.extend(build.sealed());
            used.layers.extend(build.dirs().filter_map(|dir| {
                dir.strip_prefix(&own)
                    .ok()?
                    .iter()
                    .next()?
                    .to_str()?
                    .parse::<BuildId>()
                    .ok()
            }));
        }
        Ok(used)
    }
}

/// What builds stand on.
#[derive(Debug, Default)]
pub(crate) struct InUse {
    /// Those that have a record.
    pub(crate) known: BTreeSet<BuildId>,
    /// Sealed disks.
    pub(crate) sealed: BTreeSet<BuildId>,
    /// Builds whose own layers are needed.
    pub(crate) layers: BTreeSet<BuildId>,
}

const UNPOISONED: &str = "nothing panics while it holds this";

#[cfg(test)]
mod tests;
