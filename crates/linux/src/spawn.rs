//! Starting programs as somebody else.
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// As whom a program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// How a program starts, beyond what [`Command`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Makes standard input the controlling terminal of its session.
    pub terminal: bool,
    /// Its badness when memory is short, -1000..=1000 ([proc_pid_oom_score_adj(5)]). Raising needs no privilege.
    ///
    /// [proc_pid_oom_score_adj(5)]: https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html
    pub oom_score_adj: i16,
}

/// Starts `command` in a session of its own, as `identity`.
///
/// The identity is taken on after the working directory, so a directory that only root may enter still serves. The
/// caller reaps the child.
///
/// # Errors
/// What fork, the change of identity or exec answered.
pub fn spawn(mut command: Command, identity: &Identity, manner: Manner) -> io::Result<Child> {
    let Identity { uid, gid, groups } = identity.clone();
    let badness = manner.oom_score_adj.to_string().into_bytes();
    // SAFETY: the closure runs between fork and exec of a process that may have threads, so it calls only
    // async-signal-safe functions and touches only memory that was allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            let file = libc::open(
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
            );
            if file >= 0 {
                // A refused badness is no reason not to run.
                let _ = libc::write(file, badness.as_ptr().cast(), badness.len());
                let _ = libc::close(file);
            }
            checked(libc::setsid())?;
            if manner.terminal {
                checked(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            if libc::geteuid() == 0 {
                checked(libc::setgroups(groups.len(), groups.as_ptr()))?;
                checked(libc::setgid(gid))?;
                checked(libc::setuid(uid))?;
            }
            Ok(())
        });
    }
    command.spawn()
}

/// A system call's answer, whichever of the two types it has.
fn checked(rc: impl Into<i64>) -> io::Result<()> {
    if rc.into() < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Lets the program that `command` starts have a descriptor, under the number that it has here. It stays open here until the
/// command is dropped, and no other program that is started meanwhile gets it.
pub fn hand_down(command: &mut Command, fd: OwnedFd) {
    // SAFETY: the closure runs between fork and exec of a process that may have threads: it calls fcntl(2) alone, which is
    // async-signal-safe, and touches no memory.
    unsafe {
        command.pre_exec(move || checked(libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0)));
    }
}

/// What a program is held to, whatever becomes of it ([setrlimit(2)]).
///
/// [setrlimit(2)]: https://man7.org/linux/man-pages/man2/setrlimit.2.html
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// No file that it writes to becomes longer, in bytes.
    pub file_bytes: u64,
    /// Descriptors that it has open.
    pub descriptors: u64,
    /// Processes and threads of its user; `None` where that is somebody else's user too.
    pub tasks: Option<u64>,
}

/// Holds the program that `command` starts to bounds. It gains no right by executing another program (`no_new_privs`), and
/// leaves no core behind. A bound that is already narrower stays.
pub fn confine(command: &mut Command, bounds: Bounds) {
    // SAFETY: the closure runs between fork and exec of a process that may have threads: it makes plain system calls alone,
    // and touches no memory but its own stack.
    unsafe {
        command.pre_exec(move || {
            checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            let limits = [
                (libc::RLIMIT_CORE, Some(0)),
                (libc::RLIMIT_FSIZE, Some(bounds.file_bytes)),
                (libc::RLIMIT_NOFILE, Some(bounds.descriptors)),
                (libc::RLIMIT_NPROC, bounds.tasks),
            ];
            for (resource, wanted) in limits {
                let Some(wanted) = wanted else { continue };
                let mut limit = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                checked(libc::getrlimit(resource, &raw mut limit))?;
                limit.rlim_max = limit.rlim_max.min(wanted);
                limit.rlim_cur = limit.rlim_max;
                checked(libc::setrlimit(resource, &raw const limit))?;
            }
            Ok(())
        });
    }
}

/// Puts the program that `command` starts into control groups: each by a `cgroup.procs` that is open to be written
/// ([`crate::cgroup::Groups::create`]). What counts is who opened it.
pub fn join(command: &mut Command, groups: Vec<OwnedFd>) {
    // SAFETY: the closure runs between fork and exec of a process that may have threads: it calls write(2) alone, and touches
    // no memory but what was allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            for group in &groups {
                // Zero is whoever writes.
                checked(libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) as i64)?;
            }
            Ok(())
        });
    }
}

