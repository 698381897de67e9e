//! What is said: a command's result on standard output, all other talk on standard error.
use std::fmt::{self, Display};
use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Nobody reads standard output any more, as after `| head`: nothing went wrong, and there is nothing left to do.
#[derive(Debug)]
pub(crate) struct Unread;

impl Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for Unread {}

/// Prints text as it is.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .or_else(unwritten)
}

/// Prints a line.
pub(crate) fn line(line: impl Display) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(value)?)
}

/// Says something to whoever watches; it is nothing to fail for where nobody does.
pub(crate) fn say(words: impl Display) {
    let _ = writeln!(io::stderr(), "atoll: {words}");
}

/// Passes on what somebody else says, such as a build, to whoever watches.
pub(crate) fn talk(words: impl Display) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// What it means that output could not be written.
pub(crate) fn unwritten<T>(error: io::Error) -> Result<T> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Err(Unread.into());
    }
    Err(error).context("cannot write the output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        let closed = unwritten::<()>(io::ErrorKind::BrokenPipe.into()).unwrap_err();
        let full = unwritten::<()>(io::ErrorKind::StorageFull.into()).unwrap_err();
        assert!(closed.is::<Unread>());
        assert!(!full.is::<Unread>());
    }
}
