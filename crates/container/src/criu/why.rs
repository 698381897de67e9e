//! What went wrong, in words, by the first error of CRIU's log.
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::options::LOG;

/// So much of a log is read: its first error comes early, as more than warnings are not written.
const LOG_BYTES_MAX: u64 = 256 * 1024;

/// What CRIU says (a part of it), and what that means.
const DUMP: [(&str, &str); 15] = [
    (
        "Unseizable",
        "a debugger holds a process (ptrace): end the debugger first",
    ),
    (
        "unix: Unix socket",
        "a connection from outside is open; it is closed and tried again",
    ),
    ("io_uring", "a program uses io_uring"),
    ("userfaultfd", "a program uses userfaultfd"),
    (
        "is traced by",
        "a debugger holds a process (ptrace): end the debugger first",
    ),
    (
        "ptrace",
        "a debugger holds a process (ptrace): end the debugger first",
    ),
    ("nested", "a program has made namespaces of its own: end it first"),
    (
        "Can't dump ghost file",
        "a deleted file of more than 64 MiB is still open: close it first",
    ),
    (
        "inotify",
        "a watch (inotify) is on something that cannot be found again: end it first",
    ),
    (
        "fsnotify",
        "a watch (inotify) is on something that cannot be found again: end it first",
    ),
    ("mqueue", "a POSIX message queue is not empty: remove it first"),
    (
        "Can't dump half of stream",
        "a connection leads out of the sandbox",
    ),
    ("tun", "a program has a network device of its own"),
    (
        "unsupported",
        "a program uses something that CRIU cannot write down",
    ),
    ("Unknown", "a program uses something that CRIU cannot write down"),
];

/// Errors of CRIU that are none: it may lack a capability that it can do without.
const HARMLESS: [&str; 1] = ["RLIMIT_NOFILE"];

/// Why a machine could not be written down.
pub(super) fn not_dumped(dir: &Path, told: Option<&str>) -> String {
    explain(&errors(dir, told))
}

/// Why memory could not be brought back.
pub(super) fn not_restored(dir: &Path, told: Option<&str>) -> String {
    let errors = errors(dir, told);
    errors.first().map_or_else(
        || "CRIU says no more".to_owned(),
        |first| format!("CRIU: {first}"),
    )
}

fn explain(errors: &[String]) -> String {
    let Some(first) = errors.first() else {
        return "CRIU says no more".to_owned();
    };
    let known = errors
        .iter()
        .find_map(|error| DUMP.iter().find(|(part, _)| error.contains(part)));
    match known {
        Some((_, meaning)) => format!("{meaning} (CRIU: {first})"),
        None => format!("CRIU: {first}"),
    }
}

/// The errors of a log, the first first.
fn errors(dir: &Path, told: Option<&str>) -> Vec<String> {
    let mut log = Vec::new();
    if let Ok(file) = File::open(dir.join(LOG)) {
        let _ = file.take(LOG_BYTES_MAX).read_to_end(&mut log);
    }
    let log = String::from_utf8_lossy(&log);
    let of_log = log
        .lines()
        .filter_map(|line| line.split_once("Error "))
        .map(|(_, error)| error);
    of_log
        .chain(told.map(|told| told.split_once("Error ").map_or(told, |(_, error)| error)))
        .filter(|error| !HARMLESS.iter().any(|harmless| error.contains(harmless)))
        // "(criu/sk-unix.c:351): unix: …"
        .map(|error| {
            error
                .split_once("): ")
                .map_or(error, |(_, said)| said)
                .trim()
                .to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(log: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOG), log).unwrap();
        assert_eq!(not_dumped(dir.path(), None), expected);
    }

    #[test]
    fn the_first_error_that_is_one_is_told() {
        check("", "CRIU says no more");
        check(
            "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
             (00.2) Warn  (criu/x.c:1): something\n\
             (00.3) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted\n\
             (00.4) Error (criu/cr-dump.c:1975): Dumping FAILED.\n",
            "CRIU: Can't get rlimit 0: Operation not permitted",
        );
        check(
            "(00.1) Error (criu/sk-unix.c:351): unix: Unix socket 3103510 not found\n",
            "a connection from outside is open; it is closed and tried again (CRIU: unix: Unix socket 3103510 not found)",
        );
    }
}
