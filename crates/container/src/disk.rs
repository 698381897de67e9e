//! Writable disks: an ext4 image for each sandbox, with a size that `df` inside tells truly and no write gets past.
mod moved;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use linux::loopdev::LoopDevice;
use model::{BuildId, MiB, SandboxId};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::build::LINEAGE_MAX;
use crate::record::sync_names;
use crate::step::{At, Step};
use crate::volume::{self, Volume};

/// What every blank disk holds: the upper and work directories of the overlays.
const UPPERS: [&str; 2] = ["root", "usr"];
/// The least that ext4 with a journal and two overlays is worth anything.
pub(crate) const DISK_MIN: MiB = MiB(64);
/// The kernel unmounts a machine's disk a moment after its last process.
pub(crate) const RELEASED_WITHIN: Duration = Duration::from_secs(10);

/// A tenth of a small volume and at most this, in bytes: sandboxes that are there may write it, new ones are not made.
const RESERVE_BYTES_MAX: u64 = 1 << 30;

/// All disks of this node.
#[derive(Debug)]
pub(crate) struct Disks {
    volume: Volume,
    /// One blank disk is made at a time, and the volume grown once: the second who wants it finds it.
    making: Mutex<()>,
}

impl Disks {
    pub(crate) fn open(data: &Path) -> Result<Self, Step> {
        let volume = Volume::open(data)?;
        for dir in ["blank", "slots", "kept", "builds", "sealed", "volumes"] {
            let dir = volume.root().join(dir);
            fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
            // What lies in them is what sandboxes hold.
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
                .at(format!("closing {}", dir.display()))?;
        }
        Ok(Self {
            volume,
            making: Mutex::default(),
        })
    }

    /// The volume that they are on.
    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    fn blank(&self, size: MiB) -> PathBuf {
        // Those of the first form, without a 2, cannot be given a name of their own in no time.
        self.volume.root().join("blank").join(format!("{}-2.img", size.0))
    }

    /// The image that machines of a build begin with a copy of.
    pub(crate) fn of_build(&self, build: BuildId) -> PathBuf {
        self.volume.root().join("builds").join(format!("{build}.img"))
    }

    fn grown(&self, build: BuildId, size: MiB) -> PathBuf {
        self.volume
            .root()
            .join("builds")
            .join(format!("{build}.{}.img", size.0))
    }

    /// The image whose uppers are layers, of a build and of those made from it.
    pub(crate) fn of_sealed(&self, build: BuildId) -> PathBuf {
        self.volume.root().join("sealed").join(format!("{build}.img"))
    }

    /// Images of builds, and sealed ones, by the builds that they are named after. What is not finished is nobody's.
    pub(crate) fn of_builds(&self) -> Vec<(PathBuf, Image)> {
        let mut found = Vec::new();
        for dir in ["builds", "sealed"] {
            let entries = fs::read_dir(self.volume.root().join(dir))
                .into_iter()
                .flatten()
                .flatten();
            for entry in entries {
                let name = entry.file_name();
                let name = name.to_str().unwrap_or_default();
                let build = name.split('.').next().and_then(|build| build.parse().ok());
                let finished = name.ends_with(".img") || name.ends_with(".memory");
                let image = match build.filter(|_| finished) {
                    Some(build) if dir == "builds" => Image::Own(build),
                    Some(build) => Image::Sealed(build),
                    None => Image::Unfinished,
                };
                found.push((entry.path(), image));
            }
        }
        found
    }

    /// The image of a slot.
    pub(crate) fn of_slot(&self, slot: u32) -> PathBuf {
        self.volume.root().join("slots").join(format!("{slot}.img"))
    }

    fn kept(&self, sandbox: SandboxId) -> PathBuf {
        self.volume.root().join("kept").join(format!("{sandbox}.img"))
    }

