//! Looking at what another thread may ask of the kernel ([ptrace(2)]).
//!
//! [ptrace(2)]: https://man7.org/linux/man-pages/man2/ptrace.2.html
use std::io;

/// What C libraries take requests as.
#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;
/// `PTRACE_SECCOMP_GET_FILTER`.
const SECCOMP_GET_FILTER: Request = 0x420c;
/// So many the kernel takes in one filter (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;
/// So many filters are looked at; whoever has more has not been made by us.
const FILTERS_MAX: usize = 16;

/// One instruction of a filter, as in `struct sock_filter` ([bpf(4)], classic).
///
/// [bpf(4)]: https://www.freebsd.org/cgi/man.cgi?bpf(4)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many are skipped where a comparison holds.
    pub jt: u8,
    /// And where it does not.
    pub jf: u8,
    /// Its constant.
    pub k: u32,
}

/// The filters of system calls that a thread of another process has, the latest first; none where it has none. The thread stands
/// for as long as it is looked at, and goes on then. Blocks.
///
/// # Errors
/// `ESRCH`: there is no such thread. `EPERM`, `EACCES`: it takes `CAP_SYS_ADMIN`, and to have no filter oneself. `EIO`: the kernel
/// was built without `CONFIG_CHECKPOINT_RESTORE`, and cannot tell.
pub fn filters_of(thread: u32) -> io::Result<Vec<Vec<Instruction>>> {
    let thread = libc::pid_t::try_from(thread).map_err(io::Error::other)?;
    // Whoever traces is one thread, from its beginning to its end.
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            request(libc::PTRACE_SEIZE, thread, 0, std::ptr::null_mut())?;
            let filters = stand(thread).and_then(|()| read_all(thread));
            // One that has ended meanwhile cannot be let go.
            let _ = request(libc::PTRACE_DETACH, thread, 0, std::ptr::null_mut());
            filters
        });
        looking
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

fn stand(thread: libc::pid_t) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, thread, 0, std::ptr::null_mut())?;
    let mut status = 0;
    loop {
        // SAFETY: `status` is an integer that outlives the call.
        if unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } == thread {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFSTOPPED(status) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

fn read_all(thread: libc::pid_t) -> io::Result<Vec<Vec<Instruction>>> {
    let mut filters = Vec::new();
    while filters.len() < FILTERS_MAX {
        match read(thread, filters.len()) {
            Ok(filter) => filters.push(filter),
            // No more of them; or, of the first, none at all.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && filters.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filters)
}

fn read(thread: libc::pid_t, index: usize) -> io::Result<Vec<Instruction>> {
    let length = request(SECCOMP_GET_FILTER, thread, index, std::ptr::null_mut())?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > INSTRUCTIONS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let nothing = libc::sock_filter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    // As much as the kernel may write, whatever it said before.
    let mut filter = vec![nothing; INSTRUCTIONS_MAX];
    request(SECCOMP_GET_FILTER, thread, index, filter.as_mut_ptr().cast())?;
    filter.truncate(length);
    let told = filter.into_iter().map(|told| Instruction {
        code: told.code,
        jt: told.jt,
        jf: told.jf,
        k: told.k,
    });
    Ok(told.collect())
}

fn request(
    what: Request,
    thread: libc::pid_t,
    address: usize,
    data: *mut libc::c_void,
) -> io::Result<libc::c_long> {
    // SAFETY: of the requests that are made here only SECCOMP_GET_FILTER writes, and to `data` alone, which is null or has room for
    // the longest filter there is.
    let answer = unsafe { libc::ptrace(what, thread, address, data) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_without_a_filter_has_none_and_goes_on() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let filters = filters_of(child.id());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        match filters {
            // Whoever runs the tests may have one, which is inherited.
            Ok(filters) => assert!(filters.iter().all(|filter| !filter.is_empty())),
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EIO)),
                "{error}"
            ),
        }
        let gone = filters_of(child.id()).unwrap_err();
        assert!(
            matches!(gone.raw_os_error(), Some(libc::ESRCH | libc::EPERM)),
            "{gone}"
        );
    }
}
