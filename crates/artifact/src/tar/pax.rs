//! Extended headers: what does not fit into an entry's own.
use std::str;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::sparse::Piece;
use super::{PIECES_MAX, Time};

/// What extended headers say of an entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// What they say of a sparse file.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Option<Vec<Piece>>,
    /// The map stands before the file's bytes (version 1.0).
    pub(super) is_in_body: bool,
    offset: Option<u64>,
}

/// Attributes of one entry. Layers have one or two where they have any.
const ATTRIBUTES_MAX: usize = 256;

const RECORD: &str = "an extended header is broken";
const NUMBER: &str = "an extended header says something else where a number is due";
const HOLES: &str = "the map of a sparse file is broken";

impl Pax {
    /// Records of the form `length key=value\n`. What has no meaning here is passed over.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        let mut version = (None, None);
        // Some writers fill up with NULs.
        while bytes.first().is_some_and(|byte| *byte != 0) {
            let space = bytes
                .iter()
                .take(20)
                .position(|byte| *byte == b' ')
                .ok_or(RECORD)?;
            let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|length| *length > space + 1 && *length <= bytes.len());
            let (record, rest) = bytes.split_at(length.ok_or(RECORD)?);
            bytes = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or(RECORD)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(RECORD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"GNU.sparse.major" => version.0 = decimal(value),
                b"GNU.sparse.minor" => version.1 = decimal(value),
                _ => pax.record(key, value)?,
            }
        }
        match version {
            (Some(1), Some(0)) => pax.sparse.is_in_body = true,
            (None | Some(0), _) => {}
            _ => return Err("a sparse file is of a version that nobody has described"),
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // Nothing where something could stand takes back what was said.
        let some = (!value.is_empty()).then(|| value.to_vec());
        let number = || match value {
            [] => Ok(None),
            value => decimal(value).map(Some).ok_or(NUMBER),
        };
        match key {
            b"path" => self.path = some,
            b"linkpath" => self.link = some,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or("an entry's time is no number")?),
            b"GNU.sparse.name" => self.sparse.name = some,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = number()?,
            b"GNU.sparse.map" => self.sparse.map = Some(map(value)?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value).ok_or(NUMBER)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or(HOLES)?;
                let bytes = decimal(value).ok_or(NUMBER)?;
                let map = self.sparse.map.get_or_insert_default();
                if map.len() >= PIECES_MAX {
                    return Err("a sparse file has too many pieces");
                }
                map.push(Piece { offset, bytes });
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attribute(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = STANDARD.decode(value).or_else(|_| STANDARD_NO_PAD.decode(value));
                    let value = value.map_err(|_| "an extended attribute is no base64")?;
                    self.attribute(percent_encoding::percent_decode(name).collect(), value)?;
                }
            }
        }
        Ok(())
    }

    /// Some writers say each twice, in both ways; the last counts.
    fn attribute(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), &'static str> {
        if let Some(known) = self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            known.1 = value;
        } else if self.xattrs.len() < ATTRIBUTES_MAX {
            self.xattrs.push((name, value));
        } else {
            return Err("an entry has too many extended attributes");
        }
        Ok(())
    }

    /// What a global header would change in the meaning of entries.
    pub(super) fn changes_entries(&self) -> Option<&'static str> {
        let sparse = &self.sparse;
        let is_sparse =
            sparse.is_in_body || sparse.name.is_some() || sparse.map.is_some() || sparse.real_size.is_some();
        [
            (self.path.is_some(), "path"),
            (self.link.is_some(), "linkpath"),
            (self.size.is_some(), "size"),
            (self.uid.is_some(), "uid"),
            (self.gid.is_some(), "gid"),
            (!self.xattrs.is_empty(), "extended attributes"),
            (is_sparse, "GNU.sparse"),
        ]
        .into_iter()
        .find_map(|(is_set, name)| is_set.then_some(name))
    }
}

/// Decimal digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// `0,4096,8192,512`: offsets and lengths.
fn map(text: &[u8]) -> Result<Vec<Piece>, &'static str> {
    let mut map = Vec::new();
    if text.is_empty() {
        return Ok(map);
    }
    let mut numbers = text.split(|byte| *byte == b',').map(decimal);
    while let Some(offset) = numbers.next() {
        let bytes = numbers.next().flatten().ok_or(HOLES)?;
        let offset = offset.ok_or(HOLES)?;
        if map.len() >= PIECES_MAX {
            return Err("a sparse file has too many pieces");
        }
        map.push(Piece { offset, bytes });
    }
    Ok(map)
}

/// `[-]seconds[.fraction]`.
fn time(text: &[u8]) -> Option<Time> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
            nanoseconds = nanoseconds * 10 + digit;
        }
    }
    Some(match (is_negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}
