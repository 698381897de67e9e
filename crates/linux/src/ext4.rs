//! The ext4 file system, while it is mounted ([ext4](https://docs.kernel.org/admin-guide/ext4.html#ioctls)).
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `EXT4_IOC_RESIZE_FS`: `_IOW('f', 16, __u64)`.
const RESIZE: libc::Ioctl = 0x4008_6610;

/// Grows a file system, of which `file` is any file that can be read, to a number of its own blocks. Returns when it is done; what
/// has that size is left as it is. Takes `CAP_SYS_RESOURCE`.
///
/// # Errors
/// What the kernel answered: `EINVAL` where it would shrink, or its device is smaller; `ENOTTY` where it is no ext4; `EPERM`
/// where errors were found on it before; `EROFS`. It may have grown a part of the way then.
pub fn grow(file: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one number, which outlives the call.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), RESIZE, &raw const blocks) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_is_no_ext4_is_not_grown() {
        let not = std::fs::File::open("/proc/self/status").unwrap();
        let refused = grow(not.as_fd(), 1 << 20).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTTY), "{refused}");
    }
}
