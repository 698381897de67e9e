//! What the node asks of envd on its host-only socket beside `/init`: the steps of a build that are not commands, and
//! quiet for a checkpoint.
//!
//! ```text
//! POST /host/copy?…    Copy in the query, the upload (tar, gzip or plain) as the body   → Copied
//! POST /host/user      MakeUser         → UserMade
//! POST /host/workdir   EnterWorkdir     → Entered
//! POST /host/env       Evaluate         → Evaluated
//! POST /host/quiesce   Quiesce          → Quiesced, and the end of the connection
//! ```
//!
//! What goes wrong is answered by [`Refused`]: 400 where the step or the upload is wrong, 507 where the disk is full,
//! 500 for the rest.
use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

/// No path that the kernel takes is longer, in bytes (`PATH_MAX`); of two of them, encoded, a request can still be made.
pub const COPY_TEXT_BYTES_MAX: usize = 4096;

/// A COPY step (contract 4.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// A glob, relative to the context.
    pub source: String,
    /// Where: below `workdir`, where it is relative.
    pub destination: String,
    /// `user[:group]`, names or numbers; `user` where it is not given.
    pub owner: Option<String>,
    /// Permissions of whatever is copied, but of links.
    pub mode: Option<u32>,
    /// The current user.
    pub user: String,
    /// The current directory; the user's home where it is not set.
    pub workdir: Option<String>,
}

/// A COPY step that no request can be made of, or a request that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Longer than any path.
    #[error("the {0} of a COPY is longer than {COPY_TEXT_BYTES_MAX} bytes")]
    TooLong(&'static str),
    /// Not said.
    #[error("the {0} of the COPY is missing")]
    Missing(&'static str),
    /// Not permissions.
    #[error("'{0}' is not a mode: up to four octal digits")]
    Mode(String),
    /// Not text, or text that no path holds.
    #[error("the {0} of the COPY is not UTF-8, or holds a NUL byte")]
    Text(&'static str),
}

/// What needs no encoding within a value.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_');

impl Copy {
    /// The target of the request.
    ///
    /// # Errors
    /// [`CopyError::TooLong`], [`CopyError::Mode`].
    pub fn target(&self) -> Result<String, CopyError> {
        let texts = [
            ("source", Some(&self.source)),
            ("destination", Some(&self.destination)),
            ("owner", self.owner.as_ref()),
            ("user", Some(&self.user)),
            ("workdir", self.workdir.as_ref()),
        ];
        let mut target = String::from("/host/copy?");
        for (name, text) in texts {
            let Some(text) = text else { continue };
            if text.len() > COPY_TEXT_BYTES_MAX {
                return Err(CopyError::TooLong(name));
            }
            target.extend([name, "="]);
            target.extend(utf8_percent_encode(text, ENCODED));
            target.push('&');
        }
        match self.mode {
            Some(mode) if mode > MODE_MAX => return Err(CopyError::Mode(format!("{mode:o}"))),
            Some(mode) => target += &format!("mode={mode:o}"),
            None => {
                target.pop();
            }
        }
        Ok(target)
    }

    /// Reads a request's query. What it does not know is ignored.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn of_query(query: &str) -> Result<Self, CopyError> {
        let mut told: BTreeMap<&'static str, String> = BTreeMap::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(name) = NAMES.into_iter().find(|known| *known == name) else {
                continue;
            };
            if value.len() > 3 * COPY_TEXT_BYTES_MAX {
                return Err(CopyError::TooLong(name));
            }
            let value = percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| CopyError::Text(name))?;
            if value.len() > COPY_TEXT_BYTES_MAX {
                return Err(CopyError::TooLong(name));
            }
            if value.contains('\0') {
                return Err(CopyError::Text(name));
            }
            told.insert(name, value.into_owned());
        }
        let mut take = |name: &'static str| told.remove(name).ok_or(CopyError::Missing(name));
        Ok(Self {
            source: take("source")?,
            destination: take("destination")?,
            user: take("user")?,
            owner: take("owner").ok().filter(|owner| !owner.is_empty()),
            workdir: take("workdir").ok().filter(|dir| !dir.is_empty()),
            mode: match take("mode").ok().filter(|mode| !mode.is_empty()) {
                None => None,
                Some(mode) => {
                    let is_octal = mode.len() <= 5 && mode.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
                    let number = u32::from_str_radix(&mode, 8)
                        .ok()
                        .filter(|n| is_octal && *n <= MODE_MAX);
                    Some(number.ok_or(CopyError::Mode(mode))?)
                }
            },
        })
    }
}

