//! Writable disks: an ext4 image for each sandbox, with a size that `df` inside tells truly and no write gets past.
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use linux::loopdev::LoopDevice;
use model::{MiB, SandboxId};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

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
        for dir in ["blank", "slots", "kept"] {
            let dir = volume.root().join(dir);
            fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
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
        self.volume.root().join("blank").join(format!("{}.img", size.0))
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
        fs::rename(self.kept(sandbox), self.of_slot(slot)).at(format!("taking the disk kept for {sandbox}"))
    }

    /// Keeps a slot's disk for a sandbox; waits until the kernel has written it all and let go of it. A disk that is in
    /// use still stays where it is: two mounts of one would destroy it.
    pub(crate) fn keep(&self, slot: u32, sandbox: SandboxId) -> Result<(), Step> {
        let image = self.of_slot(slot);
        wait_until_released(&image, RELEASED_WITHIN)?;
        self.write_through(slot)?;
        let kept = self.kept(sandbox);
        fs::rename(image, &kept).at(format!("keeping the disk of {sandbox}"))?;
        let names = kept.parent().expect("a kept disk lies in a directory");
        File::open(names)
            .and_then(|names| names.sync_all())
            .at(format!("writing {} through", names.display()))
    }

    /// Brings what has left a slot's file system to the host's disk, where a power failure does not reach it.
    pub(crate) fn write_through(&self, slot: u32) -> Result<(), Step> {
        let image = self.of_slot(slot);
        File::open(&image)
            .and_then(|image| image.sync_all())
            .at(format!("writing {} through", image.display()))
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
        remove(&self.kept(sandbox))
    }

    /// Mounts a slot's disk, attached nowhere: it lives as long as the descriptor or an overlay over it. One that is
    /// mounted already is refused.
    pub(crate) fn mount(&self, slot: u32) -> Result<OwnedFd, Step> {
        let path = self.of_slot(slot);
        let image = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
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
}

fn remove(image: &Path) -> Result<(), Step> {
    match fs::remove_file(image) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(format!("deleting {}", image.display())),
    }
}

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
    locked || volume::attached(image).is_some()
}

const UNPOISONED: &str = "nothing panics while it makes a disk";

#[cfg(test)]
mod tests;
