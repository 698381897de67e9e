//! Where memory lies, and what it fits.
//!
//! ```text
//! <volume>/builds/<id>.memory/         images of CRIU, and the manifest; nobody's until the build is on record
//! <volume>/kept/<sandbox>.memory/      the same beside the disk that belongs to it
//! <volume>/kept/<sandbox>.partial/     not finished: nobody's
//! ```
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use model::MiB;
use serde::{Deserialize, Serialize};

use crate::record::sync_names;
use crate::step::{At, Step};

/// The form of manifests that is written.
const FORM: u32 = 1;
const MANIFEST: &str = "manifest.json";

/// What memory was written down on, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    form: u32,
    /// The host's kernel, release and build.
    kernel: String,
    /// The host's processor: its model, and what it can do.
    cpu: String,
    /// Which CRIU wrote it.
    criu: String,
    /// The mounts that a machine is given beside its root.
    pub(crate) parts: Vec<Part>,
    /// The machine that it was.
    pub(crate) machine: Machine,
    /// The images, and how many bytes each has: CRIU may wait for ever for what is missing.
    images: BTreeMap<String, u64>,
}

/// A mount that is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// What the images call it.
    pub(crate) name: String,
    /// Where it is in the machine.
    pub(crate) target: String,
}

/// What the runtime must know of a machine to bring it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The address that it had: connections from and to it end with it.
    pub(crate) address: Ipv4Addr,
    /// The directory of the envd that it runs.
    pub(crate) agent: PathBuf,
    /// Its limit: with less it cannot be brought back.
    pub(crate) memory: MiB,
}

impl Manifest {
    pub(crate) fn new(criu: &str, parts: Vec<Part>, machine: Machine) -> Result<Self, Step> {
        Ok(Self {
            form: FORM,
            kernel: kernel(),
            cpu: cpu()?,
            criu: criu.to_owned(),
            parts,
            machine,
            images: BTreeMap::new(),
        })
    }

    /// What the images call the mount at a place.
    pub(crate) fn name_of(&self, target: &str) -> Option<&str> {
        self.parts
            .iter()
            .find(|part| part.target == target)
            .map(|part| part.name.as_str())
    }

    /// Refuses images that are not as they were written.
    pub(crate) fn is_whole(&self, dir: &Path) -> Result<(), String> {
        for (name, length) in &self.images {
            let found = fs::metadata(dir.join(name)).map(|about| about.len());
            if found.ok() != Some(*length) {
                return Err(format!("its image {name} is not whole"));
            }
        }
        Ok(())
    }

    /// Refuses what was written down by another form, kernel, processor or CRIU.
    pub(crate) fn fits(&self, criu: &str) -> Result<(), String> {
        if self.form != FORM {
            return Err(format!("it has form {}, and this Atoll knows {FORM}", self.form));
        }
        let now = kernel();
        if self.kernel != now {
            return Err(format!("it is of kernel {}, and this is {now}", self.kernel));
        }
        if self.criu != criu {
            return Err(format!(
                "it was written by CRIU {}, and this is {criu}",
                self.criu
            ));
        }
        let now = cpu().map_err(|failed| failed.to_string())?;
        if self.cpu != now {
            return Err(format!("it is of the processor {}, and this is {now}", self.cpu));
        }
        Ok(())
    }
}

/// The kernel's release and build.
pub(crate) fn kernel() -> String {
    let name = rustix::system::uname();
    format!(
        "{} {}",
        name.release().to_string_lossy(),
        name.version().to_string_lossy()
    )
}

/// The processor's model, and a number that changes with what it can do.
pub(crate) fn cpu() -> Result<String, Step> {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let text = fs::read_to_string("/proc/cpuinfo").at("reading /proc/cpuinfo")?;
    let first = text.split("\n\n").next().unwrap_or_default();
    let field = |names: [&str; 2]| {
        first
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| names.contains(&name.trim()))
            .map(|(_, value)| value.trim())
            .unwrap_or_default()
    };
    let mut hasher = DefaultHasher::new();
    field(["flags", "Features"]).hash(&mut hasher);
    Ok(format!(
        "{} ({:016x})",
        field(["model name", "CPU part"]),
        hasher.finish()
    ))
}

/// So many images are written through at a time. There are some forty, nearly all of them small: each waits for the disk's
/// answer and not for its work, and those that wait at once are answered at once.
const SYNCED_AT_ONCE: usize = 8;

/// Finishes the images in a directory: from here on they are there also after a loss of power. The directory must be one
/// that is nobody's: while this is under way its manifest may say more than is there.
pub(crate) fn finish(dir: &Path, mut manifest: Manifest) -> Result<(), Step> {
    let step = || format!("writing {} through", dir.display());
    let mut images = Vec::new();
    for image in fs::read_dir(dir).at(step())? {
        let image = image.at(step())?;
        let file = File::open(image.path()).at(step())?;
        let length = file.metadata().at(step())?.len();
        let name = image.file_name().to_string_lossy().into_owned();
        manifest.images.insert(name, length);
        images.push((length, file));
    }
    let path = dir.join(MANIFEST);
    fs::write(&path, serde_json::to_vec(&manifest).at(step())?).at(step())?;
    images.push((0, File::open(path).at(step())?));
    // The largest first, which takes as long as all others.
    images.sort_by_key(|(length, _)| Reverse(*length));
    let next = AtomicUsize::new(0);
    let sync = || {
        while let Some((_, image)) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
            image.sync_all().at(step())?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SYNCED_AT_ONCE).map(|_| scope.spawn(sync)).collect();
        threads.into_iter().try_for_each(|thread| {
            let synced = thread.join().map_err(|_| io::Error::other("a thread panicked"));
            synced.at(step())?
        })
    })?;
    sync_names(&dir.join(MANIFEST))?;
    sync_names(dir)
}

/// Brings images to the disk while they are still written, so that less of it is left to whoever finishes them. Until it is
/// dropped a thread of its own looks for pages that have come.
pub(crate) struct WriteAhead {
    /// Dropped, it ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Some megabytes come between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(4);

impl WriteAhead {
    /// Begins, with the images that come to lie in a directory.
    pub(crate) fn of(dir: &Path) -> Result<Self, Step> {
        let (stop, stopped) = mpsc::channel();
        let dir = dir.to_owned();
        let look = move || {
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                write_ahead(&dir);
            }
            write_ahead(&dir);
        };
        let thread = std::thread::Builder::new()
            .name("write-ahead".to_owned())
            .spawn(look)
            .at("starting to write images ahead")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for WriteAhead {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Begins to write what has come of memory itself. What fails here fails, and is told, when the images are finished.
fn write_ahead(dir: &Path) {
    for image in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_pages = image.file_name().as_encoded_bytes().starts_with(b"pages-");
        if is_pages && let Ok(file) = File::open(image.path()) {
            let _ = linux::file::begin_write_back(&file);
        }
    }
}

/// What a directory of images says of itself; `None` where there is none, or none that can be read.
pub(crate) fn manifest(dir: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
}

/// Deletes a directory of images. None is no error. Renamed first, so that what is half deleted is not taken for whole.
pub(crate) fn remove(dir: &Path) -> Result<(), Step> {
    let gone = dir.with_extension("gone");
    let _ = fs::remove_dir_all(&gone);
    match fs::rename(dir, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).at(format!("deleting {}", dir.display())),
        Ok(()) => fs::remove_dir_all(&gone).at(format!("deleting {}", dir.display())),
    }
}
