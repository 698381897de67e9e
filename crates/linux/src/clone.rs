//! Making a process in new namespaces.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Proof that the process had one thread: only then does a child of it, which has that thread alone, find every lock
/// and every invariant as they should be.
#[derive(Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Counts the threads. Whoever holds the proof starts none.
    ///
    /// # Errors
    /// There are several, or `/proc` is not there.
    pub fn prove() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            Ok(Self(()))
        } else {
            Err(io::Error::other(format!("the process has {threads} threads")))
        }
    }
}

/// `CLONE_INTO_CGROUP` of `linux/sched.h`; the binding's is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// On which side of the fork we are.
#[derive(Debug)]
pub enum Fork {
    /// In the child.
    Child,
    /// In the parent, which holds the child's name.
    Parent {
        /// The child's number in our process namespace.
        pid: u32,
        /// The child itself.
        pidfd: OwnedFd,
    },
}

/// Namespaces of a child ([namespaces(7)](https://man7.org/linux/man-pages/man7/namespaces.7.html)).
pub mod namespace {
    /// Users and capabilities; owns the others that are made with it.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// Process numbers.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Mounts.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// Network.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    /// Host name.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// System V IPC and POSIX message queues.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
}

/// Forks into new namespaces and, where one is given, into a cgroup (v2), by
/// [clone3(2)](https://man7.org/linux/man-pages/man2/clone3.2.html). The child signals its end by `SIGCHLD`.
///
/// # Errors
/// What clone3(2) answered.
pub fn fork(_: &SingleThreaded, namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zeroes are a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of memory. The caller proved that there is
    // one thread, so the copy is consistent. `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => {
            // SAFETY: CLONE_PIDFD stored a new descriptor, which is nobody else's.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent {
                pid: u32::try_from(pid).map_err(io::Error::other)?,
                pidfd,
            })
        }
    }
}

/// [`fork`]s into a user namespace, which must be among `namespaces`, that belongs to `owner`, a user of this one. To its
/// account go the things of which a user may have so many (inotify instances, queued signals, message queues, locked
/// memory): namespaces of one owner would use up each other's.
///
/// # Errors
/// What clone3(2) answered, or what the change of identity did: it takes `CAP_SETUID` and `CAP_SETPCAP`. The caller is as
/// it was, whatever the answer. Aborts the process when there is no way back: it must not go on as somebody else.
pub fn fork_owned(
    alone: &SingleThreaded,
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    owner: u32,
) -> io::Result<Fork> {
    let before = secure_bits()?;
    set_secure_bits(before | libc::SECBIT_NO_SETUID_FIXUP)?;
    let forked = effective_user(owner).and_then(|()| fork(alone, namespaces, cgroup));
    // A child holds every capability in its namespace, and takes on an identity there.
    if !matches!(forked, Ok(Fork::Child)) && effective_user(0).and_then(|()| set_secure_bits(before)).is_err()
    {
        std::process::abort();
    }
    forked
}

/// Among them: whether a change of identity leaves capabilities as they are.
fn secure_bits() -> io::Result<libc::c_int> {
    // SAFETY: takes no pointer, and answers with the flags of this thread.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    if bits < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(bits)
    }
}

fn set_secure_bits(bits: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers alone, and changes nothing but the flags of this thread.
    let rc = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn effective_user(uid: u32) -> io::Result<()> {
    // SAFETY: plain numbers; the process has one thread, so all of it changes.
    let rc = unsafe { libc::seteuid(uid) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
