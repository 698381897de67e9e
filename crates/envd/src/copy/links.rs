//! The links that an archive brings, and where its later entries lie because of them.
use std::collections::BTreeMap;
use std::fmt;

use super::archive::shown;

/// As many as the kernel follows.
const HOPS_MAX: usize = 40;
/// What the links of one archive may take in memory, with their paths.
const BYTES_MAX: usize = 16 << 20;
/// What one takes beside its text.
const OVERHEAD_BYTES: usize = 64;

/// Links, by their paths in the archive.
#[derive(Default)]
pub(crate) struct Links {
    targets: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

/// Why an entry has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// It lies behind a link of the archive that leads out of it, or round in circles.
    Behind { path: String, link: String },
    /// They take too much memory.
    TooMany,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Behind { path, link } => write!(
                f,
                "the uploaded archive holds '{path}' behind its own link '{link}', which does not lead to a place in \
                 it: leave the link out, or have links resolved when files are uploaded"
            ),
            LinkError::TooMany => write!(f, "the uploaded archive holds too many links"),
        }
    }
}

impl Links {
    /// Whatever comes to a path now, a link of the archive is there no more. Whether one was.
    pub(crate) fn forget(&mut self, path: &[u8]) -> bool {
        let Some(target) = self.targets.remove(path) else {
            return false;
        };
        self.bytes -= path.len() + target.len() + OVERHEAD_BYTES;
        true
    }

    /// Remembers a link.
    pub(crate) fn remember(&mut self, path: &[u8], target: &[u8]) -> Result<(), LinkError> {
        self.forget(path);
        self.bytes += path.len() + target.len() + OVERHEAD_BYTES;
        if self.bytes > BYTES_MAX {
            return Err(LinkError::TooMany);
        }
        self.targets.insert(path.to_vec(), target.to_vec());
        Ok(())
    }

    /// Where an entry lies: its directories are no links of the archive any more. Itself, it may be one.
    pub(crate) fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, LinkError> {
        if self.targets.is_empty() {
            return Ok(path.to_vec());
        }
        let behind = |link: &[u8]| LinkError::Behind {
            path: shown(path),
            link: shown(link),
        };
        let mut hops = 0;
        // What is left to walk, the next part last.
        let mut left: Vec<Vec<u8>> = parts(path).rev().map(<[u8]>::to_vec).collect();
        let mut place: Vec<u8> = Vec::with_capacity(path.len());
        while let Some(part) = left.pop() {
            if part == b".." {
                let Some(parent) = parent(&place) else {
                    return Err(behind(&place));
                };
                place.truncate(parent);
                continue;
            }
            if !place.is_empty() {
                place.push(b'/');
            }
            place.extend(part);
            if left.is_empty() {
                break;
            }
            let Some(target) = self.targets.get(&place) else {
                continue;
            };
            hops += 1;
            if hops > HOPS_MAX || target.starts_with(b"/") {
                return Err(behind(&place));
            }
            left.extend(parts(target).rev().map(<[u8]>::to_vec));
            place.truncate(parent(&place).unwrap_or(0));
        }
        Ok(place)
    }
}

/// The length of a path's directory; none for the root, which has none.
fn parent(path: &[u8]) -> Option<usize> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|byte| *byte == b'/').unwrap_or(0))
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(all: &[(&str, &str)]) -> Links {
        let mut links = Links::default();
        for (path, target) in all {
            links.remember(path.as_bytes(), target.as_bytes()).unwrap();
        }
        links
    }

    #[test]
    fn entries_lie_where_links_of_the_archive_lead() {
        let links = links(&[
            ("a", "b"),
            ("b", "./c/d"),
            ("x/up", "../c"),
            ("last", "c"),
            ("dot", "."),
        ]);
        let check = |path: &str, place: &str| {
            let found = links.resolve(path.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(found).unwrap(), place, "{path}");
        };
        check("a/f", "c/d/f");
        check("a", "a");
        check("x/up/f", "c/f");
        check("last", "last");
        check("dot/dot/f", "f");
        check("plain/f", "plain/f");
    }

    #[test]
    fn links_that_lead_out_are_no_way() {
        let links = links(&[
            ("etc", "/etc"),
            ("up", ".."),
            ("far", "a/../../x"),
            ("round", "round"),
            ("to", "etc"),
        ]);
        for path in ["etc/passwd", "up/f", "far/f", "round/f", "to/passwd"] {
            assert!(
                matches!(links.resolve(path.as_bytes()), Err(LinkError::Behind { .. })),
                "{path}"
            );
            let itself = path.split('/').next().unwrap();
            assert_eq!(
                links.resolve(itself.as_bytes()).unwrap(),
                itself.as_bytes(),
                "the link itself is copied"
            );
        }
    }

    #[test]
    fn a_link_that_is_replaced_leads_nowhere() {
        let mut links = links(&[("etc", "/etc")]);
        assert!(links.forget(b"etc") && !links.forget(b"etc"));
        assert_eq!(links.resolve(b"etc/passwd").unwrap(), b"etc/passwd");
        assert_eq!(links.bytes, 0);
    }

    #[test]
    fn links_are_bounded() {
        let mut links = Links::default();
        let target = vec![b'x'; 4000];
        let kept = (0_u32..)
            .take_while(|n| links.remember(&n.to_be_bytes(), &target).is_ok())
            .count();
        assert!(kept < BYTES_MAX / 4000);
    }
}