    /// Refuses where the last of the room is left to those that are there: a sandbox whose disk cannot be written to,
    /// although it is not full, sees broken hardware.
    pub(crate) fn has_room(&self) -> Result<(), Step> {
        let enough = || Ok(self.volume.space()?).map(|space| space.free_bytes >= reserve(space.total_bytes));
        if enough()? {
            return Ok(());
        }
        let _one = self.making.lock().expect(UNPOISONED);
        self.volume.grow()?;
        if enough()? {
            return Ok(());
        }
        Err(io::Error::from(Errno::NOSPC)).at("looking for room on the volume")
    }

    /// Gives a slot a copy of a build's disk, at least of this size. A disk is never made smaller.
    pub(crate) fn copy(&self, slot: u32, build: BuildId, has: MiB, wanted: MiB) -> Result<(), Step> {
        let mut from = self.of_build(build);
        if wanted > has {
            let grown = self.grown(build, wanted);
            if !grown.exists() {
                let _one = self.making.lock().expect(UNPOISONED);
                if !grown.exists() {
                    grow(&from, &grown, wanted)?;
                }
            }
            from = grown;
        }
        let image = self.of_slot(slot);
        let _ = fs::remove_file(&image);
        volume::clone(&from, &image).at(format!("cloning the disk of build {build}"))
    }

    /// What the processes of a build's machines go on from.
    pub(crate) fn memory_of_build(&self, build: BuildId) -> PathBuf {
        self.of_build(build).with_extension("memory")
    }

    /// What the processes of a sandbox whose disk is kept go on from.
    pub(crate) fn kept_memory(&self, sandbox: SandboxId) -> PathBuf {
        self.kept(sandbox).with_extension("memory")
    }

    /// Where a disk is copied to that is to be a build's: a name that nobody looks for.
    pub(crate) fn copy_of(&self, build: BuildId) -> PathBuf {
        self.of_build(build).with_extension("partial")
    }

    /// Copies a slot's disk as it is at this instant.
    pub(crate) fn clone_of(&self, slot: u32, build: BuildId) -> Result<(), Step> {
        let partial = self.copy_of(build);
        let _ = fs::remove_file(&partial);
        volume::clone(&self.of_slot(slot), &partial).at(format!("cloning the disk of slot {slot}"))
    }

    /// Makes a copy of a disk that was in use what one is that was unmounted: what is in its journal is done. It is mounted
    /// for a moment, as any machine would mount it.
    pub(crate) fn settle(&self, image: &Path) -> Result<(), Step> {
        drop(mount_image(image)?);
        wait_until_released(image, RELEASED_WITHIN)
    }

    /// Finishes an image, so that it outlives a loss of power.
    pub(crate) fn finish(&self, partial: &Path, image: &Path) -> Result<(), Step> {
        sync(partial)?;
        fs::rename(partial, image).at(format!("naming {}", image.display()))?;
        sync_names(image)
    }

    /// Makes the sealed form of a build's disk, under a name that nobody looks for. It is a file system of its own: among
    /// layers those that are told by the same name cannot be told apart.
    pub(crate) fn seal(&self, from: BuildId, into: BuildId) -> Result<PathBuf, Step> {
        let partial = self.of_sealed(into).with_extension("partial");
        let _ = fs::remove_file(&partial);
        volume::clone(&self.of_build(from), &partial).at(format!("cloning the disk of build {from}"))?;
        let named = || volume::run(Command::new("tune2fs").args(["-U", "random"]).arg(&partial));
        if named().is_err() {
            // Of the first form: its name is in every checksum, so all of them are looked at.
            check(&partial)?;
            named()?;
        }
        Ok(partial)
    }

    /// Gives a slot a blank disk.
    pub(crate) fn fresh(&self, slot: u32, size: MiB) -> Result<(), Step> {
        let blank = self.blank(size);
        if !blank.exists() {
            let _one = self.making.lock().expect(UNPOISONED);
            if !blank.exists() {
                make_blank(&blank, size)?;
            }
        }
        let image = self.of_slot(slot);
        let _ = fs::remove_file(&image);
        volume::clone(&blank, &image).at(format!("cloning a blank disk of {size}"))
    }

