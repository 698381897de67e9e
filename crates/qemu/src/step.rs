//! What failed, in words, beside what was said about it.
use std::fmt;
use std::io;

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Step {
    /// What was tried, with its operands.
    pub(crate) step: String,
    /// What the kernel, or QEMU, said.
    pub(crate) source: io::Error,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed", self.step)
    }
}

impl std::error::Error for Step {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<Step> for ports::RuntimeError {
    fn from(Step { step, source }: Step) -> Self {
        // What the host has run out of is the host's, not a fault of ours.
        match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOSPC) => ports::RuntimeError::Exhausted("disk"),
            Some(rustix::io::Errno::NOMEM) => ports::RuntimeError::Exhausted("memory"),
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                ports::RuntimeError::Exhausted("descriptors")
            }
            _ => ports::RuntimeError::Step { step, source },
        }
    }
}

/// Says at what a failure happened.
pub(crate) trait At<T> {
    /// Names the step.
    fn at(self, step: impl Into<String>) -> Result<T, Step>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: impl Into<String>) -> Result<T, Step> {
        self.map_err(|error| Step {
            step: step.into(),
            source: error.into(),
        })
    }
}
