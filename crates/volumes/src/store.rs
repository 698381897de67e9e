//! Which volumes there are, who uses them, and when they are mounted.
//!
//! ```text
//! <data>/volumes/<id>.json       the record, before anything else is there
//! <images>/<id>.img              an ext4 image as large as the volume may become
//! <data>/mounts/volumes/<id>/    where it is mounted while somebody uses it
//! ```
//!
//! Owners on the image are as sandboxes see them: the host's mount maps nothing.
//!
//! **Invariants.** One image is mounted once. Nobody but root of the host can enter the host's mount, and on it setuid bits
//! mean nothing.
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use model::{MiB, VolumeId};
use ports::RuntimeError;
use ports::step::{At, Step};
use ports::volumes::FileError;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::places::{How, Places};
use crate::turns::Turns;

/// The least that ext4 with a journal is worth anything.
const SIZE_MIN: MiB = MiB(16);
/// The most that ext4 with blocks of 4 KiB holds.
const SIZE_MAX: MiB = MiB(16 << 20);
/// Who owns what nobody said an owner of: `user` of every sandbox.
pub const OWNER: u32 = 1000;
/// Whoever looks into a volume looks again: it stays mounted that long after the last look.
const IDLE: Duration = Duration::from_secs(3);
/// Whoever has just ended lets go of what it had a moment later.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);
/// A file system that was written to much takes a while to be unmounted.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(10);

/// What is on record of a volume.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    size: MiB,
    made_at: SystemTime,
}

/// All volumes of this node.
#[derive(Debug)]
pub struct Volumes {
    records: PathBuf,
    images: PathBuf,
    places: Places,
    seats: Mutex<BTreeMap<VolumeId, Arc<Mutex<Seat>>>>,
    /// What each holder has.
    lent: Mutex<BTreeMap<String, BTreeSet<VolumeId>>>,
    /// Whose turn it is to look into one.
    pub(crate) turns: Turns,
    /// The same for machines: neither keeps the other waiting.
    pub(crate) machines: Turns,
}

/// Who uses a volume. Held while it is mounted and unmounted.
#[derive(Debug, Default)]
struct Seat {
    /// Whose machines have it.
    holders: BTreeSet<String>,
    /// How many of us look into it.
    visits: usize,
    /// When the last of those ended.
    idle_since: Option<Instant>,
}

