//! The block before each entry (POSIX.1 ustar, and GNU's way to say large numbers).

/// Everything in an archive comes in blocks of so many bytes.
pub(super) const BLOCK: usize = 512;

/// A block whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    /// A header, if the checksum is right.
    pub(super) fn parse(block: [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let said = number(header.field(148, 8))?;
        let others = block[..148].iter().chain(&block[156..]);
        let unsigned: u64 = others.clone().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * u64::from(b' ');
        // Some old writers added signed bytes.
        let high = others.filter(|byte| **byte >= 0x80).count() as u64;
        let signed = unsigned.checked_sub(256 * high);
        (said == unsigned || Some(said) == signed).then_some(header)
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The path, with the prefix that ustar puts before it.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        // GNU's own form has other fields there.
        let is_posix = self.field(257, 6) == b"ustar\0";
        let prefix = if is_posix { text(self.field(345, 155)) } else { b"" };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    /// What a link leads to.
    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(super) fn size(&self) -> Option<u64> {
        number(self.field(124, 12))
    }

    pub(super) fn mode(&self) -> Option<u32> {
        let mode = number(self.field(100, 8))?;
        u32::try_from(mode & 0o7777).ok()
    }

    /// Seconds since the epoch; what is before it is the epoch.
    pub(super) fn modified(&self) -> Option<i64> {
        let field = self.field(136, 12);
        if field[0] == 0xff {
            return Some(0);
        }
        i64::try_from(number(field)?).ok()
    }

    fn field(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at..at + length]
    }
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number: octal digits among blanks, or, after a first byte of 0x80, the bytes of the number itself. No digits are 0.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, bytes @ ..] = field {
        return bytes.iter().try_fold(0_u64, |number, byte| {
            Some(number.checked_mul(256)? + u64::from(*byte))
        });
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_bytes_and_never_too_large() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777"), Some(0o77_777_777_777));
        assert_eq!(number(b"7777777777777777777777777"), None);
        assert_eq!(number(b"8"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(2 << 32));
        assert_eq!(number(b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b"\xff\xff\xff"), None);
    }
}
