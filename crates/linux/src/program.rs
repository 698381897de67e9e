//! Programs of the host's that are run to their end.
use std::io;
use std::process::{Command, Stdio};

/// Runs it, and fails with what it said.
///
/// # Errors
/// It cannot be started, or ended otherwise than well.
pub fn run(command: &mut Command) -> io::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("running {program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!(
        "{program} ended with {}: {said}",
        output.status
    )))
}
