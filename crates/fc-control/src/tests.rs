//! What tests of this crate share.
use std::path::PathBuf;

/// Says loudly that a test has shown nothing.
#[expect(clippy::print_stderr, reason = "whoever reads the output of tests is told")]
pub(crate) fn not_run(why: &str) {
    eprintln!("NOT RUN: {why}");
}

/// Tells what was seen, to whoever reads the output of tests.
#[expect(clippy::print_stderr, reason = "whoever reads the output of tests is told")]
pub(crate) fn tell(what: &str) {
    eprintln!("{what}");
}

/// A real Firecracker and its jailer: that of `ATOLL_FIRECRACKER`, or on `PATH`, with the jailer beside it.
pub(crate) fn real() -> Option<(PathBuf, PathBuf)> {
    let told = std::env::var_os("ATOLL_FIRECRACKER").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&paths).map(|dir| dir.join("firecracker"));
    let firecracker = told.or_else(|| found.find(|path| path.exists()));
    let both = firecracker.map(|firecracker| {
        let jailer = firecracker.with_file_name("jailer");
        (firecracker, jailer)
    });
    if both.is_none() {
        not_run("there is no Firecracker: name one by ATOLL_FIRECRACKER, or have it on PATH");
    }
    both
}
