//! Programs of the distribution's that are run here, and how they ended.
use std::io;
use std::process::{Command, Output, Stdio};

/// What is kept of what a program says when it fails.
const SAID_BYTES_MAX: usize = 2000;

/// A program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started.
    #[error("{program} cannot be started: install the package {package}")]
    Absent {
        /// Which.
        program: String,
        /// What it comes with.
        package: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended otherwise than well.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        status: String,
        /// The end of what it said.
        said: String,
    },
}

/// Runs it, and returns what it wrote to its standard output.
pub(crate) fn run(mut command: Command, package: &'static str) -> Result<Vec<u8>, ProgramError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| ProgramError::Absent {
            program: program.clone(),
            package,
            source,
        })?;
    if status.success() {
        return Ok(stdout);
    }
    let from = stderr.len().saturating_sub(SAID_BYTES_MAX);
    Err(ProgramError::Failed {
        program,
        status: status.to_string(),
        said: String::from_utf8_lossy(&stderr[from..]).trim().to_owned(),
    })
}
