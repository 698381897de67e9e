//! The directory that COPY copies from: what a source names in it, the hash of that, and its archive.
//!
//! ```text
//! source ─pattern─▶ entries, without what .dockerignore names ─archive─▶ hash, tar.gz
//! ```
//!
//! Links are kept as links and never followed, so that nothing outside of the directory is read. Owners and times are no
//! part of the hash: the same files have the same one on every machine.
mod archive;
mod ignore;
mod pattern;

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use self::ignore::Ignore;
use self::pattern::Pattern;

/// Entries of one source: the largest source trees have a tenth of that.
const ENTRIES_MAX: usize = 1_000_000;
/// As much of `.dockerignore` as is read.
const IGNORE_BYTES_MAX: u64 = 1 << 20;

/// The directory.
#[derive(Debug)]
pub(super) struct Context {
    root: PathBuf,
    ignore: Ignore,
}

/// What one source names, by path.
#[derive(Debug)]
pub(super) struct Found {
    root: PathBuf,
    entries: Vec<Entry>,
    /// Sockets, pipes and devices, which are not copied.
    pub(super) skipped: Vec<PathBuf>,
}

/// A thing in the context.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// From the context on, without dots.
    path: Vec<u8>,
    kind: Kind,
    /// Permission bits.
    mode: u32,
    /// Seconds since the epoch.
    modified: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File { bytes: u64 },
    Directory,
    Link(Vec<u8>),
}

/// Why files of a context cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    /// Not there, or not to be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A rule that is none.
    #[error("line {line} of {}: {what}", path.display())]
    Ignore {
        /// In which file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A source that leads elsewhere.
    #[error("the source '{0}' leads out of the context: sources are relative to it, and lie within")]
    Outside(String),
    /// A source behind a link.
    #[error("the source '{source_path}' lies behind the link {}, which is not followed", link.display())]
    BehindLink {
        /// Which source.
        source_path: String,
        /// Which link.
        link: PathBuf,
    },
    /// A source that is no glob.
    #[error("the source '{0}' is no glob: a [ has no end")]
    Glob(String),
    /// Nothing is there, or all is ignored.
    #[error("nothing in {} is '{source_path}', or .dockerignore names it", root.display())]
    Nothing {
        /// Which source.
        source_path: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// Too many entries.
    #[error("the source '{0}' has more than {ENTRIES_MAX} entries: name less, or add a .dockerignore")]
    TooMany(String),
    /// It is not what was hashed.
    #[error("{} was changed while it was read: try again", .0.display())]
    Changed(PathBuf),
    /// No room for the archive.
    #[error("cannot write the archive of the context to a temporary file")]
    Archive(#[source] io::Error),
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> ContextError + '_ {
    move |source| ContextError::Read {
        path: path.to_owned(),
        source,
    }
}

impl Context {
    /// Opens a directory, and reads its `.dockerignore`, if it has one.
    pub(super) fn open(root: &Path) -> Result<Self, ContextError> {
        let root = fs::canonicalize(root).map_err(unreadable(root))?;
        if !root.is_dir() {
            return Err(unreadable(&root)(io::ErrorKind::NotADirectory.into()));
        }
        let path = root.join(".dockerignore");
        let rules = match fs::File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(file, IGNORE_BYTES_MAX), &mut bytes)
                    .map_err(unreadable(&path))?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(unreadable(&path)(error)),
        };
        let ignore =
            Ignore::parse(&rules).map_err(|(line, what)| ContextError::Ignore { path, line, what })?;
        Ok(Self { root, ignore })
    }

    /// What a source names: a path, or a glob of `*`, `?`, `[…]` and `**`.
    pub(super) fn find(&self, source: &str) -> Result<Found, ContextError> {
        let cleaned =
            pattern::clean(source.as_bytes()).ok_or_else(|| ContextError::Outside(source.to_owned()))?;
        let glob = Pattern::parse(&cleaned).ok_or_else(|| ContextError::Glob(source.to_owned()))?;
        let start = pattern::literal(&cleaned);
        self.refuse_links(source, &start)?;
        let mut walk = Walk {
            context: self,
            source,
            glob,
            found: Found {
                root: self.root.clone(),
                entries: Vec::new(),
                skipped: Vec::new(),
            },
        };
        walk.run(start)?;
        let mut found = walk.found;
        found.entries.sort_by(|one, other| one.path.cmp(&other.path));
        if found.entries.is_empty() {
            return Err(ContextError::Nothing {
                source_path: source.to_owned(),
                root: self.root.clone(),
            });
        }
        Ok(found)
    }

    /// A path that leads through a link may lead anywhere.
    fn refuse_links(&self, source: &str, path: &[u8]) -> Result<(), ContextError> {
        let mut place = self.root.clone();
        let parts: Vec<&[u8]> = path
            .split(|b| *b == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let Some((_, above)) = parts.split_last() else {
            return Ok(());
        };
        for part in above {
            place.push(OsStr::from_bytes(part));
            if fs::symlink_metadata(&place).is_ok_and(|found| found.is_symlink()) {
                return Err(ContextError::BehindLink {
                    source_path: source.to_owned(),
                    link: place,
                });
            }
        }
        Ok(())
    }
}

/// A walk through what a source may name.
struct Walk<'a> {
    context: &'a Context,
    source: &'a str,
    glob: Pattern,
    found: Found,
}