const NAMES: [&str; 6] = ["source", "destination", "owner", "user", "workdir", "mode"];
/// Permissions with set-user-id, set-group-id and the sticky bit.
const MODE_MAX: u32 = 0o7777;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Copied {
    /// Files and links.
    pub files: u64,
    /// Their content.
    pub bytes: u64,
}

/// A USER step: the user is made where there is none of this name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeUser {
    /// The name; the number of a user that is there will do as well.
    pub name: String,
    /// Whether it may be anybody by `sudo`, without a password.
    #[serde(default)]
    pub sudo: bool,
}

/// A user that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserMade {
    /// Its name, as it is in `/etc/passwd`.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
    /// Its directory.
    pub home: String,
    /// Whether it was not there before.
    pub is_new: bool,
}

/// A WORKDIR step: the directory is made where there is none, as the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnterWorkdir {
    /// Where; below `previous`, where it is relative.
    pub path: String,
    /// Where the step before was; `/` where it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The current user.
    pub user: String,
}

/// The directory that was entered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entered {
    /// As a shell's `pwd` says it: absolute, without dots, links as they are.
    pub path: String,
}

/// Texts that are evaluated as a shell does within double quotes, but that nothing in them is a command: `$NAME` and
/// `${NAME}`, as root's login sees them. Backslashes, quotes, backticks and `$(` stand for themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Evaluate {
    /// Names, and what is to be evaluated. For an ENV step: its variables.
    pub values: Vec<(String, String)>,
    /// Variables that root's login begins with. For an ENV step: none, as in the reference.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub known: BTreeMap<String, String>,
}

/// The same names, and what came out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Evaluated {
    /// In the order of the question.
    pub values: Vec<(String, String)>,
}

/// That envd is to hold no connection of its host, so that its memory can be written down. What streams is ended as
/// `aborted` when the grace is over. The listeners stay: whoever connects later is served, so that the node must hold
/// back everybody itself until the checkpoint has been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Quiesce {
    /// How long requests under way have to come to their end, in milliseconds; 10 s at most.
    pub grace_ms: u64,
}

/// The others are closed, and this connection is when its answer has been sent: when its end is read, envd holds none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quiesced {
    /// How many were closed, this one not among them.
    pub closed: usize,
    /// How many are open, this one not among them: those that came meanwhile. A checkpoint would fail.
    pub left: usize,
}

/// Why a call was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What happened, to what, and what to do: for the user, where the status is 400.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_as_it_was_asked_for() {
        let copy = Copy {
            source: "src/ä &=%+?*.{js,ts}".to_owned(),
            destination: "/a b/".to_owned(),
            owner: Some("1000:staff".to_owned()),
            mode: Some(0o4755),
            user: "user".to_owned(),
            workdir: Some("/w".to_owned()),
        };
        let bare = Copy {
            destination: String::new(),
            owner: None,
            mode: None,
            workdir: None,
            ..copy.clone()
        };
        for copy in [copy, bare] {
            let target = copy.target().unwrap();
            let query = target.strip_prefix("/host/copy?").unwrap();
            assert_eq!(Copy::of_query(query), Ok(copy), "{query}");
        }
    }

    #[test]
    fn what_is_no_copy_is_refused_by_name() {
        let check = |query: &str, error: CopyError| assert_eq!(Copy::of_query(query), Err(error), "{query}");
        check("source=a&user=u", CopyError::Missing("destination"));
        check("source=a&destination=b", CopyError::Missing("user"));
        check("source=%ff", CopyError::Text("source"));
        check("workdir=%00", CopyError::Text("workdir"));
        for mode in ["9", "+7", "10000", "0o7", "77777777777777"] {
            let query = format!("source=a&destination=b&user=u&mode={mode}");
            check(&query, CopyError::Mode(mode.to_owned()));
        }
        check(
            &format!("source={}", "a".repeat(4097)),
            CopyError::TooLong("source"),
        );
        let long = Copy {
            destination: "ä".repeat(4096),
            ..Copy::default()
        };
        assert_eq!(long.target(), Err(CopyError::TooLong("destination")));
        let odd = Copy {
            mode: Some(0o10000),
            ..Copy::default()
        };
        assert_eq!(odd.target(), Err(CopyError::Mode("10000".to_owned())));
    }
}
