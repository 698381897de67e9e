//! Places at which images are mounted on the host, each once, so that whoever comes after finds them again.
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linux::loopdev::LoopDevice;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};

use ports::step::{At, Step};

/// The kernel lets go of a device a moment after its last mount.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// Whoever walks past a place holds it for that long at most, also through a program that is just being run: it is a copy of
/// this one, with all that is open, until it is what it is to be.
const PASSED_WITHIN: Duration = Duration::from_secs(1);

/// How images are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// For ever as they are: not even their journal is looked at.
    Sealed,
    /// To be written to.
    Writable,
}

/// Mounts of one kind, below a directory that only root may enter.
#[derive(Debug)]
pub struct Places {
    dir: PathBuf,
    how: How,
}

impl Places {
    /// Those with this name below `data`.
    ///
    /// # Errors
    /// Their directory cannot be made.
    pub fn open(data: &Path, name: &str, how: How) -> Result<Self, Step> {
        let mounts = data.join("mounts");
        let dir = mounts.join(name);
        fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        fs::set_permissions(&mounts, fs::Permissions::from_mode(0o700))
            .at(format!("closing {}", mounts.display()))?;
        Ok(Self { dir, how })
    }

    /// Where an image is mounted, or would be.
    pub fn of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Names of all that are, or were, mounted.
    pub fn all(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Mounts an image, if it is not mounted already, and says where. One call at a time for each name.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn mount(&self, name: &str, image: &Path) -> Result<PathBuf, Step> {
        let place = self.of(name);
        fs::create_dir_all(&place).at(format!("making {}", place.display()))?;
        if is_mounted(&place)? {
            return Ok(place);
        }
        let device = self.device(image)?;
        let mount = || -> rustix::io::Result<()> {
            let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
            rustix::mount::fsconfig_set_string(&context, "source", device.path())?;
            let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NOATIME;
            match self.how {
                How::Sealed => {
                    rustix::mount::fsconfig_set_flag(&context, "ro")?;
                    rustix::mount::fsconfig_set_flag(&context, "noload")?;
                    attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
                }
                How::Writable => {
                    rustix::mount::fsconfig_set_flag(&context, "noinit_itable")?;
                    rustix::mount::fsconfig_set_flag(&context, "discard")?;
                }
            }
            rustix::mount::fsconfig_create(&context)?;
            let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
            let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&mount, "", rustix::fs::CWD, &place, empty)
        };
        mount().at(format!("mounting {} at {}", image.display(), place.display()))?;
        Ok(place)
    }

    /// The device behind an image: the one that is there, as long as machines hold it, or a new one. Two would destroy it.
    fn device(&self, image: &Path) -> Result<LoopDevice, Step> {
        let file = OpenOptions::new()
            .read(true)
            .write(self.how == How::Writable)
            .open(image)
            .at(format!("opening {}", image.display()))?;
        let deadline = Instant::now() + SETTLED_WITHIN;
        loop {
            // The device holds this description of the file, and the lock with it, to its own end.
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return LoopDevice::attach(file.as_fd(), true).at(format!("attaching {}", image.display()));
            }
            // One that is ending cannot be opened any more, or is no longer there.
            if let Some(device) = attached(image).and_then(|path| LoopDevice::open(&path).ok()) {
                return Ok(device);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::from(Errno::BUSY))
                    .at(format!("finding the device of {}", image.display()));
            }
            #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Unmounts an image; the place goes with it. One that is not mounted is no error. Machines that hold its file system
    /// go on holding it.
    ///
    /// # Errors
    /// Somebody is at it still.
    pub fn unmount(&self, name: &str) -> Result<(), Step> {
        let place = self.of(name);
        let patience = match self.how {
            How::Sealed => PASSED_WITHIN,
            // Whoever visits these stays, and whoever unmounts them has a patience of its own.
            How::Writable => Duration::ZERO,
        };
        let deadline = Instant::now() + patience;
        loop {
            match rustix::mount::unmount(&place, UnmountFlags::NOFOLLOW) {
                // Nothing is mounted there, or there is no such place.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => break,
                Err(Errno::BUSY) if Instant::now() < deadline => {}
                Err(error) => return Err(error).at(format!("unmounting {}", place.display())),
            }
            #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
            std::thread::sleep(Duration::from_millis(2));
        }
        match fs::remove_dir(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.at(format!("deleting {}", place.display())),
        }
    }
}

/// Whether something is mounted at a directory.
///
/// # Errors
/// It is not there.
pub fn is_mounted(dir: &Path) -> Result<bool, Step> {
    let parent = dir.parent().unwrap_or(dir);
    let device = |path: &Path| {
        rustix::fs::stat(path)
            .at(format!("looking at {}", path.display()))
            .map(|stat| stat.st_dev)
    };
    Ok(device(dir)? != device(parent)?)
}

/// The loop device that a file is behind already.
pub fn attached(image: &Path) -> Option<PathBuf> {
    let image = fs::canonicalize(image).ok()?;
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    let behind = |name: &std::ffi::OsStr| {
        fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()
    };
    let found = devices.map(|entry| entry.file_name()).find(|name| {
        name.to_string_lossy().starts_with("loop")
            && behind(name).is_some_and(|file| Path::new(file.trim_end()) == image)
    });
    found.map(|name| Path::new("/dev").join(name))
}
