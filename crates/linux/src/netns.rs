//! Network namespaces ([network_namespaces(7)]). Which one a thread is in matters only for what it opens there: a
//! socket stays in the namespace in which it was made.
//!
//! [network_namespaces(7)]: https://man7.org/linux/man-pages/man7/network_namespaces.7.html
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// The namespace of the calling thread.
///
/// # Errors
/// `/proc` is not mounted.
pub fn current() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(Into::into)
}

/// The namespace of a process.
///
/// # Errors
/// There is no such process any more, or it may not be looked at.
pub fn of(pid: u32) -> io::Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/net")).map(Into::into)
}

/// Runs `work` in the namespace `target` and comes back to `home`. About 1 µs each way. `work` must not block long and
/// must not start threads.
///
/// Aborts the process when there is no way back: a thread of the host must not go on in somebody else's namespace.
///
/// # Errors
/// The namespace cannot be entered; `work` has not run.
pub fn within<T>(target: BorrowedFd<'_>, home: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    struct Back<'a>(BorrowedFd<'a>);
    impl Drop for Back<'_> {
        fn drop(&mut self) {
            if enter(self.0).is_err() {
                std::process::abort();
            }
        }
    }
    enter(target)?;
    let _back = Back(home);
    Ok(work())
}

/// Moves the calling thread into a namespace, for good.
///
/// # Errors
/// What `setns(2)` answered.
pub fn enter(target: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(
        target,
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Moves the calling thread, and only it, into a new and empty namespace.
///
/// # Errors
/// What `unshare(2)` answered.
pub fn unshare() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET alone leaves the thread's files and file system as they are shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// A new and empty namespace, made by a thread that ends with it. It lives as long as the descriptor, what is in it, or
/// sockets and files that were opened there.
///
/// # Errors
/// What `unshare(2)` answered.
pub fn fresh() -> io::Result<OwnedFd> {
    let making = std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(|| unshare().and_then(|()| current()))?;
    making
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes a namespace broke")))
}
