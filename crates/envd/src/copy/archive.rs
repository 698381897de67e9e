//! The tar archive of an upload (POSIX pax, ustar, GNU and v7), read as it arrives.
//!
//! ```text
//! header ─▶ its fields, checked      pax ─▶ records that say a field better      archive ─▶ entries and their content
//! ```
//!
//! It believes nothing: numbers are bounded before anything is allocated by them, and every path that it hands out lies
//! within the archive.
mod header;
mod pax;

use std::fmt;
use std::io::{self, Read};

use self::header::{BLOCK, Header};
use self::pax::Records;

/// Entries of one upload, with those that say more of others: ten times what the largest source trees have.
const ENTRIES_MAX: u64 = 2_000_000;
/// What one entry may say of itself beside its header.
const SAID_BYTES_MAX: u64 = 1 << 20;
/// What all of them may.
const ALL_SAID_BYTES_MAX: u64 = 1 << 30;
/// No disk of a sandbox is larger; what is skipped counts as well.
const CONTENT_BYTES_MAX: u64 = 1 << 40;
/// Writers fill up the last of their records, which are some KiB long.
const BEHIND_BYTES_MAX: u64 = 1 << 30;
/// As the kernel has it (`PATH_MAX`, with its NUL byte).
const PATH_BYTES_MAX: usize = 4095;
/// As the kernel has it (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// One thing in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where, without dots; empty for the root of the archive, which is a directory.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions, with set-user-id, set-group-id and the sticky bit.
    pub(crate) mode: u32,
    /// Seconds since the epoch.
    pub(crate) modified: i64,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its content is read from the archive.
    File {
        bytes: u64,
    },
    Directory,
    /// A symbolic link, to whatever it says.
    Link(Vec<u8>),
    /// The same file as another of the archive, at this path.
    Same(Vec<u8>),
}

/// Why an archive is not read.
#[derive(Debug)]
pub(crate) enum ArchiveError {
    /// It did not arrive, or is packed badly.
    Read(io::Error),
    /// It ends where something was to follow.
    Cut,
    /// It is none.
    NoArchive,
    /// What it says makes no sense.
    Broken(&'static str, String),
    /// A path that leads out of it.
    Outside(String),
    /// What is not copied.
    Unsupported(&'static str, String),
    /// Beyond what is read.
    TooMuch(&'static str),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveError::Read(error) => write!(f, "the uploaded archive cannot be read: {error}"),
            ArchiveError::Cut => write!(f, "the uploaded archive is cut short: upload it again"),
            ArchiveError::NoArchive => {
                write!(
                    f,
                    "what was uploaded is no tar archive, neither plain nor packed by gzip"
                )
            }
            ArchiveError::Broken(what, path) => {
                write!(f, "the uploaded archive is broken: {what} at '{path}'")
            }
            ArchiveError::Outside(path) => {
                write!(f, "the uploaded archive holds '{path}', which leads out of it")
            }
            ArchiveError::Unsupported(what, path) => {
                write!(f, "'{path}' is {what}, which COPY does not copy")
            }
            ArchiveError::TooMuch(what) => write!(f, "the uploaded archive holds more than {what}"),
        }
    }
}

/// An archive on its way in.
pub(crate) struct Archive<R> {
    from: R,
    /// Of the entry that was handed out last.
    content_left: u64,
    padding: u64,
    entries: u64,
    said_bytes: u64,
    content_bytes: u64,
    is_over: bool,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(from: R) -> Self {
        Self {
            from,
            content_left: 0,
            padding: 0,
            entries: 0,
            said_bytes: 0,
            content_bytes: 0,
            is_over: false,
        }
    }

    /// The next thing; what was not read of the last one's content is skipped. `None`: that was all.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.is_over {
            return Ok(None);
        }
        let mut said = Said::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                self.is_over = true;
                self.read_out()?;
                return if said.is_nothing() {
                    Ok(None)
                } else {
                    Err(ArchiveError::Cut)
                };
            };
            let kind = header.kind();
            match kind {
                b'x' => said.records = Records::parse(&self.said(&header)?)?,
                // What holds for all entries says nothing of their places: a comment, most often.
                b'g' => drop(Records::parse(&self.said(&header)?)?),
                b'L' => said.path = Some(until_nul(self.said(&header)?)),
                b'K' => said.link = Some(until_nul(self.said(&header)?)),
                _ => {
                    let entry = entry(&header, said)?;
                    if let Kind::File { bytes } = entry.kind {
                        self.begin(bytes)?;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads what lies behind the end, which is zeros for most writers: what is packed is known to be unharmed by its end alone.
    fn read_out(&mut self) -> Result<(), ArchiveError> {
        let mut behind = (&mut self.from).take(BEHIND_BYTES_MAX + 1);
        match io::copy(&mut behind, &mut io::sink()) {
            Ok(bytes) if bytes > BEHIND_BYTES_MAX => Err(ArchiveError::TooMuch("a gigabyte behind its end")),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ArchiveError::Cut),
            Err(error) => Err(ArchiveError::Read(error)),
        }
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut block = [0; BLOCK];
        match fill(&mut self.from, &mut block)? {
            BLOCK => {}
            0 if self.entries == 0 => return Err(ArchiveError::NoArchive),
            _ if self.entries == 0 => return Err(ArchiveError::NoArchive),
            // Every writer ends by a block of zeros: without it nobody knows what is missing.
            _ => return Err(ArchiveError::Cut),
        }
        if block == [0; BLOCK] {
            return Ok(None);
        }
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(ArchiveError::TooMuch("two million entries"));
        }
        match Header::parse(block) {
            Some(header) => Ok(Some(header)),
            None if self.entries == 1 => Err(ArchiveError::NoArchive),
            None => Err(ArchiveError::Broken(
                "a wrong checksum",
                format!("entry {}", self.entries),
            )),
        }
    }

    /// What an entry says of the next one.
    fn said(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let bytes = header.size().filter(|bytes| *bytes <= SAID_BYTES_MAX);
        let bytes = bytes.ok_or(ArchiveError::TooMuch("a megabyte of names for one entry"))?;
        self.said_bytes += bytes;
        if self.said_bytes > ALL_SAID_BYTES_MAX {
            return Err(ArchiveError::TooMuch("a gigabyte of names"));
        }
        self.begin(bytes)?;
        let mut said = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        if fill(&mut *self, &mut said)? < said.len() {
            return Err(ArchiveError::Cut);
        }
        Ok(said)
    }

    fn begin(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.content_bytes = self.content_bytes.saturating_add(bytes);
        if self.content_bytes > CONTENT_BYTES_MAX {
            return Err(ArchiveError::TooMuch("a terabyte"));
        }
        let block = BLOCK as u64;
        self.content_left = bytes;
        self.padding = (block - bytes % block) % block;
        Ok(())
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let left = self.content_left + self.padding;
        let skipped =
            io::copy(&mut (&mut self.from).take(left), &mut io::sink()).map_err(ArchiveError::Read)?;
        (self.content_left, self.padding) = (0, 0);
        if skipped < left {
            return Err(ArchiveError::Cut);
        }
        Ok(())
    }
}

