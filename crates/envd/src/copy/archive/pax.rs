//! Records that say of an entry what its header has no room for (POSIX.1, pax interchange format).
use super::{ArchiveError, shown};

/// What they say, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Whole seconds.
    pub(super) modified: Option<i64>,
    /// The content is not the file's, but pieces of it.
    pub(super) is_sparse: bool,
}

impl Records {
    /// Reads `length key=value\n`, again and again.
    pub(super) fn parse(mut text: &[u8]) -> Result<Self, ArchiveError> {
        let mut records = Self::default();
        // Some writers fill the block up.
        while let [first, ..] = text
            && *first != 0
        {
            let (record, rest) = record(text).ok_or_else(|| broken(text))?;
            text = rest;
            let (key, value) = record;
            let number = || std::str::from_utf8(value).ok();
            match key {
                b"path" => records.path = Some(value.to_vec()).filter(|path| !path.is_empty()),
                b"linkpath" => records.link = Some(value.to_vec()).filter(|path| !path.is_empty()),
                b"size" if !value.is_empty() => {
                    let is_digits = value.iter().all(u8::is_ascii_digit);
                    let size = number()
                        .and_then(|digits| digits.parse().ok())
                        .filter(|_| is_digits);
                    records.size = Some(size.ok_or_else(|| broken(value))?);
                }
                b"mtime" if !value.is_empty() => {
                    let whole = number().and_then(|number| number.split('.').next()?.parse().ok());
                    records.modified = Some(i64::max(whole.ok_or_else(|| broken(value))?, 0));
                }
                key if key.starts_with(b"GNU.sparse.") => records.is_sparse = true,
                _ => {}
            }
        }
        Ok(records)
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A key and its value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// The first record, and what follows it.
fn record(text: &[u8]) -> Option<(Record<'_>, &[u8])> {
    /// A record is within what one entry may say, which takes seven digits.
    const DIGITS_MAX: usize = 8;
    let blank = text.iter().take(DIGITS_MAX + 1).position(|byte| *byte == b' ')?;
    let digits = std::str::from_utf8(&text[..blank]).ok()?;
    let length: usize = digits
        .bytes()
        .all(|digit| digit.is_ascii_digit())
        .then(|| digits.parse().ok())??;
    let (record, rest) = text.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), rest))
}

fn broken(text: &[u8]) -> ArchiveError {
    ArchiveError::Broken("a pax record that is none", shown(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_say_what_they_say() {
        let text = b"12 path=a b\n25 mtime=1700000000.1234\n18 comment=ab=cde\n14 size=12345\n";
        let records = Records::parse(text).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a b"[..]));
        assert_eq!(
            (records.size, records.modified),
            (Some(12345), Some(1_700_000_000))
        );
        assert!(
            Records::parse(b"22 GNU.sparse.major=1\n\0\0\0")
                .unwrap()
                .is_sparse
        );
        assert!(Records::parse(b"").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for text in [
            &b"path=a\n"[..],
            b"99 path=a\n",
            b"8 path=a\n",
            b"10 path=ab",
            b"8 patha\n",
            b"+10 path=a\n",
            b"18446744073709551616 path=a\n",
            b"2 ",
            b"0 a=b\n",
            b"11 size=-1\n",
            b"11 mtime=x\n",
        ] {
            assert!(Records::parse(text).is_err(), "{}", shown(text));
        }
    }
}