    /// Whether a disk is kept for a sandbox.
    pub(crate) fn is_kept(&self, sandbox: SandboxId) -> bool {
        self.kept(sandbox).exists()
    }

    /// Gives a slot the disk that is kept for a sandbox.
    pub(crate) fn take(&self, sandbox: SandboxId, slot: u32) -> Result<(), Step> {
        // Whoever boots from a disk has no use for what processes were, and makes it untrue.
        crate::criu::memory::remove(&self.kept_memory(sandbox))?;
        fs::rename(self.kept(sandbox), self.of_slot(slot))
            .at(format!("taking the disk kept for {sandbox}"))?;
        // From here on the slot's record says it.
        remove(&self.kept_build(sandbox))
    }

    /// Says what a kept disk is over.
    fn kept_build(&self, sandbox: SandboxId) -> PathBuf {
        self.kept(sandbox).with_extension("build")
    }

    /// Notes what a disk is over that is about to be kept.
    pub(crate) fn note(&self, sandbox: SandboxId, over: BuildId) -> Result<(), Step> {
        // A link, because it is as durable as the name that follows, without waiting for the host's disk once more.
        let note = self.kept_build(sandbox);
        remove(&note)?;
        symlink(over.to_string(), &note).at(format!("noting {}", note.display()))
    }

    /// The build that a kept disk is over; `None` where that is not known, of one which an earlier Atoll kept.
    pub(crate) fn over_of(&self, sandbox: SandboxId) -> Option<BuildId> {
        fs::read_link(self.kept_build(sandbox))
            .ok()?
            .to_str()?
            .parse()
            .ok()
    }

    /// The builds that kept disks are over, as [`Disks::over_of`] tells.
    pub(crate) fn kept_over(&self) -> Vec<Option<BuildId>> {
        let over = |sandbox| self.over_of(sandbox);
        self.all_kept().into_iter().map(over).collect()
    }

    /// Copies the disk that is kept for a sandbox, to where it is to be a build's.
    pub(crate) fn clone_kept(&self, sandbox: SandboxId, build: BuildId) -> Result<(), Step> {
        let partial = self.copy_of(build);
        let _ = fs::remove_file(&partial);
        volume::clone(&self.kept(sandbox), &partial).at(format!("cloning the disk kept for {sandbox}"))
    }

    /// Says into which builds the disk of a sandbox was copied, whoever of its machines has it, or nobody.
    fn copies_note(&self, sandbox: SandboxId) -> PathBuf {
        self.kept(sandbox).with_extension("copies")
    }

    /// The builds that the disk of a sandbox was copied into, the newest first: no more than a hint.
    pub(crate) fn copies_of(&self, sandbox: SandboxId) -> Vec<BuildId> {
        let note = fs::read_link(self.copies_note(sandbox)).unwrap_or_default();
        note.iter()
            .filter_map(|build| build.to_str()?.parse().ok())
            .collect()
    }

    /// Notes that the disk of a sandbox was copied into a build.
    pub(crate) fn note_copy(&self, sandbox: SandboxId, into: BuildId) -> Result<(), Step> {
        let copies = self.copies_of(sandbox);
        let copies = [into].into_iter().chain(copies).take(LINEAGE_MAX);
        // A link is written at once and whole, like the others here.
        let told: PathBuf = copies.map(|build| build.to_string()).collect();
        let note = self.copies_note(sandbox);
        remove(&note)?;
        symlink(told, &note).at(format!("noting {}", note.display()))
    }

    /// Forgets what the disk of a sandbox was copied into: the disk is gone.
    pub(crate) fn forget_copies(&self, sandbox: SandboxId) {
        if let Err(error) = remove(&self.copies_note(sandbox)) {
            tracing::debug!(error = &error as &dyn std::error::Error, "a note stays");
        }
    }