/// The content of the entry that was handed out last.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it is cut short: upload it again",
            ));
        }
        self.content_left -= read as u64;
        Ok(read)
    }
}

/// What entries before one say of it.
#[derive(Default)]
struct Said {
    records: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Said {
    fn is_nothing(&self) -> bool {
        self.records.is_empty() && self.path.is_none() && self.link.is_none()
    }
}

fn entry(header: &Header, said: Said) -> Result<Entry, ArchiveError> {
    let Said { records, path, link } = said;
    let named = records.path.or(path).unwrap_or_else(|| header.path());
    let told = shown(&named);
    if records.is_sparse {
        return Err(ArchiveError::Unsupported("a file with holes in GNU's form", told));
    }
    let bytes = records.size.or_else(|| header.size());
    let bytes = bytes.ok_or_else(|| ArchiveError::Broken("a size that is no number", told.clone()))?;
    let link = || records.link.or(link).unwrap_or_else(|| header.link());
    let kind = match header.kind() {
        // Before there were types, a directory was known by its slash.
        b'\0' | b'0' | b'7' if !named.ends_with(b"/") => Kind::File { bytes },
        b'\0' | b'0' | b'7' | b'5' => Kind::Directory,
        b'2' => Kind::Link(target(link(), &told)?),
        b'1' => Kind::Same(within(&link(), &told)?),
        b'S' => return Err(ArchiveError::Unsupported("a file with holes in GNU's form", told)),
        b'3' | b'4' => return Err(ArchiveError::Unsupported("a device", told)),
        b'6' => return Err(ArchiveError::Unsupported("a named pipe", told)),
        _ => return Err(ArchiveError::Unsupported("of a kind that is not known", told)),
    };
    if bytes > 0 && !matches!(kind, Kind::File { .. }) {
        // Writers differ in whether content follows the size of what has none: nobody could read on.
        return Err(ArchiveError::Broken("content of what has none", told));
    }
    let path = within(&named, &told)?;
    let is_nameless = path.is_empty() || matches!(&kind, Kind::Same(other) if other.is_empty());
    if is_nameless && kind != Kind::Directory {
        return Err(ArchiveError::Broken("no name", told));
    }
    let mode = header
        .mode()
        .ok_or_else(|| ArchiveError::Broken("a mode that is no number", told.clone()))?;
    let modified = records.modified.or_else(|| header.modified());
    Ok(Entry {
        path,
        kind,
        mode,
        modified: modified.ok_or(ArchiveError::Broken("a time that is no number", told))?,
    })
}

/// A path without dots.
fn within(named: &[u8], told: &str) -> Result<Vec<u8>, ArchiveError> {
    if named.starts_with(b"/") {
        return Err(ArchiveError::Outside(shown(named)));
    }
    if named.is_empty() || named.contains(&0) {
        return Err(ArchiveError::Broken("no path", told.to_owned()));
    }
    let mut path = Vec::with_capacity(named.len());
    for part in named.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(ArchiveError::Outside(shown(named))),
            part if part.len() > NAME_BYTES_MAX => {
                return Err(ArchiveError::Broken(
                    "a name of more than 255 bytes",
                    told.to_owned(),
                ));
            }
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(ArchiveError::Broken(
            "a path of more than 4095 bytes",
            told.to_owned(),
        ));
    }
    Ok(path)
}

/// What a symbolic link says: anything that the kernel takes.
fn target(link: Vec<u8>, told: &str) -> Result<Vec<u8>, ArchiveError> {
    if link.is_empty() || link.len() > PATH_BYTES_MAX || link.contains(&0) {
        return Err(ArchiveError::Broken("a link that leads nowhere", told.to_owned()));
    }
    Ok(link)
}

/// A path for an error, within bounds.
pub(super) fn shown(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 300;
    match path.get(..SHOWN_MAX) {
        Some(begin) => format!("{}…", String::from_utf8_lossy(begin)),
        None => String::from_utf8_lossy(path).into_owned(),
    }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

/// Reads as much as there is, up to the whole buffer.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(ArchiveError::Cut),
            Err(error) => return Err(ArchiveError::Read(error)),
        }
    }
    Ok(filled)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod writing;

#[cfg(test)]
mod tests;