impl Walk<'_> {
    fn run(&mut self, start: Vec<u8>) -> Result<(), ContextError> {
        // Paths, and whether all below them is meant.
        let mut left = vec![(start, false)];
        while let Some((path, is_within)) = left.pop() {
            let place = place(&self.context.root, &path);
            let metadata = match fs::symlink_metadata(&place) {
                Ok(metadata) => metadata,
                // Nothing is named, which is told when all has been looked at.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(unreadable(&place)(error)),
            };
            let is_meant = is_within || self.glob.matches(&path);
            let is_ignored = !path.is_empty() && self.context.ignore.names(&path);
            if is_meant && !is_ignored {
                self.add(&path, &place, &metadata)?;
            }
            // What is ignored may hold what is not.
            if metadata.is_dir() && (!is_ignored || self.context.ignore.has_exceptions()) {
                for entry in fs::read_dir(&place).map_err(unreadable(&place))? {
                    let name = entry.map_err(unreadable(&place))?.file_name();
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name.as_bytes());
                    left.push((below, is_meant));
                }
                if left.len() > ENTRIES_MAX {
                    return Err(ContextError::TooMany(self.source.to_owned()));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &[u8], place: &Path, metadata: &Metadata) -> Result<(), ContextError> {
        let kind = if metadata.is_file() {
            Kind::File {
                bytes: metadata.len(),
            }
        } else if metadata.is_dir() {
            Kind::Directory
        } else if metadata.is_symlink() {
            let target = fs::read_link(place).map_err(unreadable(place))?;
            Kind::Link(target.into_os_string().into_vec())
        } else {
            self.found.skipped.push(place.to_owned());
            return Ok(());
        };
        if self.found.entries.len() >= ENTRIES_MAX {
            return Err(ContextError::TooMany(self.source.to_owned()));
        }
        let modified = metadata
            .modified()
            .ok()
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        self.found.entries.push(Entry {
            path: path.to_owned(),
            kind,
            mode: metadata.permissions().mode() & 0o7777,
            modified: modified.map_or(0, |since| since.as_secs()),
        });
        Ok(())
    }
}

fn place(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() {
        root.to_owned()
    } else {
        root.join(OsStr::from_bytes(path))
    }
}

/// A source as the server reads it: braces, which match nothing but themselves in a Dockerfile, are escaped.
pub(super) fn for_server(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut letters = source.chars();
    while let Some(letter) = letters.next() {
        if letter == '{' {
            text.push('\\');
        }
        text.push(letter);
        if letter == '\\' {
            text.extend(letters.next());
        }
    }
    text
}

#[cfg(test)]
mod tests;
