//! Memory that was written down: how a machine's devices are, its pages, and what both fit.
//!
//! ```text
//! <data>/states/<id>/state     Firecracker's
//! <data>/states/<id>/memory    all pages, or, of a `Diff`, those alone that were written to since `base` was loaded
//! ```
//!
//! A difference is durable as soon as it is written, which is soon; [`rebase`] makes a whole of it and of what it differs from when
//! there is time, and before a machine is brought back from it. No difference is one from another difference.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use microvm::files::{Files, sync_dir};
use model::MiB;
use ports::runtime::MemoryFile;
use ports::step::{At, Step};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::disk;
use crate::version::Version;

/// What of a file is looked at, at once: a page of the guest's.
const PAGE_BYTES: usize = 4096;
/// Devices' states have some ten kilobytes.
const STATE_BYTES_MAX: u64 = 64 << 20;
const UNPOISONED: &str = "nothing panics while it holds what was seen";

/// A machine's memory, as it is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The directory of its files.
    pub(crate) id: Uuid,
    pub(crate) state: Sealed,
    pub(crate) pages: Pages,
    pub(crate) fits: Fits,
}

impl Memory {
    /// Its files, without those that it may differ from.
    pub(crate) fn files(&self) -> Vec<(Uuid, MemoryFile)> {
        [MemoryFile::Devices, MemoryFile::Pages]
            .map(|file| (self.id, file))
            .to_vec()
    }

    /// Whether a build of ours could have it.
    pub(crate) fn is_possible(&self) -> Result<(), &'static str> {
        let Pages::Whole(pages) = &self.pages else {
            return Err("its memory is not whole");
        };
        if self.state.length_bytes == 0
            || self.state.length_bytes > STATE_BYTES_MAX
            || pages.length_bytes != self.fits.memory.bytes()
        {
            return Err("its memory has a size that none has");
        }
        Ok(())
    }
}

/// Its pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pages {
    /// All of them.
    Whole(Sealed),
    /// Those that were written to since `base` was loaded.
    Diff {
        /// Of the file with those.
        diff: Sealed,
        /// What it differs from: it has all pages.
        base: Uuid,
        /// Of its pages.
        base_pages: Sealed,
    },
}

/// What a file was when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub(crate) length_bytes: u64,
    /// SHA-256 over every page that is there, each after its number; see [`Cover`].
    pub(crate) digest: String,
}

/// What a digest is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cover {
    /// Pages that hold something: what is zero may be a hole or not.
    Content,
    /// Pages that were written: what is zero hides what lies below it.
    Written,
}

/// What has to be the same where memory is brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fits {
    /// Firecracker's version: an older one may have faults that this one has not.
    pub(crate) firecracker: Version,
    /// The format of its snapshots.
    pub(crate) format: String,
    pub(crate) processor: String,
    pub(crate) memory: MiB,
    pub(crate) cpus: u32,
    /// The guest's kernel and what comes with it.
    pub(crate) bundle: String,
    pub(crate) disk_bytes: u64,
    /// Whether it has a network card.
    pub(crate) network: bool,
    /// Whether it is told things by MMDS.
    pub(crate) metadata: bool,
}

impl Fits {
    /// Why memory that fits `self` does not fit `here`.
    pub(crate) fn differs_from(&self, here: &Fits) -> Option<String> {
        let told = |what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
            Some(format!("{what} was {was} and is {is}"))
        };
        let given = |is: bool| if is { "given" } else { "none" };
        if self.format != here.format {
            return told(
                "the format of Firecracker's snapshots",
                &self.format,
                &here.format,
            );
        }
        if !self.firecracker.is_at_most(&here.firecracker) {
            return told(
                "Firecracker, which must not become older,",
                &self.firecracker,
                &here.firecracker,
            );
        }
        if self.processor != here.processor {
            return told("the processor", &self.processor, &here.processor);
        }
        if self.bundle != here.bundle {
            return told("the guest's kernel", &self.bundle, &here.bundle);
        }
        if self.memory != here.memory {
            return told("its size", &self.memory, &here.memory);
        }
        if self.cpus != here.cpus {
            return told("the number of its processors", &self.cpus, &here.cpus);
        }
        if self.disk_bytes != here.disk_bytes {
            return told(
                "the size of its disk, in bytes,",
                &self.disk_bytes,
                &here.disk_bytes,
            );
        }
        if self.network != here.network {
            return told("its network", &given(self.network), &given(here.network));
        }
        if self.metadata != here.metadata {
            return told("its metadata", &given(self.metadata), &given(here.metadata));
        }
        None
    }
}