/// Takes possession of a descriptor that this process was started with.
///
/// # Errors
/// `EBADF` where there is no such descriptor.
pub fn inherited(fd: std::os::fd::RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: fcntl(2) takes any number; a number that is no descriptor is answered with EBADF.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, as was just seen, and whoever started us handed it over to be owned here alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets no descriptor from `first` on outlive the next exec: also those that nobody here knows of, because they came
/// down from whoever started us.
///
/// # Errors
/// What close_range(2) answered: `EINVAL` before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // By its number: musl's libc has no name for it.
    // SAFETY: no descriptor is closed now, only marked; its owner goes on owning it.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Lets the kernel forget children as they end, for a process that watches them by pidfd. Children inherit it until
/// they say otherwise.
///
/// # Errors
/// What sigaction(2) answered: nothing, on Linux.
pub fn reap_automatically() -> io::Result<()> {
    disposition(libc::SIGCHLD, libc::SIG_IGN)
}

fn disposition(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: SIG_IGN and SIG_DFL are no functions, so nothing of ours runs in a signal handler.
    if unsafe { libc::signal(signal, handler) } == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes the default disposition of every signal again, and blocks none, before another program is executed: what was ignored
/// or blocked by whoever started us, as nohup(1) does, would be for all that comes after.
///
/// # Errors
/// What sigprocmask(2) answered: nothing, on Linux.
pub fn default_signals() -> io::Result<()> {
    // The kernel's `struct sigaction`: SIG_DFL, no flags, nothing masked. By its number, because the C library lets nobody
    // touch the signals that it has taken for itself, which may be ignored as well.
    let default = [0_u64; 4];
    for signal in 1..=libc::SIGRTMAX() {
        let none = std::ptr::null_mut::<u64>();
        // SAFETY: it is as long as the kernel reads on every architecture; nothing is written. That of two signals cannot be
        // changed is no harm: nobody can ignore them.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8_usize) };
    }
    // SAFETY: an empty set is made where there is room for one, and read from there; the old one is not asked for.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        checked(libc::sigemptyset(none.as_mut_ptr()))?;
        checked(libc::sigprocmask(
            libc::SIG_SETMASK,
            none.as_ptr(),
            std::ptr::null_mut(),
        ))
    }
}

/// Moves the calling thread to a copy of its mount namespace. From then on its root and working directory are its own.
///
/// # Errors
/// What unshare(2) answered.
pub fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: neither memory nor descriptors are unshared; what else changes is this thread's alone.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNS) })
}

/// Moves this process to a cgroup namespace whose root is its present cgroup.
///
/// # Errors
/// What unshare(2) answered.
pub fn leave_cgroup_namespace() -> io::Result<()> {
    // SAFETY: a cgroup namespace has no effect on memory or descriptors.
    checked(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })
}

/// Moves this process to a copy of its host name.
///
/// # Errors
/// What unshare(2) answered.
pub fn leave_host_name_namespace() -> io::Result<()> {
    // SAFETY: a namespace of host names has no effect on memory or descriptors.
    checked(unsafe { libc::unshare(libc::CLONE_NEWUTS) })
}

/// Takes on user 0, group 0 and no other group, as the user namespace maps them.
///
/// # Errors
/// What the change of identity answered; `EINVAL` where 0 is not mapped.
pub fn become_root_of_namespace() -> io::Result<()> {
    // SAFETY: plain system calls; the caller's process has one thread, so all of it changes.
    unsafe {
        checked(libc::setgroups(0, std::ptr::null()))?;
        checked(libc::setresgid(0, 0, 0))?;
        checked(libc::setresuid(0, 0, 0))
    }
}

/// Becomes another program, which is told by an error, not by a signal, when nobody reads what it writes to a pipe or
/// socket, and which can wait for its children. The first of `arguments` is the program's name for itself.
///
/// Returns only where it fails: what execve(2) answered, or that a string holds a zero byte.
pub fn become_program(program: &str, arguments: &[String], environment: &[String]) -> io::Error {
    let strings = |strings: &[String]| {
        strings
            .iter()
            .map(|string| CString::new(string.as_str()).map_err(io::Error::from))
            .collect::<io::Result<Vec<CString>>>()
    };
    let prepared = || {
        let prepared = (CString::new(program)?, strings(arguments)?, strings(environment)?);
        disposition(libc::SIGCHLD, libc::SIG_DFL)?;
        disposition(libc::SIGPIPE, libc::SIG_IGN)?;
        Ok(prepared)
    };
    let (program, arguments, environment) = match prepared() {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let ends = strings.iter().map(|string| string.as_ptr());
        ends.chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: a string and two lists of strings, which end as execve(2) wants it and live until it answers.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_confined_gains_no_rights_and_keeps_within_bounds() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat /proc/self/status /proc/self/limits"]);
        let bounds = Bounds {
            file_bytes: 4096,
            descriptors: 32,
            tasks: None,
        };
        confine(&mut command, bounds);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let line = |name: &str| {
            let line = said.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("NoNewPrivs"), "NoNewPrivs: 1");
        assert_eq!(line("Max file size"), "Max file size 4096 4096 bytes");
        assert_eq!(line("Max open files"), "Max open files 32 32 files");
        assert_eq!(line("Max core file size"), "Max core file size 0 0 bytes");
    }
}