impl Volumes {
    /// Opens the records below `data`; images lie in the directory `images`.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn open(data: &Path, images: PathBuf) -> Result<Self, Step> {
        let records = data.join("volumes");
        for dir in [&records, &images] {
            fs::create_dir_all(dir).at(format!("making {}", dir.display()))?;
        }
        Ok(Self {
            records,
            images,
            places: Places::open(data, "volumes", How::Writable)?,
            seats: Mutex::default(),
            lent: Mutex::default(),
            turns: Turns::default(),
            machines: Turns::default(),
        })
    }

    fn record(&self, id: VolumeId) -> PathBuf {
        self.records.join(format!("{id}.json"))
    }

    fn image(&self, id: VolumeId) -> PathBuf {
        self.images.join(format!("{id}.img"))
    }

    /// One that was not finished has a record and no image.
    fn exists(&self, id: VolumeId) -> bool {
        self.image(id).exists() && self.record(id).exists()
    }

    fn seat(&self, id: VolumeId) -> Arc<Mutex<Seat>> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(seats.entry(id).or_default())
    }

    /// Makes an empty one. One that is there already is no error: whoever asks again was not answered.
    pub(crate) fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError> {
        if size < SIZE_MIN || size > SIZE_MAX {
            return Err(FileError::Invalid(format!(
                "a volume of {size}: at least {SIZE_MIN} and at most {SIZE_MAX} is possible"
            )));
        }
        let seat = self.seat(id);
        let _seat = held(&seat);
        if self.exists(id) {
            return Ok(());
        }
        let record = Record {
            size,
            made_at: SystemTime::now(),
        };
        write_durably(&self.record(id), &record).map_err(|step| failed("recording a volume", step))?;
        failpoint::reach("volumes/recorded");
        make_image(&self.image(id), size).map_err(|step| failed("making a volume", step))
    }

    /// Removes one with everything in it.
    pub(crate) fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        let seat = self.seat(id);
        let seat = held(&seat);
        if !seat.holders.is_empty() || seat.visits > 0 {
            return Err(FileError::InUse(id));
        }
        self.unmount(id, UNMOUNTED_WITHIN)
            .map_err(|step| failed("unmounting a volume", step))?;
        for path in [self.image(id), self.record(id)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|source| FileError::Failed {
                    step: "deleting a volume",
                    source,
                })?,
            }
            failpoint::reach("volumes/removed");
        }
        drop(seat);
        self.seats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        Ok(())
    }

    /// All that are on record, finished or not.
    pub(crate) fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        let failed = |source| FileError::Failed {
            step: "reading the records of volumes",
            source,
        };
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.records).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            held.extend(id.and_then(|id| id.parse::<VolumeId>().ok()));
        }
        Ok(held)
    }

    /// Has a volume mounted for a machine, and says where. It is in use from then on, until [`Volumes::take_back`].
    ///
    /// # Errors
    /// [`RuntimeError::NoVolume`], or it cannot be mounted.
    pub fn lend(&self, id: VolumeId, holder: &str) -> Result<PathBuf, RuntimeError> {
        let seat = self.seat(id);
        let mut seat = held(&seat);
        if !self.exists(id) {
            return Err(RuntimeError::NoVolume(id));
        }
        let place = self.places.mount(&id.to_string(), &self.image(id))?;
        self.note(&mut seat, id, holder);
        Ok(place)
    }

    fn note(&self, seat: &mut Seat, id: VolumeId, holder: &str) {
        seat.holders.insert(holder.to_owned());
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.entry(holder.to_owned()).or_default().insert(id);
    }

    /// Notes that a machine of an earlier daemon has a volume.
    pub fn is_lent(&self, id: VolumeId, holder: &str) {
        self.note(&mut held(&self.seat(id)), id, holder);
    }

    /// Notes that a holder has no machine any more. Volumes that nobody uses then are unmounted.
    pub fn take_back(&self, holder: &str) {
        let had = self
            .lent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(holder);
        for id in had.into_iter().flatten() {
            let seat = self.seat(id);
            let mut seat = held(&seat);
            seat.holders.remove(holder);
            self.unmount_unused(id, &seat, LET_GO_WITHIN);
        }
    }

    /// Unmounts all, whoever mounted them, and removes what was never finished or no longer wanted. Before anything is used.
    pub fn recover(&self) {
        self.unmount_all(Duration::ZERO);
        let ids = |dir: &Path, kind: &str| -> Vec<Option<VolumeId>> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.file_name().to_str()?.strip_suffix(kind)?.parse().ok())
                .collect()
        };
        for id in ids(&self.records, ".json").into_iter().flatten() {
            if !self.image(id).exists() {
                let _ = fs::remove_file(self.record(id));
            }
        }
        for id in ids(&self.images, ".img").into_iter().flatten() {
            if !self.record(id).exists() {
                let _ = fs::remove_file(self.image(id));
            }
        }
        for id in ids(&self.images, ".partial").into_iter().flatten() {
            let _ = fs::remove_file(self.image(id).with_extension("partial"));
        }
    }

    /// Unmounts all. Machines that have one go on having it.
    pub fn unmount_all(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for name in self.places.all() {
            while let Err(error) = self.places.unmount(&name) {
                if Instant::now() >= deadline {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        cause = %error.source,
                        "a volume stays mounted"
                    );
                    break;
                }
                #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn unmount(&self, id: VolumeId, patience: Duration) -> Result<(), Step> {
        let deadline = Instant::now() + patience;
        loop {
            match self.places.unmount(&id.to_string()) {
                Err(busy)
                    if busy.source.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
                        && Instant::now() < deadline => {}
                unmounted => return unmounted,
            }
            #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn unmount_unused(&self, id: VolumeId, seat: &Seat, patience: Duration) {
        if !seat.holders.is_empty() || seat.visits > 0 {
            return;
        }
        if let Err(error) = self.unmount(id, patience) {
            tracing::warn!(
                volume = %id,
                error = &error as &dyn std::error::Error,
                cause = %error.source,
                "a volume stays mounted"
            );
        }
    }

    /// Comes to look into a volume: it is mounted as long as this is held, and a moment longer.
    pub(crate) fn visit(self: &Arc<Self>, id: VolumeId) -> Result<Visit, FileError> {
        let seat = self.seat(id);
        let mut seat = held(&seat);
        if !self.exists(id) {
            return Err(FileError::NoVolume);
        }
        let place = self
            .places
            .mount(&id.to_string(), &self.image(id))
            .map_err(|step| failed("mounting a volume", step))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&place, flags, Mode::empty()).map_err(|errno| FileError::Failed {
            step: "opening a volume",
            source: errno.into(),
        })?;
        seat.visits += 1;
        Ok(Visit {
            root: Some(root),
            volumes: Arc::clone(self),
            id,
        })
    }

    fn leave(self: &Arc<Self>, id: VolumeId) {
        {
            let seat = self.seat(id);
            let mut seat = held(&seat);
            seat.visits -= 1;
            if !seat.holders.is_empty() || seat.visits > 0 {
                return;
            }
            seat.idle_since = Some(Instant::now());
        }
        // Without a runtime the daemon is ending, and unmounts all.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let volumes = Arc::downgrade(self);
        runtime.spawn(async move {
            tokio::time::sleep(IDLE).await;
            let Some(volumes) = volumes.upgrade() else { return };
            let unmounted = tokio::task::spawn_blocking(move || {
                let seat = volumes.seat(id);
                let seat = held(&seat);
                if seat.idle_since.is_some_and(|since| since.elapsed() >= IDLE) {
                    volumes.unmount_unused(id, &seat, Duration::ZERO);
                }
            });
            let _ = unmounted.await;
        });
    }
}

