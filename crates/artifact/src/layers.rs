//! Layers that are unpacked, each in a directory that is named by the digest of what is in it.
//!
//! ```text
//! <dir>/layers/<hex>          a whole layer, as overlayfs takes it; nobody writes into it
//! <dir>/layers/.partial-<n>   one that is being unpacked, or whose process died: swept when the store is opened
//! <dir>/layers/.trash-<n>     one that is being removed: as above
//! <dir>/archives/<hex>        what a layer was unpacked from, compressed, where layers are to go elsewhere; there before it
//! <dir>/archives/.partial-<n> as above
//! <dir>/facts/<hex>.json      what is known of a layer; written before it has its name, and its time is the last use
//! ```
mod kept;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::layer::{LayerError, Limits, Unpacked, unpack};

use kept::Kept;
pub use kept::LayerArchive;

/// A layer that was used so lately is not removed: whoever used it may not yet have said so.
const GRACE: Duration = Duration::from_secs(600);

const PARTIAL: &str = ".partial-";
const TRASH: &str = ".trash-";

/// What is known of a layer without looking into it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// About what it takes on disk.
    pub(crate) disk_bytes: u64,
    /// Uncompressed bytes of its archive.
    pub(crate) bytes: u64,
    /// Directories that it only implies, in hex: names need not be text.
    #[serde(default)]
    implied: Vec<String>,
    /// Nothing of lower layers shows through it.
    #[serde(default)]
    pub(crate) hides_all: bool,
    /// What it was unpacked from, if that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    archive: Option<LayerArchive>,
}

impl Facts {
    fn of(unpacked: &Unpacked, archive: Option<LayerArchive>) -> Self {
        Self {
            disk_bytes: unpacked.disk_bytes + archive.map_or(0, |archive| archive.bytes),
            archive,
            bytes: unpacked.bytes,
            implied: unpacked.implied.iter().map(hex::encode).collect(),
            hides_all: unpacked.hides_all,
        }
    }

    /// Directories that it only implies.
    pub(crate) fn implied(&self) -> impl Iterator<Item = Vec<u8>> {
        self.implied.iter().filter_map(|name| hex::decode(name).ok())
    }
}

/// Why a layer is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    /// Its bytes are wrong.
    #[error(transparent)]
    Layer(LayerError),
    /// Its bytes are others than were promised.
    #[error("{what} has the digest {found} in the place of {expected}")]
    Digest {
        what: &'static str,
        expected: Digest,
        found: Digest,
    },
    /// The disk refused.
    #[error("{0} failed")]
    Disk(&'static str, #[source] io::Error),
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evicted {
    /// How many layers.
    pub layers: usize,
    /// About what they took on disk.
    pub bytes: u64,
    /// About what is left takes.
    pub left_bytes: u64,
}

/// The layers of a node. One process has them at a time.
#[derive(Debug)]
pub(crate) struct Layers {
    dir: PathBuf,
    held: Arc<Mutex<HashMap<Digest, usize>>>,
    gates: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    count: AtomicU64,
    /// Kept open: it is locked.
    _lock: File,
}

/// A layer that stays where it is while this is there.
#[derive(Debug)]
pub(crate) struct Hold {
    digest: Digest,
    held: Arc<Mutex<HashMap<Digest, usize>>>,
    facts: PathBuf,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // From here on its user must have said that it needs it; there is time for that.
        touch(&self.facts);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.digest);
            }
        }
    }
}