    /// Forgets it of those that are not among these.
    pub(crate) fn sweep_copies(&self, of: &BTreeSet<SandboxId>) {
        let entries = fs::read_dir(self.volume.root().join("kept"));
        let noted = entries.into_iter().flatten().flatten().filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".copies")?.parse::<SandboxId>().ok()
        });
        for sandbox in noted.filter(|sandbox| !of.contains(sandbox)) {
            self.forget_copies(sandbox);
        }
    }

    /// Keeps a slot's disk for a sandbox; waits until the kernel has written it all and let go of it. A disk that is in
    /// use still stays where it is: two mounts of one would destroy it.
    pub(crate) fn keep(&self, slot: u32, sandbox: SandboxId, over: Option<BuildId>) -> Result<(), Step> {
        let image = self.of_slot(slot);
        wait_until_released(&image, RELEASED_WITHIN)?;
        self.write_through(slot)?;
        if let Some(over) = over {
            self.note(sandbox, over)?;
        }
        let kept = self.kept(sandbox);
        crate::criu::memory::remove(&self.kept_memory(sandbox))?;
        fs::rename(image, &kept).at(format!("keeping the disk of {sandbox}"))?;
        sync_names(&kept)
    }

    /// Brings what has left a slot's file system to the host's disk, where a power failure does not reach it.
    pub(crate) fn write_through(&self, slot: u32) -> Result<(), Step> {
        sync(&self.of_slot(slot))
    }

    /// Everything that is kept.
    pub(crate) fn all_kept(&self) -> Vec<SandboxId> {
        let entries = fs::read_dir(self.volume.root().join("kept"))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".img")?.parse().ok())
            .collect()
    }

    /// Slots that have an image.
    pub(crate) fn slots(&self) -> Vec<u32> {
        let entries = fs::read_dir(self.volume.root().join("slots"))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".img")?.parse().ok())
            .collect()
    }

    /// Deletes a slot's disk. Its blocks are freed when the last mount is gone.
    pub(crate) fn remove(&self, slot: u32) -> Result<(), Step> {
        remove(&self.of_slot(slot))
    }

    /// Deletes what is kept for a sandbox.
    pub(crate) fn discard(&self, sandbox: SandboxId) -> Result<(), Step> {
        remove(&self.kept(sandbox))?;
        let memory = self.kept_memory(sandbox);
        match fs::remove_dir_all(&memory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.at(format!("deleting {}", memory.display()))?,
        }
        remove(&self.kept_build(sandbox))
    }

    /// Mounts a slot's disk, attached nowhere: it lives as long as the descriptor or an overlay over it. One that is
    /// mounted already is refused.
    pub(crate) fn mount(&self, slot: u32) -> Result<OwnedFd, Step> {
        mount_image(&self.of_slot(slot))
    }
}

/// What an image that belongs to a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// The disk that machines of this build begin with, or a grown form of it.
    Own(BuildId),
    /// Layers that were sealed for this build.
    Sealed(BuildId),
    /// Something that was never finished.
    Unfinished,
}

fn mount_image(path: &Path) -> Result<OwnedFd, Step> {
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .at(format!("opening {}", path.display()))?;
    // The device holds this description of the file, and the lock with it, to its own end.
    rustix::fs::flock(&image, FlockOperation::NonBlockingLockExclusive)
        .at(format!("locking {}, which is in use,", path.display()))?;
    let device = LoopDevice::attach(image.as_fd(), true).at(format!("attaching {}", path.display()))?;
    let mount = || -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", device.path())?;
        // The tables were left out when the blank was made; writing them for each copy would unshare its blocks.
        rustix::mount::fsconfig_set_flag(&context, "noinit_itable")?;
        // A write that waits for the host's own disk takes longer than all of a machine's start or end. What is
        // promised to outlive the host is written through when it is promised: see `write_through`.
        rustix::mount::fsconfig_set_flag(&context, "nobarrier")?;
        // What is deleted inside is free on the volume again.
        rustix::mount::fsconfig_set_flag(&context, "discard")?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    mount().at(format!(
        "mounting {} by {}",
        path.display(),
        device.path().display()
    ))
}