fn held(seat: &Mutex<Seat>) -> MutexGuard<'_, Seat> {
    seat.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(step: &'static str, because: Step) -> FileError {
    match because
        .source
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::NOSPC) => FileError::Full,
        _ => FileError::Failed {
            step,
            source: std::io::Error::other(format!("{because}: {}", because.source)),
        },
    }
}

/// A look into a volume.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Its root; gone before the visit is over.
    root: Option<OwnedFd>,
    volumes: Arc<Volumes>,
    id: VolumeId,
}

impl Visit {
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root
            .as_ref()
            .expect("it is there until the visit is over")
            .as_fd()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.root = None;
        self.volumes.leave(self.id);
    }
}

fn make_image(image: &Path, size: MiB) -> Result<(), Step> {
    let partial = image.with_extension("partial");
    let _ = fs::remove_file(&partial);
    let file = File::create(&partial).at(format!("making {}", partial.display()))?;
    file.set_len(size.bytes())
        .at(format!("growing {}", partial.display()))?;
    let owner = format!("lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner={OWNER}:{OWNER}");
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-E", &owner])
        .arg(&partial))?;
    // Nobody is to find a directory that is none of his; e2fsck makes it when it needs it.
    run(Command::new("debugfs")
        .args(["-w", "-R", "rmdir lost+found"])
        .arg(&partial))?;
    file.sync_all()
        .at(format!("writing {} through", partial.display()))?;
    fs::rename(&partial, image).at(format!("naming {}", image.display()))?;
    sync_names(image)
}

fn run(command: &mut Command) -> Result<(), Step> {
    let program = command.get_program().to_string_lossy().into_owned();
    linux::program::run(command).at(format!("running {program}"))
}

/// Replaces a file by a record, whole or not at all, so that it outlives a loss of power.
fn write_durably(path: &Path, record: &Record) -> Result<(), Step> {
    let step = || format!("writing {}", path.display());
    let partial = path.with_extension("partial");
    let bytes = serde_json::to_vec(record).at(step())?;
    File::create(&partial)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .at(step())?;
    fs::rename(&partial, path).at(step())?;
    sync_names(path)
}

/// Writes the directory that a path lies in through to the host's disk.
fn sync_names(path: &Path) -> Result<(), Step> {
    let names = path.parent().unwrap_or(path);
    File::open(names)
        .and_then(|names| names.sync_all())
        .at(format!("writing {} through", names.display()))
}