impl Layers {
    /// Opens the store, makes it where there is none, and removes what a process that died left half made.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        let mut private = fs::DirBuilder::new();
        // Programs with the set-user-ID bit are in there: no user of the host may come near.
        private.recursive(true).mode(0o700);
        for part in ["layers", "facts", "archives"] {
            private.create(dir.join(part))?;
        }
        // Also where somebody else has made it.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another process uses the images in this directory",
            ),
            fs::TryLockError::Error(error) => error,
        })?;
        let layers = Self {
            dir: dir.to_owned(),
            held: Arc::default(),
            gates: Mutex::default(),
            count: AtomicU64::new(0),
            _lock: lock,
        };
        layers.sweep()?;
        Ok(layers)
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.dir.join("layers"))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(PARTIAL) || name.starts_with(TRASH) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        // Facts and archives come before the layer, and go after it.
        for (part, suffix) in [("facts", ".json"), ("archives", "")] {
            for entry in fs::read_dir(self.dir.join(part))? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let has_layer = name
                    .strip_suffix(suffix)
                    .filter(|hex| !hex.starts_with(PARTIAL))
                    .is_some_and(|hex| self.dir.join("layers").join(hex).is_dir());
                if !has_layer {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Where a layer is, or will be.
    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join("layers").join(digest.hex())
    }

    fn facts_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("facts").join(format!("{}.json", digest.hex()))
    }

    fn archive_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("archives").join(digest.hex())
    }

    /// What a layer was unpacked from, if it is kept. What is in it is not looked at.
    pub(crate) fn archive(&self, digest: Digest, facts: &Facts) -> Option<(LayerArchive, File)> {
        let archive = facts.archive?;
        let file = File::open(self.archive_path(digest)).ok()?;
        let is_whole = file.metadata().is_ok_and(|about| about.len() == archive.bytes);
        is_whole.then_some((archive, file))
    }

    /// Removes an archive that is not what it was. The layer stays.
    pub(crate) fn forget_archive(&self, digest: Digest) -> io::Result<()> {
        remove_file(&self.archive_path(digest))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layer that is there, with what is known of it, and stays while it is held.
    pub(crate) fn find(&self, digest: Digest) -> Option<(Hold, Facts)> {
        let mut held = self.held();
        if !self.path(digest).is_dir() {
            return None;
        }
        *held.entry(digest).or_default() += 1;
        drop(held);
        let facts = self.facts_path(digest);
        touch(&facts);
        let hold = Hold {
            digest,
            held: Arc::clone(&self.held),
            facts: facts.clone(),
        };
        let known = fs::read(&facts)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        Some((hold, known.unwrap_or_default()))
    }

    /// One at a time makes a layer; the others wait, and find it.
    pub(crate) fn gate(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waits holds a share of his gate.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        Arc::clone(gates.entry(digest).or_default())
    }

    /// Makes a layer from its bytes, which must be those of these digests, and with `keeps` keeps what it was unpacked from. It
    /// is there as a whole and durable when this returns, or not at all. One that is there already gets its archive so. Blocks.
    pub(crate) fn make(
        &self,
        diff: Digest,
        blob: Option<Digest>,
        input: impl Read,
        limits: Limits,
        keeps: bool,
    ) -> Result<Unpacked, MakeError> {
        const KEEPING: &str = "keeping the archive of a layer";
        let disk = |step| move |error: io::Error| MakeError::Disk(step, error);
        let partial = Partial::new(self).map_err(disk("making a directory for a layer"))?;
        let verified = |unpacked: &Unpacked| {
            if let Some(blob) = blob {
                same("as it was sent", blob, unpacked.blob)?;
            }
            same("uncompressed", diff, unpacked.diff)
        };
        if !keeps {
            let unpacked = unpack(input, &partial.path, limits).map_err(MakeError::Layer)?;
            verified(&unpacked)?;
            self.name(partial, diff, &Facts::of(&unpacked, None), None)?;
            return Ok(unpacked);
        }
        let (file, path) = self.partial_archive().map_err(disk(KEEPING))?.into_parts();
        let mut kept = Kept::new(input, file);
        let unpacked = unpack(&mut kept, &partial.path, limits).map_err(MakeError::Layer)?;
        verified(&unpacked)?;
        let archive = kept.finish(&unpacked).map_err(disk(KEEPING))?;
        self.name(partial, diff, &Facts::of(&unpacked, Some(archive)), Some(path))?;
        Ok(unpacked)
    }

    /// An archive that has no name yet. It goes when it gets none.
    fn partial_archive(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempfile_in(self.dir.join("archives"))
    }

    /// Makes a layer by hand. Blocks.
    pub(crate) fn make_by(
        &self,
        digest: Digest,
        fill: impl FnOnce(&Path) -> io::Result<u64>,
    ) -> Result<(), MakeError> {
        let partial =
            Partial::new(self).map_err(|error| MakeError::Disk("making a directory for a layer", error))?;
        let disk_bytes = fill(&partial.path).map_err(|error| MakeError::Disk("filling a layer", error))?;
        let facts = Facts {
            disk_bytes,
            ..Facts::default()
        };
        self.name(partial, digest, &facts, None)
    }

    fn name(
        &self,
        mut partial: Partial,
        digest: Digest,
        facts: &Facts,
        archive: Option<tempfile::TempPath>,
    ) -> Result<(), MakeError> {
        let disk = |step| move |error: io::Error| MakeError::Disk(step, error);
        let dir = File::open(&partial.path).map_err(disk("opening a layer"))?;
        // One flush for all of its files, and its archive: of the whole file system, and yet far less than one for each.
        rustix::fs::syncfs(&dir).map_err(|errno| disk("flushing a layer")(errno.into()))?;
        drop(dir);
        if let Some(archive) = archive {
            let named = archive.persist(self.archive_path(digest));
            named.map_err(|error| disk("naming the archive of a layer")(error.error))?;
            let flushed = sync_dir(&self.dir.join("archives"));
            flushed.map_err(disk("flushing the name of an archive"))?;
        }
        self.write_facts(digest, facts)
            .map_err(disk("writing down what is known of a layer"))?;
        let path = self.path(digest);
        match fs::rename(&partial.path, &path) {
            Ok(()) => partial.is_named = true,
            // Somebody was faster, with the same.
            Err(_) if path.is_dir() => return Ok(()),
            Err(error) => return Err(MakeError::Disk("naming a layer", error)),
        }
        sync_dir(&self.dir.join("layers")).map_err(disk("flushing a layer's name"))
    }

    fn write_facts(&self, digest: Digest, facts: &Facts) -> io::Result<()> {
        write_whole(&self.facts_path(digest), &serde_json::to_vec(facts)?)
    }

    /// Removes the longest unused layers until all take no more than so many bytes. Those that are in use, held, or were used
    /// just now stay, whatever they take. Blocks.
    pub(crate) fn evict(&self, bytes_max: u64, in_use: &HashSet<PathBuf>) -> io::Result<Evicted> {
        self.evict_unused_for(bytes_max, in_use, GRACE)
    }

    pub(crate) fn evict_unused_for(
        &self,
        bytes_max: u64,
        in_use: &HashSet<PathBuf>,
        grace: Duration,
    ) -> io::Result<Evicted> {
        let now = SystemTime::now();
        let mut all = Vec::new();
        let mut left_bytes = 0;
        for entry in fs::read_dir(self.dir.join("layers"))? {
            let name = entry?.file_name();
            let Ok(digest) = format!("sha256:{}", name.to_string_lossy()).parse::<Digest>() else {
                continue;
            };
            let path = self.facts_path(digest);
            let facts: Facts = fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default();
            let used = fs::metadata(&path)
                .and_then(|meta| meta.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH);
            left_bytes += facts.disk_bytes;
            all.push((used, digest, facts.disk_bytes));
        }
        all.sort_unstable();
        let mut evicted = Evicted::default();
        for (used, digest, bytes) in all {
            if left_bytes <= bytes_max {
                break;
            }
            let is_young = now.duration_since(used).is_ok_and(|age| age < grace);
            if is_young || in_use.contains(&self.path(digest)) {
                continue;
            }
            if self.remove(digest)? {
                left_bytes -= bytes;
                evicted.layers += 1;
                evicted.bytes += bytes;
            }
        }
        evicted.left_bytes = left_bytes;
        Ok(evicted)
    }

    /// Takes a layer's name away, unless it is held, and then what it names.
    fn remove(&self, digest: Digest) -> io::Result<bool> {
        let trash = self
            .dir
            .join("layers")
            .join(format!("{TRASH}{}", self.count.fetch_add(1, Ordering::Relaxed)));
        {
            let held = self.held();
            if held.contains_key(&digest) {
                return Ok(false);
            }
            fs::rename(self.path(digest), &trash)?;
        }
        let removed = remove_file(&self.facts_path(digest));
        let removed = removed.and(remove_file(&self.archive_path(digest)));
        fs::remove_dir_all(&trash)?;
        removed.map(|()| true)
    }
}

/// None is no error.
fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// A layer that has no name yet.
struct Partial {
    path: PathBuf,
    is_named: bool,
}

impl Partial {
    fn new(layers: &Layers) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let count = layers.count.fetch_add(1, Ordering::Relaxed);
        let path = layers.dir.join("layers").join(format!("{PARTIAL}{count}"));
        fs::create_dir(&path)?;
        // What a root is that has no entry in its archive.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            path,
            is_named: false,
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_named {
            // What cannot be removed now is swept at the next start.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn same(what: &'static str, expected: Digest, found: Digest) -> Result<(), MakeError> {
    if expected == found {
        return Ok(());
    }
    Err(MakeError::Digest {
        what,
        expected,
        found,
    })
}

/// Notes that something was used. Where that cannot be noted, it looks older than it is.
fn touch(path: &Path) {
    let now = rustix::fs::Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    };
    let times = rustix::fs::Timestamps {
        last_access: now,
        last_modification: now,
    };
    let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty());
}

/// Puts a file in its place, whole and durable.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
