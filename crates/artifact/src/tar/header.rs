//! A block of 512 bytes that says what follows.

/// What archives are made of.
pub(super) const BLOCK: usize = 512;

/// A header, as it stands in the archive.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

/// The numbers of a header that every entry has.
pub(super) struct Numbers {
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
}

impl<'a> Header<'a> {
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Self {
        Self(block)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    /// The sum over the header, with spaces where the sum itself stands. Some old writers summed signed bytes.
    pub(super) fn verify(&self) -> Result<(), &'static str> {
        const WRONG: &str = "the sum over a header is wrong";
        let told = octal(&self.0[148..156]).ok_or(WRONG)?;
        let seen = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
        let bytes = || self.0.iter().enumerate().map(|(at, byte)| seen(at, *byte));
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(i8::from_ne_bytes([byte]))).sum();
        if told == unsigned || i64::try_from(told) == Ok(signed) {
            Ok(())
        } else {
            Err(WRONG)
        }
    }

    pub(super) fn numbers(&self) -> Result<Numbers, &'static str> {
        let positive = |range: std::ops::Range<usize>, why| match number(&self.0[range]) {
            Some(number) => u64::try_from(number).map_err(|_| why),
            None => Err(why),
        };
        let mode = positive(100..108, "an entry's mode is no number")?;
        Ok(Numbers {
            mode: u32::try_from(mode & 0o7777).expect("twelve bits"),
            uid: positive(108..116, "an entry's owner is no number")?,
            gid: positive(116..124, "an entry's group is no number")?,
            size: positive(124..136, "an entry's size is no number")?,
            mtime: number(&self.0[136..148]).ok_or("an entry's time is no number")?,
        })
    }

    pub(super) fn device(&self) -> Result<(u64, u64), &'static str> {
        let part = |range: std::ops::Range<usize>| {
            number(&self.0[range])
                .and_then(|number| u64::try_from(number).ok())
                .ok_or("a device's numbers are none")
        };
        Ok((part(329..337)?, part(337..345)?))
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257])
    }

    /// The name, with the prefix that POSIX puts before it. GNU keeps other things there.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        if &self.0[257..263] != b"ustar\0" {
            return name;
        }
        let prefix = text(&self.0[345..500]);
        if prefix.is_empty() {
            return name;
        }
        [prefix, name].join(&b'/')
    }
}

fn text(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field[..end].to_vec()
}

/// Octal digits between spaces and NULs; none at all is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !is_blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Octal, or GNU's binary form for what does not fit: two's complement behind a bit.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|number| i64::try_from(number).ok());
    }
    let is_negative = first & 0x40 != 0;
    let mut value: i128 = if is_negative { -1 } else { 0 };
    value = (value << 6) | i128::from(first & 0x3f);
    for byte in rest {
        // Twelve bytes at most: they fit.
        value = (value << 8) | i128::from(*byte);
    }
    i64::try_from(value).ok()
}
