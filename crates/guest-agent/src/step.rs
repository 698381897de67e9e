//! What failed, in words, beside what the kernel said.
use std::fmt;
use std::io;

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Step {
    /// What was tried, with its operands.
    step: String,
    /// What the kernel said.
    pub(crate) source: io::Error,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed", self.step)
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
