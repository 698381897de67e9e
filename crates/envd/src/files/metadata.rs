//! What a client notes beside a file: `X-Metadata-<key>` headers, kept as extended attributes `user.e2b.<key>`.
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use http::HeaderMap;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::Serialize;

use crate::access::Refusal;

const HEADER_PREFIX: &str = "x-metadata-";
const ATTRIBUTE_PREFIX: &str = "user.e2b.";
/// The kernel takes 255 bytes of name (xattr(7)), the prefix among them.
const KEY_BYTES_MAX: usize = 246;
/// Prefixes, keys and values together: what common file systems keep of one file.
const TOTAL_BYTES_MAX: usize = 4096;
/// The kernel's bound of all names of one file (xattr(7)).
const NAMES_BYTES_MAX: usize = 64 * 1024;

/// The notes of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Metadata(pub(crate) BTreeMap<String, String>);

impl Metadata {
    /// What a request notes.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut noted = BTreeMap::new();
        let mut total = 0;
        for name in headers.keys() {
            let Some(key) = name.as_str().strip_prefix(HEADER_PREFIX) else {
                continue;
            };
            let value = headers
                .get(name)
                .map(http::HeaderValue::as_bytes)
                .unwrap_or_default();
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(invalid(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
            }
            if !value
                .iter()
                .chain(key.as_bytes())
                .all(|byte| (0x20..0x7f).contains(byte))
            {
                return Err(invalid(format!("'{key}' is not printable ASCII")));
            }
            total += ATTRIBUTE_PREFIX.len() + key.len() + value.len();
            noted.insert(key.to_owned(), String::from_utf8_lossy(value).into_owned());
        }
        if total > TOTAL_BYTES_MAX {
            return Err(invalid(format!(
                "keys and values have {total} bytes, more than {TOTAL_BYTES_MAX}"
            )));
        }
        Ok(Self(noted))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes these the notes of a file, and the only ones. A file system that keeps none is no error.
    pub(super) fn keep(&self, file: impl AsFd) -> io::Result<()> {
        let file = file.as_fd();
        for key in keys(|names| rustix::fs::flistxattr(file, names)) {
            if !self.0.contains_key(&key) {
                let _ = rustix::fs::fremovexattr(file, format!("{ATTRIBUTE_PREFIX}{key}"));
            }
        }
        for (key, value) in &self.0 {
            let name = format!("{ATTRIBUTE_PREFIX}{key}");
            match rustix::fs::fsetxattr(file, name, value.as_bytes(), XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The notes of what lies at a path, whose last link is not followed.
    pub(crate) fn at(path: &Path) -> Self {
        let keys = keys(|names| rustix::fs::llistxattr(path, names));
        let noted = keys.into_iter().filter_map(|key| {
            let mut value = vec![0; TOTAL_BYTES_MAX];
            let length =
                rustix::fs::lgetxattr(path, format!("{ATTRIBUTE_PREFIX}{key}"), &mut value[..]).ok()?;
            value.truncate(length);
            Some((key, String::from_utf8(value).ok()?))
        });
        Self(noted.collect())
    }
}

/// The keys among the attributes' names. Most files have no attribute at all, which costs one call and no memory.
fn keys(list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Vec<String> {
    let mut names = [0; 512];
    let mut more = Vec::new();
    let listed = match list(&mut names) {
        Ok(length) => &names[..length],
        Err(Errno::RANGE) => {
            more.resize(NAMES_BYTES_MAX, 0);
            let length = list(&mut more).unwrap_or(0);
            &more[..length]
        }
        Err(_) => &[],
    };
    let names = listed
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok());
    names
        .filter_map(|name| name.strip_prefix(ATTRIBUTE_PREFIX))
        .map(str::to_owned)
        .collect()
}

fn invalid(why: String) -> Refusal {
    Refusal::bad(format!("invalid metadata: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_and_printable() {
        let with = |name: &str, value: &[u8]| {
            let mut headers = HeaderMap::new();
            let name: http::HeaderName = name.parse().unwrap();
            headers.insert(name, http::HeaderValue::from_bytes(value).unwrap());
            Metadata::of(&headers)
        };
        assert_eq!(with("X-Metadata-Author", b"me").unwrap().0["author"], "me");
        assert!(with("X-Other", b"me").unwrap().is_empty());
        assert!(with(&format!("x-metadata-{}", "k".repeat(246)), b"v").is_ok());
        assert!(with(&format!("x-metadata-{}", "k".repeat(247)), b"v").is_err());
        assert!(with("x-metadata-k", "ü".as_bytes()).is_err());
        assert!(with("x-metadata-k", &[b'x'; 4096 - 10]).is_ok());
        assert!(with("x-metadata-k", &[b'x'; 4096 - 9]).is_err());
    }

    #[test]
    fn new_notes_replace_all_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        let notes = |pairs: &[(&str, &str)]| {
            Metadata(
                pairs
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            )
        };
        notes(&[("a", "1"), ("b", "2")]).keep(&file).unwrap();
        let kept = Metadata::at(&path);
        if kept.is_empty() {
            return; // This file system keeps none.
        }
        assert_eq!(kept, notes(&[("a", "1"), ("b", "2")]));
        notes(&[("b", "3")]).keep(&file).unwrap();
        assert_eq!(Metadata::at(&path), notes(&[("b", "3")]));
    }
}
