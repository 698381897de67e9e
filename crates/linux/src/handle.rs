//! Handles: names of files that are numbers, and hold for as long as the file is there, whoever asks
//! ([open_by_handle_at(2)](https://man7.org/linux/man-pages/man2/open_by_handle_at.2.html)).
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// A file of a file system that numbers its files by 32 bits and counts who had a number before: ext4 and its like
/// (`FILEID_INO32_GEN` of `linux/exportfs.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    /// The number of its inode.
    pub inode: u32,
    /// Which of the files that had this number it is.
    pub generation: u32,
}

/// `FILEID_INO32_GEN`.
const KIND: libc::c_int = 1;
const BYTES: libc::c_uint = 8;

/// `struct file_handle` with room for one of ours.
#[repr(C)]
#[derive(Clone, Copy)]
struct Raw {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u32; 2],
}

/// The handle of what has a name in a directory, be it a link; of the directory itself where the name is empty.
///
/// # Errors
/// What the kernel answered; `EOVERFLOW` and `ENOTSUP` where the file system's handles are others.
pub fn of(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Handle> {
    let mut raw = Raw {
        bytes: BYTES,
        kind: 0,
        handle: [0; 2],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: the name is a C string, `raw` has room for as many bytes as it says, and all of them outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    if (raw.kind, raw.bytes) != (KIND, BYTES) {
        return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
    }
    let [inode, generation] = raw.handle;
    Ok(Handle { inode, generation })
}

/// Opens what has a handle, on the file system that `mount` lies on and on no other. Takes `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// What the kernel answered; `ESTALE` where it is there no more, or never was.
pub fn open(mount: BorrowedFd<'_>, handle: Handle, flags: i32) -> io::Result<OwnedFd> {
    let mut raw = Raw {
        bytes: BYTES,
        kind: KIND,
        handle: [handle.inode, handle.generation],
    };
    // SAFETY: `raw` holds as many bytes as it says, and outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut raw,
            flags | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: it is a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
