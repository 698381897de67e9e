//! envd: the daemon in every sandbox. It runs processes, moves files and tells what happens, and as PID 1 it reaps.
//!
//! ```text
//! http ──▶ access ──▶ files       GET, POST /files: content, encodings, signatures, metadata
//!              │  └─▶ host        /init, /host/*: for the node alone, on the socket that only it can open
//!              ├────▶ process     process.Process: commands and terminals
//!              └────▶ filesystem  filesystem.Filesystem: entries and watches
//! host ──▶ copy, accounts, workdir, shell   steps of a build        lines   quiet, so that memory can be written down
//! settings   what /init said        users   /etc/passwd and /etc/group
//! reaper     who has ended          logs    a bounded memory of what happened
//! rest       memory goes back after work           system_file   what users may have put anything in place of
//! ```
//!
//! **Invariants.** One thread runs it all; whatever blocks goes to the blocking pool. Every buffer has a bound. It
//! makes no connection by itself. The protocol is the contract's section 5.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    reason = "whoever starts it by hand reads what went wrong"
)]

mod access;
mod accounts;
mod arguments;
mod copy;
mod files;
mod filesystem;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod host;
mod http;
mod lines;
mod logs;
mod metrics;
mod paths;
mod process;
mod random;
mod reaper;
mod request_body;
mod rest;
mod settings;
mod shell;
mod system_file;
mod users;
mod workdir;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::http::Envd;

/// For ever, as far as a sandbox is concerned: where a user's program has taken all tasks there is no other thread to be had, and files
/// are to be read and written all the same. A thread that rests costs some pages.
const THREAD_RESTS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Serves until it is told to end, as its arguments say.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("atoll-envd: {wrong}");
            return ExitCode::from(2);
        }
    };
    linux::memory::stay_small();
    // What is made for users is theirs to write and everybody's to read, whatever we were started with.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Whatever a user's program takes, we stay: refused where we are not the machine's root.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    if arguments.pid1 {
        // Nothing inside may trace it, or read its memory, environment or descriptors.
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Each blocked thread is a file operation under way; more of them would only wait for the same disk.
        .max_blocking_threads(8)
        // Packing takes a few hundred kilobytes; what is not touched costs nothing.
        .thread_stack_size(1024 * 1024)
        .thread_keep_alive(THREAD_RESTS)
        .build();
    let outcome = runtime.and_then(|runtime| {
        runtime.block_on(async {
            // There is one before any user's program can take all tasks that there may be.
            let _ = tokio::task::spawn_blocking(|| ()).await;
            Arc::new(Envd::new(&arguments)).run(arguments).await
        })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atoll-envd: {error}");
            ExitCode::FAILURE
        }
    }
}