fn sync(image: &Path) -> Result<(), Step> {
    File::open(image)
        .and_then(|image| image.sync_all())
        .at(format!("writing {} through", image.display()))
}

/// Makes a larger disk out of a copy of one.
fn grow(from: &Path, grown: &Path, size: MiB) -> Result<(), Step> {
    let partial = grown.with_extension("partial");
    let _ = fs::remove_file(&partial);
    volume::clone(from, &partial).at(format!("cloning {}", from.display()))?;
    OpenOptions::new()
        .write(true)
        .open(&partial)
        .and_then(|file| file.set_len(size.bytes()))
        .at(format!("growing {} to {size}", partial.display()))?;
    check(&partial)?;
    volume::run(Command::new("resize2fs").arg(&partial))?;
    sync(&partial)?;
    fs::rename(&partial, grown).at(format!("naming {}", grown.display()))
}

/// Looks at a whole file system, and repairs what can be repaired without asking.
fn check(image: &Path) -> Result<(), Step> {
    let output = Command::new("e2fsck")
        .args(["-f", "-p"])
        .arg(image)
        .output()
        .at("running e2fsck")?;
    // Bit 0: something was repaired (e2fsck(8)).
    if matches!(output.status.code(), Some(0 | 1)) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Err(io::Error::other(said)).at(format!("checking {}", image.display()))
}

fn remove(image: &Path) -> Result<(), Step> {
    match fs::remove_file(image) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(format!("deleting {}", image.display())),
    }
}

/// With them a file system is given another name without a look at all of it (ext4(5)): see [`Disks::seal`].
const FEATURES: &str = "metadata_csum,metadata_csum_seed";

fn make_blank(blank: &Path, size: MiB) -> Result<(), Step> {
    let room = tempdir(blank)?;
    for upper in UPPERS {
        for dir in ["upper", "work"] {
            fs::create_dir_all(room.join(upper).join(dir)).at("making the uppers of a blank disk")?;
        }
    }
    let partial = blank.with_extension("partial");
    let file = File::create(&partial).at(format!("making {}", partial.display()))?;
    file.set_len(size.bytes())
        .at(format!("growing {}", partial.display()))?;
    let made = volume::run(
        Command::new("mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-m",
                "0",
                "-J",
                "size=4",
                "-O",
                FEATURES,
                "-E",
                "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
            ])
            .arg("-d")
            .arg(&room)
            .arg(&partial),
    );
    let _ = fs::remove_dir_all(&room);
    made?;
    fs::rename(&partial, blank).at(format!("naming {}", blank.display()))
}

fn tempdir(beside: &Path) -> Result<PathBuf, Step> {
    let room = beside.with_extension("room");
    let _ = fs::remove_dir_all(&room);
    fs::create_dir_all(&room).at(format!("making {}", room.display()))?;
    Ok(room)
}

/// What is left to the sandboxes that are there.
fn reserve(total_bytes: u64) -> u64 {
    (total_bytes / 10).min(RESERVE_BYTES_MAX)
}

fn wait_until_released(image: &Path, patience: Duration) -> Result<(), Step> {
    let deadline = Instant::now() + patience;
    while is_in_use(image) {
        if Instant::now() >= deadline {
            return Err(Errno::BUSY).at(format!("waiting for the kernel to let go of {}", image.display()));
        }
        #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Whether a device is behind an image: one of ours holds a lock, and one of a daemon that took none is among the devices.
fn is_in_use(image: &Path) -> bool {
    let locked = File::open(image).is_ok_and(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    });
    locked || volumes::attached(image).is_some()
}

const UNPOISONED: &str = "nothing panics while it makes a disk";

#[cfg(test)]
mod tests;
