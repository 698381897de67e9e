//! One COPY step: what it copies, onto what, and how that goes.
use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd as _;

use rustix::fs::CWD;
use wire::host_calls::{Copied, Copy};

use super::archive::{Archive, ArchiveError, Entry, Kind, shown};
use super::links::{LinkError, Links};
use super::owner;
use super::place::{self, Owner};
use super::source::{Source, SourceError};
use super::tree::{self, Facts, PutError, Tree};
use crate::users::User;

/// A step whose texts have been understood.
pub(super) struct Step {
    source: Source,
    /// Absolute. A slash at its end says that it is a directory.
    destination: String,
    owner: Owner,
    /// Of files and directories, instead of their own.
    mode: Option<u32>,
}

/// Why a step was not carried out. What it had copied until then stays where it is.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The step makes no sense here.
    Step(String),
    Source(SourceError),
    Archive(ArchiveError),
    Link(LinkError),
    /// The client's glob matched nothing that was uploaded.
    NothingThere(String),
    /// The archive says of the source that it is one thing, and another.
    Torn(String),
    /// A directory that is not empty is where a file is to be.
    InTheWay(String),
    /// A second name for a file that the archive does not hold, or not before.
    NotCopied(String),
    /// What the sandbox's files answered.
    Place {
        path: String,
        error: io::Error,
    },
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyError::Step(wrong) => f.write_str(wrong),
            CopyError::Source(error) => error.fmt(f),
            CopyError::Archive(error) => error.fmt(f),
            CopyError::Link(error) => error.fmt(f),
            CopyError::NothingThere(glob) => {
                write!(
                    f,
                    "the source '{glob}' of COPY does not exist in what was uploaded"
                )
            }
            CopyError::Torn(path) => write!(
                f,
                "the uploaded archive says that '{path}' is a directory, and that it is none: upload it again"
            ),
            CopyError::InTheWay(path) => {
                write!(
                    f,
                    "'{path}' cannot be copied: a directory that is not empty is in its place"
                )
            }
            CopyError::NotCopied(path) => write!(
                f,
                "'{path}' is a second name for a file that is not copied before it: upload a copy instead of a hard link"
            ),
            CopyError::Place { path, error } if super::is_full(error) => {
                write!(f, "'{path}' cannot be copied: the disk of the sandbox is full")
            }
            CopyError::Place { path, error } => write!(f, "'{path}' cannot be copied: {error}"),
        }
    }
}

impl From<SourceError> for CopyError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<ArchiveError> for CopyError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

impl From<LinkError> for CopyError {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// What the source has turned out to be.
enum Found {
    Nothing,
    /// A file or a link: it is all that is copied.
    One,
    Directory(Box<Tree>),
}

impl Step {
    /// Understands a step.
    pub(super) fn of(told: &Copy) -> Result<Self, CopyError> {
        let source = Source::parse(&told.source)?;
        let user = || {
            let user = User::find(&told.user);
            user.ok_or_else(|| {
                CopyError::Step(format!("the user '{}' of the build does not exist", told.user))
            })
        };
        let owner = told.owner.as_deref().unwrap_or(&told.user);
        let owner = owner::parse(owner).map_err(CopyError::Step)?;
        let destination = if told.destination.starts_with('/') {
            told.destination.clone()
        } else {
            let base = match &told.workdir {
                Some(dir) => dir.clone(),
                None => user()?.home,
            };
            if place::leads_to(CWD, base.as_bytes())
                .ok()
                .flatten()
                .is_none_or(|kind| !kind.is_dir())
            {
                return Err(CopyError::Step(format!(
                    "'{base}', which the destination '{}' of COPY lies below, is no directory",
                    told.destination
                )));
            }
            format!("{base}/{}", told.destination)
        };
        Ok(Self {
            source,
            destination,
            owner,
            mode: told.mode,
        })
    }

    /// Carries it out.
    pub(super) fn carry_out(&self, archive: &mut Archive<impl Read>) -> Result<Copied, CopyError> {
        let (mut copied, mut links, mut found) = (Copied::default(), Links::default(), Found::Nothing);
        while let Some(entry) = archive.next()? {
            let path = links.resolve(&entry.path)?;
            let was_link = links.forget(&path);
            if let Kind::Link(target) = &entry.kind {
                links.remember(&path, target)?;
            }
            let Some(place) = self.source.relative(&path).map(<[u8]>::to_vec) else {
                if self.source.relative(&entry.path).is_some() {
                    // It would be lost without a word.
                    return Err(LinkError::Behind {
                        path: shown(&entry.path),
                        link: shown(self.source.place()),
                    }
                    .into());
                }
                continue;
            };
            let torn = || CopyError::Torn(shown(self.source.place()));
            if place.is_empty() && entry.kind != Kind::Directory {
                if matches!(found, Found::Directory(_)) {
                    return Err(torn());
                }
                copied = Copied {
                    files: 1,
                    bytes: self.one(&entry, archive)?,
                };
                found = Found::One;
                continue;
            }
            let tree = match &mut found {
                Found::One => return Err(torn()),
                Found::Directory(tree) => tree,
                Found::Nothing => {
                    found = Found::Directory(Box::new(self.open_destination()?));
                    let Found::Directory(tree) = &mut found else {
                        unreachable!("it was made in the line above")
                    };
                    tree
                }
            };
            if let Some(bytes) = self.put(tree, &place, &entry, was_link, &links, archive)? {
                copied.files += 1;
                copied.bytes += bytes;
            }
        }
        match found {
            Found::Nothing => Err(CopyError::NothingThere(self.source.glob().to_owned())),
            Found::One => Ok(copied),
            Found::Directory(tree) => {
                tree.finish()
                    .map_err(|error| self.failed(&self.destination, error))?;
                Ok(copied)
            }
        }
    }