/// Where the files of a state are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
}

impl Place {
    pub(crate) fn of(states: &Files, id: Uuid) -> Self {
        Self { dir: states.path(id) }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Makes both files, empty: a Firecracker that is lent them makes none.
    pub(crate) fn make(&self) -> Result<(), Step> {
        let step = || format!("making {}", self.dir.display());
        fs::create_dir(&self.dir).at(step())?;
        for file in [self.state(), self.memory()] {
            fs::File::create_new(file).at(step())?;
        }
        Ok(())
    }
}

/// Files that were found to be what they were sealed as. They are ours alone: one that has not been written to since is not read
/// again, so that of many copies of a machine the first alone waits for that.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<BTreeMap<PathBuf, (Seen, String)>>);

/// As good as its content. Links to it change none of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    length: u64,
    written: (i64, i64),
}

impl Seen {
    fn of(file: &fs::File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self {
            device: about.dev(),
            inode: about.ino(),
            length: about.len(),
            written: (about.mtime(), about.mtime_nsec()),
        })
    }
}

impl Known {
    /// Why a file is not what was sealed.
    fn is_damaged(&self, path: &Path, cover: Cover, sealed: &Sealed) -> Result<Option<String>, Step> {
        let step = || format!("looking at {}", path.display());
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some("it is not there any more".to_owned()));
            }
            Err(error) => return Err(error).at(step()),
        };
        let seen = Seen::of(&file).at(step())?;
        if seen.length != sealed.length_bytes {
            let was = sealed.length_bytes;
            return Ok(Some(format!("it has {} bytes, and had {was}", seen.length)));
        }
        let known = self.0.lock().expect(UNPOISONED).get(path).cloned();
        if known.is_some_and(|(was, digest)| was == seen && digest == sealed.digest) {
            return Ok(None);
        }
        let digest = measure(&file, cover).at(step())?;
        if digest != sealed.digest {
            return Ok(Some("its content has changed".to_owned()));
        }
        // Not if somebody wrote to it meanwhile.
        if Seen::of(&file).at(step())? == seen {
            self.note(path, seen, digest);
        }
        Ok(None)
    }

    fn note(&self, path: &Path, seen: Seen, digest: String) {
        let mut known = self.0.lock().expect(UNPOISONED);
        // Those that were removed.
        known.retain(|path, _| path.exists());
        known.insert(path.to_owned(), (seen, digest));
    }

    /// Measures a file that was written, and makes it durable.
    fn seal(&self, path: &Path, cover: Cover) -> Result<Sealed, Step> {
        let step = || format!("sealing {}", path.display());
        let file = fs::File::open(path).at(step())?;
        file.sync_all().at(step())?;
        let seen = Seen::of(&file).at(step())?;
        let digest = measure(&file, cover).at(step())?;
        self.note(path, seen, digest.clone());
        Ok(Sealed {
            length_bytes: seen.length,
            digest,
        })
    }
}

/// What of a machine's pages Firecracker has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    Whole,
    Since { base: Uuid, base_pages: Sealed },
}

