//! Words for whoever reads the console of a machine.
use std::fmt::Arguments;
use std::fs::OpenOptions;
use std::io::Write as _;

/// Makes the console our standard streams: the kernel opened none where the initramfs has no device for it.
pub(crate) fn take() {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console");
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null");
    if let Ok(console) = console.or_else(|_| null()) {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Says a line. That nobody can hear it is no reason not to go on.
pub(crate) fn say(words: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "atoll-guest: {words}");
}