    /// One entry of a directory that is copied. Its bytes, if it is no directory itself.
    fn put(
        &self,
        tree: &mut Tree,
        place: &[u8],
        entry: &Entry,
        was_link: bool,
        links: &Links,
        archive: &mut Archive<impl Read>,
    ) -> Result<Option<u64>, CopyError> {
        let facts = self.facts(entry);
        let put = match &entry.kind {
            Kind::Directory => tree.directory(place, facts, was_link).map(|()| None),
            Kind::File { .. } => tree.file(place, facts, archive).map(Some),
            Kind::Link(target) => tree.link(place, target, entry.modified).map(|()| Some(0)),
            Kind::Same(other) => {
                let other = links.resolve(other)?;
                match self.source.relative(&other) {
                    Some(other) => tree.same(place, other).map(|()| Some(0)),
                    None => Err(PutError::NotCopied),
                }
            }
        };
        put.map_err(|error| self.failed(&shown(&entry.path), error))
    }

    /// The file or link that is all there is.
    fn one(&self, entry: &Entry, archive: &mut Archive<impl Read>) -> Result<u64, CopyError> {
        let told = |error| self.failed(&self.destination, error);
        let own_name = self.source.name().unwrap_or_default();
        let target = self.destination.as_bytes();
        let (dir, name) = match target.iter().rposition(|byte| *byte == b'/') {
            _ if self.is_directory().map_err(|error| told(error.into()))? => (target, own_name),
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => unreachable!("a destination is absolute"),
        };
        // A directory that the step names is the owner's; those above it are the system's.
        let last = if dir == target { self.owner } else { Owner::ROOT };
        let dir = place::make_all(dir, last).map_err(|error| told(error.into()))?;
        match &entry.kind {
            Kind::File { .. } => tree::put_file(dir.as_fd(), name, self.facts(entry), self.owner, archive),
            Kind::Link(target) => {
                tree::put_link(dir.as_fd(), name, target, entry.modified, self.owner).map(|()| 0)
            }
            Kind::Same(_) => Err(PutError::NotCopied),
            Kind::Directory => unreachable!("a directory is not put by itself"),
        }
        .map_err(told)
    }

    /// Whether a file is put into the destination, and not in its place.
    fn is_directory(&self) -> rustix::io::Result<bool> {
        if self.destination.ends_with('/')
            || self.destination.ends_with("/.")
            || self.destination.ends_with("/..")
        {
            return Ok(true);
        }
        let found = place::leads_to(CWD, self.destination.as_bytes())?;
        Ok(found.is_some_and(rustix::fs::FileType::is_dir))
    }

    fn open_destination(&self) -> Result<Tree, CopyError> {
        let dir = place::make_all(self.destination.as_bytes(), self.owner);
        let dir = dir.map_err(|error| self.failed(&self.destination, error.into()))?;
        Ok(Tree::new(dir, self.owner, self.mode))
    }

    fn facts(&self, entry: &Entry) -> Facts {
        // Without a mode of the step's, a file that belongs to another now does not run as that other.
        const SET_IDS: u32 = 0o6000;
        let own = match entry.kind {
            Kind::Directory => entry.mode,
            _ => entry.mode & !SET_IDS,
        };
        Facts {
            mode: self.mode.unwrap_or(own),
            modified: entry.modified,
        }
    }

    fn failed(&self, path: &str, error: PutError) -> CopyError {
        match error {
            PutError::Source(error) => CopyError::Archive(ArchiveError::Read(error)),
            PutError::Place(error) => CopyError::Place {
                path: path.to_owned(),
                error,
            },
            PutError::InTheWay => CopyError::InTheWay(path.to_owned()),
            PutError::NotCopied => CopyError::NotCopied(path.to_owned()),
            PutError::TooMany => {
                CopyError::Archive(ArchiveError::TooMuch("so many directories can be copied at once"))
            }
        }
    }
}