/// Measures a state that was written, and makes it durable.
pub(crate) fn seal(
    known: &Known,
    states: &Files,
    id: Uuid,
    written: Written,
    fits: Fits,
) -> Result<Memory, Step> {
    let place = Place::of(states, id);
    let (path, wanted) = (place.memory(), fits.memory.bytes());
    let length = fs::metadata(&path)
        .at(format!("looking at {}", path.display()))?
        .len();
    if length != wanted {
        let why = format!("it has {length} bytes, and the machine {wanted}");
        return Err(io::Error::other(why)).at(format!("sealing {}", path.display()));
    }
    let state = known.seal(&place.state(), Cover::Content)?;
    if state.length_bytes == 0 || state.length_bytes > STATE_BYTES_MAX {
        let why = format!("it has {} bytes", state.length_bytes);
        return Err(io::Error::other(why)).at(format!("sealing {}", place.state().display()));
    }
    let pages = match written {
        Written::Whole => Pages::Whole(known.seal(&path, Cover::Content)?),
        Written::Since { base, base_pages } => Pages::Diff {
            diff: known.seal(&path, Cover::Written)?,
            base,
            base_pages,
        },
    };
    sync_dir(&place.dir)?;
    states.sync_names()?;
    Ok(Memory {
        id,
        state,
        pages,
        fits,
    })
}

/// Why a state is not the one that was sealed, by the part that is not.
pub(crate) fn is_damaged(known: &Known, states: &Files, memory: &Memory) -> Result<Option<String>, Step> {
    let place = Place::of(states, memory.id);
    let mut parts = vec![(
        place.state(),
        Cover::Content,
        &memory.state,
        "the state of its devices",
    )];
    match &memory.pages {
        Pages::Whole(pages) => parts.push((place.memory(), Cover::Content, pages, "its memory")),
        Pages::Diff {
            diff,
            base,
            base_pages,
        } => {
            let below = Place::of(states, *base).memory();
            parts.push((place.memory(), Cover::Written, diff, "what changed of its memory"));
            parts.push((below, Cover::Content, base_pages, "its memory of before"));
        }
    }
    for (path, cover, sealed, what) in parts {
        if let Some(why) = known.is_damaged(&path, cover, sealed)? {
            return Ok(Some(format!("{what}: {why}")));
        }
    }
    Ok(None)
}

/// Makes, under the new name `into`, a whole of a difference and of what it differs from; `None` where it is one. Whoever calls this
/// has found neither damaged. Blocks.
pub(crate) fn rebase(
    known: &Known,
    states: &Files,
    memory: &Memory,
    into: Uuid,
) -> Result<Option<Memory>, Step> {
    let Pages::Diff { base, .. } = &memory.pages else {
        return Ok(None);
    };
    let (from, below, whole) = (
        Place::of(states, memory.id),
        Place::of(states, *base),
        Place::of(states, into),
    );
    let step = || format!("making {} whole", from.dir.display());
    fs::create_dir(&whole.dir).at(step())?;
    fs::hard_link(from.state(), whole.state()).at(step())?;
    disk::copy(&below.memory(), &whole.memory(), 0)?;
    let made = fs::File::options().write(true).open(whole.memory()).at(step())?;
    let over = fs::File::open(from.memory()).at(step())?;
    disk::copy_data(&over, &made).at(step())?;
    drop(made);
    crate::jail::take_back(&whole.memory())?;
    seal(known, states, into, Written::Whole, memory.fits.clone()).map(Some)
}

fn measure(file: &fs::File, cover: Cover) -> io::Result<String> {
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * PAGE_BYTES];
    let page_bytes = PAGE_BYTES as u64;
    disk::stretches(file, |begin, end| {
        // Whole pages, so that it does not matter how a file system tells its holes.
        let (mut at, end) = (
            begin - begin % page_bytes,
            end.next_multiple_of(page_bytes).min(length),
        );
        while at < end {
            let room = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let read = buffer.get_mut(..room).unwrap_or_default();
            file.read_exact_at(read, at)?;
            for (n, page) in read.chunks(PAGE_BYTES).enumerate() {
                if cover == Cover::Written || page.iter().any(|byte| *byte != 0) {
                    hash.update((at / page_bytes + n as u64).to_le_bytes());
                    hash.update(page);
                }
            }
            at += room as u64;
        }
        Ok(())
    })?;
    hash.update(u64::MAX.to_le_bytes());
    hash.update(length.to_le_bytes());
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
