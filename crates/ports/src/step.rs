//! Steps of a runtime that failed: what was tried, in words, beside what was said about it.
use std::fmt;
use std::io;

use crate::RuntimeError;

// Linux has the same numbers on every architecture (errno(3)).
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;

/// A step that failed.
#[derive(Debug)]
pub struct Step {
    /// What was tried, with its operands.
    pub step: String,
    /// What the kernel, or a program, said.
    pub source: io::Error,
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

impl From<Step> for RuntimeError {
    fn from(Step { step, source }: Step) -> Self {
        // What the host has run out of is the host's, not a fault of ours.
        match source.raw_os_error() {
            Some(ENOSPC) => RuntimeError::Exhausted("disk"),
            Some(ENOMEM) => RuntimeError::Exhausted("memory"),
            Some(EMFILE | ENFILE) => RuntimeError::Exhausted("descriptors"),
            _ => RuntimeError::Step { step, source },
        }
    }
}

/// Says at what a failure happened.
pub trait At<T> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_has_run_out_of_is_told_as_that() {
        let told = |number| {
            let failed: Result<(), io::Error> = Err(io::Error::from_raw_os_error(number));
            RuntimeError::from(failed.at("a step").unwrap_err()).to_string()
        };
        assert_eq!(told(28), "the node is out of disk");
        assert_eq!(told(12), "the node is out of memory");
        assert_eq!(
            (told(23), told(24)),
            (told(24), "the node is out of descriptors".to_owned())
        );
        assert_eq!(told(1), "a step failed");
    }
}
