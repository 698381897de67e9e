//! What tests of this crate share.

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
