//! Loop devices: files as block devices ([loop(4)](https://man7.org/linux/man-pages/man4/loop.4.html)).
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Others may take the free device that we were told of; that often in a row they do not.
const RACES_MAX: usize = 64;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A file that is a block device as long as this, or a mount of it, lives.
#[derive(Debug)]
pub struct LoopDevice {
    /// Open, so that the device stays until it is mounted.
    _device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a file to a free device. The device goes by itself when it is neither open nor mounted any more.
    /// `direct` bypasses the page cache of the file's own file system, where that can be done.
    ///
    /// # Errors
    /// What loop-control or the device answered; `ENOENT` where the kernel has no loop devices.
    pub fn attach(file: BorrowedFd<'_>, direct: bool) -> io::Result<Self> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        for _ in 0..RACES_MAX {
            // SAFETY: the call takes no argument and returns a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            match configure(
                &device,
                file,
                LO_FLAGS_AUTOCLEAR | if direct { LO_FLAGS_DIRECT_IO } else { 0 },
            ) {
                Ok(()) => {
                    return Ok(Self {
                        _device: device,
                        path,
                    });
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Opens a device that a file is behind already: it stays at least as long as this.
    ///
    /// # Errors
    /// What the device answered; `ENXIO` where no file is behind it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let device = OpenOptions::new().read(true).open(path)?;
        // SAFETY: all zeroes are a valid loop_info64.
        let mut info: Info = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is a loop_info64 and outlives the call.
        let rc = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            _device: device,
            path: path.to_owned(),
        })
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the device at `path` as large as its file has become.
///
/// # Errors
/// What the device answered; `ENXIO` where no file is behind it.
pub fn follow_size(path: &Path) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: the call takes no argument.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn configure(device: &File, file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: all zeroes are a valid loop_config.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd().unsigned_abs();
    config.info.flags = flags;
    // SAFETY: `config` is a loop_config and outlives the call.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Config>(), 304);
    }
}
