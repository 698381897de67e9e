//! Tar archives, read as a stream: ustar, GNU, PAX, and sparse files of all three ways to say them.
//!
//! Whatever the archive says of lengths is checked before it is believed: nothing is allocated by an archive's word beyond the
//! bounds here. Names come out as they were written; what they may mean is for the reader to judge.
use std::io::{self, Read, Seek, SeekFrom};

mod header;
mod pax;
mod sparse;

use header::{BLOCK, Header, Numbers};
use pax::Pax;
pub(crate) use sparse::Piece;

/// Extended headers of one entry: names, times and attributes. Attributes of one file are at most 64 KiB each in Linux.
const PAX_BYTES_MAX: u64 = 1 << 20;
/// A long name of GNU's: beyond what any path may be, so that the refusal names the path.
const NAME_BYTES_MAX: u64 = 64 << 10;
/// Pieces of a sparse file: a file of 256 MiB with a hole in every other block.
const PIECES_MAX: usize = 1 << 15;

/// Why an archive was not understood.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Its bytes could not be had.
    #[error("the archive cannot be read")]
    Input(#[source] io::Error),
    /// It ends in the middle.
    #[error("the archive ends in the middle of {0}")]
    Cut(&'static str),
    /// It does not follow the format.
    #[error("the archive is broken at byte {at}: {why}")]
    Broken {
        /// Where, in the uncompressed bytes.
        at: u64,
        /// In which way.
        why: &'static str,
    },
    /// It says something that is not supported, and that cannot be passed over.
    #[error("the archive has at byte {at} {what}, which is not supported")]
    Unsupported {
        /// Where, in the uncompressed bytes.
        at: u64,
        /// What.
        what: String,
    },
    /// More than is allowed.
    #[error("the archive has at byte {at} {what} beyond the limit of {limit}")]
    Long {
        /// Where, in the uncompressed bytes.
        at: u64,
        /// Of what.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A regular file; its bytes follow.
    File,
    /// Another name of an earlier entry.
    Link(Vec<u8>),
    /// A symbolic link, with what it says.
    Symlink(Vec<u8>),
    /// A directory.
    Dir,
    /// A pipe.
    Fifo,
    /// A character device.
    Char {
        /// Its numbers.
        major: u64,
        /// The second.
        minor: u64,
    },
    /// A block device.
    Block,
}

/// A time: seconds since 1970, and nanoseconds beyond them.
pub(crate) type Time = (i64, u32);

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where its header began, in the uncompressed bytes.
    pub(crate) at: u64,
    /// Its name, as written: not empty, no NUL.
    pub(crate) path: Vec<u8>,
    /// What it is.
    pub(crate) what: What,
    /// Permissions: twelve bits.
    pub(crate) mode: u32,
    /// Its owner.
    pub(crate) uid: u64,
    /// Its group.
    pub(crate) gid: u64,
    /// When it was last written.
    pub(crate) mtime: Time,
    /// Extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// How long the file is, with its holes.
    pub(crate) size: u64,
    /// Where the bytes that follow lie in a sparse file; `None` where it has no holes.
    pub(crate) pieces: Option<Vec<Piece>>,
}

/// An archive, and how far it was read.
pub(crate) struct Archive<R> {
    input: R,
    at: u64,
    /// Bytes of the current entry that were not read.
    body: u64,
    /// What fills its last block.
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            at: 0,
            body: 0,
            padding: 0,
        }
    }

    /// How many bytes were read.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of the current entry that follow.
    pub(crate) fn left(&self) -> u64 {
        self.body
    }

    /// The next entry; what was not read of the last is passed over. After the end there is none.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.pass_over()?;
        let mut pax = Pax::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let start = self.at;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let header = Header::new(&block);
            if header.is_zero() {
                return self.end(start).map(|()| None);
            }
            header.verify().map_err(|why| broken(start, why))?;
            let numbers = header.numbers().map_err(|why| broken(start, why))?;
            match header.flag() {
                b'x' => {
                    pax = Pax::parse(&self.meta(start, numbers.size, PAX_BYTES_MAX)?)
                        .map_err(|why| broken(start, why))?
                }
                b'g' => {
                    let global = self.meta(start, numbers.size, PAX_BYTES_MAX)?;
                    let global = Pax::parse(&global).map_err(|why| broken(start, why))?;
                    if let Some(what) = global.changes_entries() {
                        let what = format!("a global header that sets {what} for every entry");
                        return Err(TarError::Unsupported { at: start, what });
                    }
                }
                b'L' => long_name = Some(self.name(start, numbers.size)?),
                b'K' => long_link = Some(self.name(start, numbers.size)?),
                // A label of a volume says nothing of files.
                b'V' => {
                    self.begin(numbers.size);
                    self.pass_over()?;
                }
                flag => {
                    let long = (long_name, long_link);
                    return self.entry(start, &block, flag, &numbers, pax, long).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        at: u64,
        block: &[u8; BLOCK],
        flag: u8,
        numbers: &Numbers,
        pax: Pax,
        (long_name, long_link): (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> Result<Entry, TarError> {
        let wrong = |why| broken(at, why);
        let header = Header::new(block);
        let link = pax.link.or(long_link).unwrap_or_else(|| header.link());
        let path = pax.sparse.name.clone().or(pax.path).or(long_name);
        let path = path.unwrap_or_else(|| header.path());
        let what = match flag {
            b'0' | 0 | b'7' | b'S' if path.last() == Some(&b'/') && flag != b'S' => What::Dir,
            b'0' | 0 | b'7' | b'S' => What::File,
            b'1' => What::Link(link),
            b'2' => What::Symlink(link),
            b'3' => {
                let (major, minor) = header.device().map_err(wrong)?;
                What::Char { major, minor }
            }
            b'4' => What::Block,
            b'5' => What::Dir,
            b'6' => What::Fifo,
            other => {
                let what = format!("an entry of the kind '{}'", other.escape_ascii());
                return Err(TarError::Unsupported { at, what });
            }
        };
        match &what {
            What::Link(to) | What::Symlink(to) if to.is_empty() => return Err(wrong("a link says nothing")),
            What::Link(to) | What::Symlink(to) if to.contains(&0) => return Err(wrong("a NUL in a link")),
            _ => {}
        }
        if path.is_empty() || path.contains(&0) {
            return Err(wrong("an entry's name is empty, or has a NUL in it"));
        }
        let mut size = pax.size.unwrap_or(numbers.size);
        // Only files have bytes, whatever else a header says; so say all who write and read layers.
        self.begin(if what == What::File { size } else { 0 });
        let mut pieces = None;
        if what == What::File {
            let (map, real) = if flag == b'S' {
                let (map, real) = self.gnu_map(at, block)?;
                (Some(map), real)
            } else if pax.sparse.is_in_body {
                let map = self.body_map(at)?;
                (Some(map), pax.sparse.real_size.unwrap_or(size))
            } else {
                let real = pax.sparse.real_size.filter(|_| pax.sparse.map.is_some());
                (pax.sparse.map, real.unwrap_or(size))
            };
            if let Some(map) = map {
                sparse::check(&map, real, self.body).map_err(wrong)?;
                size = real;
                pieces = Some(map);
            }
        }
        Ok(Entry {
            at,
            path,
            what,
            mode: numbers.mode & 0o7777,
            uid: pax.uid.unwrap_or(numbers.uid),
            gid: pax.gid.unwrap_or(numbers.gid),
            mtime: pax.mtime.unwrap_or((numbers.mtime, 0)),
            xattrs: pax.xattrs,
            size,
            pieces,
        })
    }

    /// Reads bytes of the current entry; none at its end.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.body).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.some(&mut into[..most])?;
        if read == 0 {
            return Err(TarError::Cut("a file"));
        }
        self.body -= read as u64;
        Ok(read)
    }

    /// Reads everything behind the end of the archive, which belongs to its digest. Returns how much it was.
    pub(crate) fn drain(&mut self) -> Result<u64, TarError> {
        let start = self.at;
        let mut waste = [0; 16 << 10];
        while self.some(&mut waste)? > 0 {}
        Ok(self.at - start)
    }

    fn begin(&mut self, size: u64) {
        self.body = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn pass_over(&mut self) -> Result<(), TarError> {
        let mut waste = [0; 16 << 10];
        while self.read(&mut waste)? > 0 {}
        while self.padding > 0 {
            let most = usize::try_from(self.padding).unwrap_or(waste.len());
            match self.some(&mut waste[..most])? {
                0 => return Err(TarError::Cut("a file's last block")),
                read => self.padding -= read as u64,
            }
        }
        Ok(())
    }

    fn some(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.input.read(into) {
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Input(error)),
            }
        }
    }

    /// A whole block; `None` where the input ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.some(&mut block[have..])? {
                0 if have == 0 => return Ok(None),
                0 => return Err(TarError::Cut("a header")),
                read => have += read,
            }
        }
        Ok(Some(block))
    }

    /// Two empty blocks end an archive; some end it with one, or with none.
    fn end(&mut self, at: u64) -> Result<(), TarError> {
        match self.block()? {
            Some(second) if !Header::new(&second).is_zero() => {
                Err(broken(at, "an empty block stands between two entries"))
            }
            _ => Ok(()),
        }
    }

    fn meta(&mut self, at: u64, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            let what = "an extended header";
            return Err(TarError::Long { at, what, limit });
        }
        self.begin(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut have = 0;
        while have < bytes.len() {
            have += self.read(&mut bytes[have..])?;
        }
        self.pass_over()?;
        Ok(bytes)
    }

    fn name(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.meta(at, size, NAME_BYTES_MAX)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    /// GNU's own way: the map begins in the header and goes on in blocks behind it. They do not count as the file's.
    fn gnu_map(&mut self, at: u64, block: &[u8; BLOCK]) -> Result<(Vec<Piece>, u64), TarError> {
        let (body, padding) = (self.body, self.padding);
        let (mut map, real, mut goes_on) = sparse::in_header(block).map_err(|why| broken(at, why))?;
        while goes_on {
            let more = self.block()?.ok_or(TarError::Cut("the map of a sparse file"))?;
            goes_on = sparse::in_extension(&more, &mut map).map_err(|why| broken(at, why))?;
            if map.len() > PIECES_MAX {
                return Err(too_holey(at));
            }
        }
        (self.body, self.padding) = (body, padding);
        Ok((map, real))
    }

    /// PAX's last way: the map is text before the file's bytes.
    fn body_map(&mut self, at: u64) -> Result<Vec<Piece>, TarError> {
        let mut text = sparse::Text::default();
        loop {
            let mut block = [0; BLOCK];
            let mut have = 0;
            while have < BLOCK {
                match self.read(&mut block[have..])? {
                    0 => return Err(TarError::Cut("the map of a sparse file")),
                    read => have += read,
                }
            }
            if let Some(map) = text.take(&block, PIECES_MAX).map_err(|why| broken(at, why))? {
                return Ok(map);
            }
        }
    }
}

impl<R: Read + Seek> Archive<R> {
    /// Passes over what is left of the current entry without reading it.
    pub(crate) fn seek_over(&mut self) -> Result<(), TarError> {
        let ahead = self
            .body
            .checked_add(self.padding)
            .and_then(|ahead| i64::try_from(ahead).ok());
        let ahead = ahead.ok_or_else(|| broken(self.at, "an entry is longer than any file"))?;
        self.input
            .seek(SeekFrom::Current(ahead))
            .map_err(TarError::Input)?;
        self.at = self.at.saturating_add(self.body + self.padding);
        (self.body, self.padding) = (0, 0);
        Ok(())
    }
}

fn broken(at: u64, why: &'static str) -> TarError {
    TarError::Broken { at, why }
}

fn too_holey(at: u64) -> TarError {
    TarError::Long {
        at,
        what: "pieces of a sparse file",
        limit: PIECES_MAX as u64,
    }
}

#[cfg(test)]
mod tests;
