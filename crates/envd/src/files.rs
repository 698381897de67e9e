//! The content of files: read, written, put together (contract 5.1).
//!
//! ```text
//! download ──▶ conditions    which part, or that nothing changed     encoding      gzip or as it is
//!         └──▶ media_type    what kind of content it is
//! upload   ──▶ incoming      the body, unpacked, in bounded pieces   disposition   how a part is named
//!         ├──▶ writing       one file being written                  metadata      what a client notes beside it
//! compose  one file out of several                                   signature     a link that is its own permission
//! ```
//!
//! **Invariants.** No more than a few pieces of a file are in memory at a time. Only regular files are opened: a pipe
//! or a device could block a thread, or do something, by being opened alone.
mod compose;
mod conditions;
mod disposition;
mod download;
mod encoding;
pub(crate) mod form;
mod incoming;
mod media_type;
mod metadata;
mod pieces;
mod signature;
mod upload;
mod writing;

use std::io;

use http::{HeaderMap, StatusCode, Uri};
use percent_encoding::percent_decode_str;
use serde::Serialize;

pub(crate) use self::compose::compose;
pub(crate) use self::download::download;
pub(crate) use self::metadata::Metadata;
pub(crate) use self::upload::upload;
use crate::access::Refusal;
use crate::http::Envd;
use crate::paths::expand;
use crate::users::User;

/// One piece of a file on its way: large enough that the cost of handing it over does not count, small enough that
/// many transfers at once fit a small sandbox.
const PIECE_BYTES: usize = 256 * 1024;

/// What the query of a request for a file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Query {
    path: String,
    username: String,
    signature: Option<String>,
    signature_expiration: Option<String>,
}

impl Query {
    fn of(uri: &Uri) -> Self {
        let mut query = Self::default();
        let mut seen = [false; 4];
        for pair in uri.query().unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = || {
                percent_decode_str(&value.replace('+', " "))
                    .decode_utf8_lossy()
                    .into_owned()
            };
            // The first of several is the one that counts, for the signature as for the path.
            match key {
                "path" if !std::mem::replace(&mut seen[0], true) => query.path = value(),
                "username" if !std::mem::replace(&mut seen[1], true) => query.username = value(),
                "signature" if !std::mem::replace(&mut seen[2], true) => query.signature = Some(value()),
                "signature_expiration" if !std::mem::replace(&mut seen[3], true) => {
                    query.signature_expiration = Some(value());
                }
                _ => {}
            }
        }
        query
    }
}

/// For whom a file is read or written.
struct Caller {
    user: User,
    default_workdir: Option<String>,
}

impl Caller {
    /// Lets a request in whose token or signature is right.
    fn admit(
        envd: &Envd,
        query: &Query,
        headers: &HeaderMap,
        operation: signature::Operation,
    ) -> Result<Self, Refusal> {
        let settings = envd.settings();
        signature::check(
            settings.token.as_ref(),
            headers,
            query,
            operation,
            signature::now_unix_s(),
        )?;
        drop(settings);
        Self::named(envd, &query.username)
    }

    /// The user of this name; of none, the default one.
    fn named(envd: &Envd, username: &str) -> Result<Self, Refusal> {
        let settings = envd.settings();
        let named = (!username.is_empty()).then(|| username.to_owned());
        let name = named
            .or_else(|| settings.default_user.clone())
            .ok_or_else(|| Refusal::bad("username not provided and no default user is set"))?;
        let user =
            User::find(&name).ok_or_else(|| Refusal::unauthorized(format!("invalid username: '{name}'")))?;
        Ok(Self {
            user,
            default_workdir: settings.default_workdir.clone(),
        })
    }

    /// What its path means.
    fn place(&self, path: &str) -> Result<String, Refusal> {
        expand(path, &self.user, self.default_workdir.as_deref()).map_err(Refusal::bad)
    }
}

/// How a file that was written is told of.
#[derive(Debug, Serialize)]
struct Written {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
}

impl Written {
    fn new(path: String, metadata: Metadata) -> Self {
        let name = base_name(&path).to_owned();
        Self {
            path,
            name,
            r#type: "file",
            metadata,
        }
    }
}

/// The last part of a path.
pub(crate) fn base_name(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}

/// Does what blocks where blocking harms nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(broken) => std::panic::resume_unwind(broken.into_panic()),
    }
}

/// What a client is told of a failed system call.
fn failed(doing: &str, path: &str, error: &io::Error) -> Refusal {
    let status = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidFilename => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let why = if status == StatusCode::INSUFFICIENT_STORAGE {
        "not enough disk space available".to_owned()
    } else {
        error.to_string()
    };
    Refusal::new(status, format!("error {doing} '{path}': {why}"))
}

/// Whether the file may be opened at all.
fn regular(path: &str, kind: rustix::fs::FileType) -> Result<(), Refusal> {
    use rustix::fs::FileType;
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Refusal::bad(format!("path '{path}' is a directory"))),
        _ => Err(Refusal::bad(format!("path '{path}' is not a regular file"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_the_first_value_counts() {
        let uri: Uri = "/files?path=%2Fa%20b%2Bc+d&path=/x&username=user&signature=v1_a%2Bb%2Fc"
            .parse()
            .unwrap();
        let query = Query::of(&uri);
        assert_eq!(
            (query.path.as_str(), query.username.as_str()),
            ("/a b+c d", "user")
        );
        assert_eq!(query.signature.as_deref(), Some("v1_a+b/c"));
        assert_eq!(query.signature_expiration, None);
        assert_eq!(Query::of(&Uri::from_static("/files")), Query::default());
    }

    #[test]
    fn the_base_of_a_path_is_its_last_part() {
        for (path, base) in [("/a/b", "b"), ("/a/b/", "b"), ("/", "/"), ("x", "x")] {
            assert_eq!(base_name(path), base);
        }
    }
}
