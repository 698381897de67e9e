//! The reflink volume: where disks can be copied in a tenth of a millisecond, whatever they hold.
//!
//! It is a directory of the data directory's own file system where that shares extents (XFS, btrfs), else an XFS in a
//! sparse file that is mounted below the data directory, and that grows with the room there.
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use linux::loopdev::LoopDevice;
use ports::runtime::DiskSpace;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use volumes::{attached, is_mounted};

use crate::step::{At, Step};

/// XFS makes nothing smaller worth having.
const VOLUME_BYTES_MIN: u64 = 1 << 30;

/// A tenth: growing takes a moment, in which the journal is locked.
const GROWTH_WORTH_IT: u64 = 10;
/// What is freed on the volume is free on the host again.
const GIVING_BACK: Option<&CStr> = Some(c"discard");

/// The place for disks.
#[derive(Debug)]
pub(crate) struct Volume {
    root: PathBuf,
    /// The file that is mounted, if it is one.
    image: Option<PathBuf>,
}

impl Volume {
    /// Finds or makes it below `data`.
    pub(crate) fn open(data: &Path) -> Result<Self, Step> {
        let native = data.join("disks");
        fs::create_dir_all(&native).at(format!("making {}", native.display()))?;
        if shares_extents(&native) {
            return Ok(Self {
                root: native,
                image: None,
            });
        }
        let root = data.join("volume");
        fs::create_dir_all(&root).at(format!("making {}", root.display()))?;
        let image = data.join("volume.xfs");
        if !is_mounted(&root)? {
            if !image.exists() {
                make(&image)?;
            }
            mount(&image, &root)?;
        }
        let volume = Self {
            root,
            image: Some(image),
        };
        if let Err(error) = volume.grow() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the volume could not be grown to the room that there is"
            );
        }
        Ok(volume)
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is a file made for the purpose: a native one is faster for whoever calls fsync much.
    pub(crate) fn is_loop(&self) -> bool {
        self.image.is_some()
    }

    /// How much there is, and how much of it can be written: no more than below it on the host.
    pub(crate) fn space(&self) -> Result<DiskSpace, Step> {
        let own = space(&self.root)?;
        let below = match &self.image {
            Some(image) => space(image)?.free_bytes,
            None => own.free_bytes,
        };
        Ok(DiskSpace {
            free_bytes: own.free_bytes.min(below),
            ..own
        })
    }

    /// Makes a mounted file as large as the host has room for by now, where that is worth it. It never shrinks.
    pub(crate) fn grow(&self) -> Result<(), Step> {
        let Some(image) = &self.image else {
            return Ok(());
        };
        let about = fs::metadata(image).at(format!("looking at {}", image.display()))?;
        let room = share_of(space(image)?.free_bytes + about.blocks() * 512);
        if room < about.len() + about.len() / GROWTH_WORTH_IT {
            return Ok(());
        }
        let step = |what: &str| format!("{what} {} to {room} bytes", image.display());
        let device = attached(image)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .at(format!("finding the device of {}", image.display()))?;
        OpenOptions::new()
            .write(true)
            .open(image)
            .and_then(|file| file.set_len(room))
            .at(step("growing"))?;
        linux::loopdev::follow_size(&device).at(step("following"))?;
        run(Command::new("xfs_growfs").arg("-d").arg(&self.root))?;
        tracing::info!(volume = %self.root.display(), bytes = room, "the volume has grown");
        Ok(())
    }

    /// Unmounts it, if it is a mounted file and nothing on it is in use. The kernel lets go of a disk a moment after its
    /// last process: that is waited for, within bounds.
    pub(crate) fn close(&self, patience: Duration) {
        if self.image.is_none() {
            return;
        }
        let deadline = Instant::now() + patience;
        while rustix::mount::unmount(&self.root, UnmountFlags::empty()) == Err(Errno::BUSY) {
            if Instant::now() >= deadline {
                tracing::info!(volume = %self.root.display(), "the volume is in use, and stays mounted");
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether files below a directory can be cloned.
pub(crate) fn shares_extents(dir: &Path) -> bool {
    let (from, to) = (dir.join(".probe-a"), dir.join(".probe-b"));
    let probe = || -> io::Result<()> {
        fs::write(&from, [1; 4096])?;
        clone(&from, &to)
    };
    let shares = probe().is_ok();
    let _ = fs::remove_file(&from);
    let _ = fs::remove_file(&to);
    shares
}

/// Makes `to` a copy of `from` that shares its blocks.
pub(crate) fn clone(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).open(to)?;
    rustix::fs::ioctl_ficlone(&target, &source).map_err(|error| {
        let _ = fs::remove_file(to);
        error.into()
    })
}

fn make(image: &Path) -> Result<(), Step> {
    let dir = image.parent().unwrap_or(image);
    let bytes = share_of(space(dir)?.free_bytes).max(VOLUME_BYTES_MIN);
    let partial = image.with_extension("partial");
    let file = File::create(&partial).at(format!("making {}", partial.display()))?;
    file.set_len(bytes)
        .at(format!("growing {} to {bytes} bytes", partial.display()))?;
    run(Command::new("mkfs.xfs")
        .args(["-q", "-f", "-m", "reflink=1"])
        .arg(&partial))?;
    fs::rename(&partial, image).at(format!("naming {}", image.display()))
}

/// Most of what is free: the file is sparse, and the rest keeps the host's own file system out of trouble.
const fn share_of(free_bytes: u64) -> u64 {
    free_bytes / 10 * 9
}

fn space(path: &Path) -> Result<DiskSpace, Step> {
    let space = rustix::fs::statvfs(path).at(format!("measuring {}", path.display()))?;
    Ok(DiskSpace {
        total_bytes: space.f_blocks * space.f_frsize,
        free_bytes: space.f_bavail * space.f_frsize,
    })
}

fn mount(image: &Path, root: &Path) -> Result<(), Step> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let step = || format!("mounting {} at {}", image.display(), root.display());
    // Sandboxes that outlived an unmount hold the file system still: it must be the same one, or two would write to one
    // file.
    if let Some(device) = attached(image) {
        return rustix::mount::mount(&device, root, "xfs", flags, GIVING_BACK).at(step());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .at(format!("opening {}", image.display()))?;
    let device = LoopDevice::attach(file.as_fd(), true).at(format!("attaching {}", image.display()))?;
    rustix::mount::mount(device.path(), root, "xfs", flags, GIVING_BACK).at(step())
}

/// Runs a tool, and fails with what it said.
pub(crate) fn run(command: &mut Command) -> Result<(), Step> {
    let program = command.get_program().to_string_lossy().into_owned();
    linux::program::run(command).at(format!("running {program}"))
}
