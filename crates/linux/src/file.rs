//! Files: bringing what was written to the disk, without waiting for it.
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Begins to write everything of a file that is in memory alone to its disk, and does not wait for it: a later `fsync(2)`
/// finds less to do ([sync_file_range(2)]). It makes nothing durable.
///
/// # Errors
/// It is no file, or its file system cannot write.
///
/// [sync_file_range(2)]: https://man7.org/linux/man-pages/man2/sync_file_range.2.html
pub fn begin_write_back(file: impl AsFd) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: `fd` is open for the whole call, and sync_file_range(2) touches no memory of ours.
    let rc = unsafe { libc::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_and_a_pipe_is_refused() {
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        begin_write_back(&file).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let refused = begin_write_back(&reader).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ESPIPE));
    }
}
