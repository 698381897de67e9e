//! Volumes: file systems that outlive sandboxes, and that several of them, and the content API, have at once.
//!
//! ```text
//! <data>/volumes/<id>.json       the record, before anything else is there
//! <volume>/volumes/<id>.img      an ext4 image as large as the volume may become
//! <data>/mounts/volumes/<id>/    where it is mounted while somebody uses it
//! ```
//!
//! Owners on the image are as sandboxes see them: the host's mount maps nothing, a sandbox's is mapped to its users.
//!
//! **Invariants.** One image is mounted once. Nobody but root of the host can enter the host's mount, and on it setuid bits
//! mean nothing.
mod files;
mod list;
mod remove;
mod turns;
mod within;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use linux::mount::{Attributes, set_attributes};
use model::{MiB, VolumeId};
use ports::RuntimeError;
use ports::volumes::FileError;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use serde::{Deserialize, Serialize};

use crate::places::{How, Places};
use crate::record::write_durably;
use crate::step::{At, Step};
use crate::volume;
use turns::Turns;

/// The least that ext4 with a journal is worth anything.
const SIZE_MIN: MiB = MiB(16);
/// The most that ext4 with blocks of 4 KiB holds.
const SIZE_MAX: MiB = MiB(16 << 20);
/// Who owns what nobody said an owner of: `user` of every sandbox.
pub(crate) const OWNER: u32 = 1000;
/// Whoever looks into a volume looks again: it stays mounted that long after the last look.
const IDLE: Duration = Duration::from_secs(3);
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
pub(crate) struct Volumes {
    records: PathBuf,
    images: PathBuf,
    places: Places,
    seats: Mutex<BTreeMap<VolumeId, Arc<Mutex<Seat>>>>,
    /// What slots have.
    lent: Mutex<BTreeMap<u32, BTreeSet<VolumeId>>>,
    /// Whose turn it is to look into one.
    turns: Turns,
}

/// Who uses a volume. Held while it is mounted and unmounted.
#[derive(Debug, Default)]
struct Seat {
    /// Slots whose machines have it.
    slots: BTreeSet<u32>,
    /// How many of us look into it.
    visits: usize,
    /// When the last of those ended.
    idle_since: Option<Instant>,
}

impl Volumes {
    /// Opens the records below `data`; images lie below `volume`, which shares extents.
    pub(crate) fn open(data: &Path, volume: &Path) -> Result<Self, Step> {
        let records = data.join("volumes");
        fs::create_dir_all(&records).at(format!("making {}", records.display()))?;
        Ok(Self {
            records,
            images: volume.join("volumes"),
            places: Places::open(data, "volumes", How::Writable)?,
            seats: Mutex::default(),
            lent: Mutex::default(),
            turns: Turns::default(),
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
        failpoint::reach("container/volume-recorded");
        make_image(&self.image(id), size).map_err(|step| failed("making a volume", step))
    }

    /// Removes one with everything in it.
    pub(crate) fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        let seat = self.seat(id);
        let seat = held(&seat);
        if !seat.slots.is_empty() || seat.visits > 0 {
            return Err(FileError::InUse(id));
        }
        self.unmount(id)
            .map_err(|step| failed("unmounting a volume", step))?;
        for path in [self.image(id), self.record(id)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|source| FileError::Failed {
                    step: "deleting a volume",
                    source,
                })?,
            }
            failpoint::reach("container/volume-removed");
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

    /// A mount of a volume for a machine, owners mapped to its users, attached nowhere. The volume is in use from then on,
    /// until [`Volumes::take_back`].
    pub(crate) fn lend(
        &self,
        id: VolumeId,
        slot: u32,
        users: BorrowedFd<'_>,
    ) -> Result<OwnedFd, RuntimeError> {
        let seat = self.seat(id);
        let mut seat = held(&seat);
        if !self.exists(id) {
            return Err(RuntimeError::NoVolume(id));
        }
        let place = self.places.mount(&id.to_string(), &self.image(id))?;
        self.note(&mut seat, id, slot);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, &place, flags)
            .at(format!("cloning the mount of {}", place.display()))?;
        let attributes = Attributes {
            id_map: Some(users),
            no_devices: true,
            setuid_again: true,
            ..Attributes::default()
        };
        set_attributes(tree.as_fd(), attributes).at(format!("mapping the owners of volume {id}"))?;
        Ok(tree)
    }

    fn note(&self, seat: &mut Seat, id: VolumeId, slot: u32) {
        seat.slots.insert(slot);
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent.entry(slot).or_default().insert(id);
    }

    /// Notes that a machine of an earlier daemon has a volume.
    pub(crate) fn is_lent(&self, id: VolumeId, slot: u32) {
        self.note(&mut held(&self.seat(id)), id, slot);
    }

    /// Notes that a slot has no machine any more. Volumes that nobody uses then are unmounted.
    pub(crate) fn take_back(&self, slot: u32) {
        let had = self
            .lent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&slot);
        for id in had.into_iter().flatten() {
            let seat = self.seat(id);
            let mut seat = held(&seat);
            seat.slots.remove(&slot);
            self.unmount_unused(id, &seat);
        }
    }

    /// Unmounts all, whoever mounted them, and removes what was never finished or no longer wanted. Before anything is used.
    pub(crate) fn recover(&self) {
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
    pub(crate) fn unmount_all(&self, patience: Duration) {
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

    fn unmount(&self, id: VolumeId) -> Result<(), Step> {
        let deadline = Instant::now() + UNMOUNTED_WITHIN;
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

    fn unmount_unused(&self, id: VolumeId, seat: &Seat) {
        if !seat.slots.is_empty() || seat.visits > 0 {
            return;
        }
        if let Err(error) = self.places.unmount(&id.to_string()) {
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
            if !seat.slots.is_empty() || seat.visits > 0 {
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
                    volumes.unmount_unused(id, &seat);
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
    volume::run(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-E", &owner])
            .arg(&partial),
    )?;
    // Nobody is to find a directory that is none of his; e2fsck makes it when it needs it.
    volume::run(
        Command::new("debugfs")
            .args(["-w", "-R", "rmdir lost+found"])
            .arg(&partial),
    )?;
    file.sync_all()
        .at(format!("writing {} through", partial.display()))?;
    fs::rename(&partial, image).at(format!("naming {}", image.display()))?;
    crate::record::sync_names(image)
}
