//! A Dockerfile, read into the steps of a template build.
//!
//! ```text
//! text ─lines─▶ instructions, with their here-documents ─convert─▶ base, steps, start command, remarks
//!                                            └─words─▶ quotes, escapes and variables
//! ```
//!
//! It does what E2B's SDKs do: one stage, run as root from `/`, and left to `user` at home where neither USER nor WORKDIR
//! says otherwise; ARG counts as ENV; ENTRYPOINT and CMD become the start command. What would change the result and is
//! not supported is refused, with its line; what changes nothing is passed over, and remarked upon where somebody may
//! miss it.
mod convert;
mod lines;
mod words;

use std::collections::BTreeMap;

/// No Dockerfile of a person is longer; generated ones neither.
const BYTES_MAX: usize = 1 << 20;

/// What is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dockerfile {
    /// The image of its FROM.
    pub(super) base: String,
    /// The line of its FROM, from 1.
    pub(super) base_line: usize,
    /// What is done to it, in this order.
    pub(super) steps: Vec<Step>,
    /// What its ENTRYPOINT and CMD run, and the line that says so.
    pub(super) start: Option<(String, usize)>,
    /// What was passed over.
    pub(super) remarks: Vec<String>,
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// The line of the instruction that it comes from, from 1.
    pub(super) line: usize,
    /// What.
    pub(super) action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Puts files of the context into it.
    Copy {
        /// A glob, relative to the context.
        source: String,
        /// Where.
        destination: String,
        /// `user[:group]`.
        owner: Option<String>,
        /// Permissions.
        mode: Option<u32>,
    },
    /// Runs a command of bash.
    Run(String),
    /// Sets variables; values may refer to those of the image.
    Env(Vec<(String, String)>),
    /// Changes the directory.
    Workdir(String),
    /// Changes the user.
    User(String),
}

/// A Dockerfile that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(super) struct DockerfileError {
    /// Where, from 1.
    pub(super) line: usize,
    /// What is wrong, and what to do.
    pub(super) what: String,
}

impl DockerfileError {
    fn at(line: usize, what: impl Into<String>) -> Self {
        Self {
            line,
            what: what.into(),
        }
    }
}

impl Dockerfile {
    /// Reads one. `arguments` are values for its ARGs.
    ///
    /// # Errors
    /// The first thing in it that is wrong or not supported, with its line.
    pub(super) fn parse(text: &str, arguments: &BTreeMap<String, String>) -> Result<Self, DockerfileError> {
        if text.len() > BYTES_MAX {
            return Err(DockerfileError::at(
                1,
                format!("a Dockerfile has at most {BYTES_MAX} bytes"),
            ));
        }
        let source = lines::read(text)?;
        convert::convert(&source, arguments)
    }
}

impl Action {
    /// In a few words, for people.
    pub(super) fn shown(&self) -> String {
        let text = match self {
            Action::Copy {
                source, destination, ..
            } => format!("COPY {source} {destination}"),
            Action::Run(command) => format!("RUN {command}"),
            Action::Env(pairs) => {
                let names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
                format!("ENV {}", names.join(" "))
            }
            Action::Workdir(path) => format!("WORKDIR {path}"),
            Action::User(name) => format!("USER {name}"),
        };
        super::words::short(&text)
    }
}

#[cfg(test)]
mod tests;
