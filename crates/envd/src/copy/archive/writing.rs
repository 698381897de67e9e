//! Archives for tests, right and wrong.
use super::header::BLOCK;

/// An archive that is being written.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

/// What a header says.
pub(crate) struct Told<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) link: &'a [u8],
    pub(crate) size: u64,
    pub(crate) mode: u32,
}

/// A header's time, and that of whatever is written here.
pub(crate) const MODIFIED: i64 = 1_700_000_000;

impl Writer {
    /// A header, with a long name's entry before it where one is needed.
    pub(crate) fn header(&mut self, told: &Told<'_>) -> &mut Self {
        for (kind, text) in [(b'L', told.path), (b'K', told.link)] {
            if text.len() > 100 {
                let size = text.len() as u64;
                let path = b"././@LongLink";
                self.header(&Told {
                    path,
                    kind,
                    link: b"",
                    size,
                    mode: 0o644,
                })
                .content(text);
            }
        }
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &[u8], length: usize| {
            let length = length.min(text.len());
            block[at..at + length].copy_from_slice(&text[..length]);
        };
        put(0, told.path, 100);
        put(100, format!("{:07o}\0", told.mode).as_bytes(), 8);
        put(108, b"0001750\0", 8);
        put(116, b"0001750\0", 8);
        if told.size < 1 << 33 {
            put(124, format!("{:011o}\0", told.size).as_bytes(), 12);
        } else {
            put(
                124,
                &[&[0x80, 0, 0, 0][..], &told.size.to_be_bytes()].concat(),
                12,
            );
        }
        put(136, format!("{MODIFIED:011o}\0").as_bytes(), 12);
        put(156, &[told.kind], 1);
        put(157, told.link, 100);
        put(257, b"ustar\x0000", 8);
        put(148, b"        ", 8);
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self
    }

    /// The content that a header was told of.
    pub(crate) fn content(&mut self, content: &[u8]) -> &mut Self {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(crate) fn file(&mut self, path: &[u8], mode: u32, content: &[u8]) -> &mut Self {
        let size = content.len() as u64;
        self.header(&Told {
            path,
            kind: b'0',
            link: b"",
            size,
            mode,
        })
        .content(content)
    }

    pub(crate) fn directory(&mut self, path: &[u8], mode: u32) -> &mut Self {
        self.header(&Told {
            path,
            kind: b'5',
            link: b"",
            size: 0,
            mode,
        })
    }

    pub(crate) fn link(&mut self, path: &[u8], link: &[u8]) -> &mut Self {
        self.header(&Told {
            path,
            kind: b'2',
            link,
            size: 0,
            mode: 0o777,
        })
    }

    pub(crate) fn same(&mut self, path: &[u8], link: &[u8]) -> &mut Self {
        self.header(&Told {
            path,
            kind: b'1',
            link,
            size: 0,
            mode: 0o644,
        })
    }

    /// Records for the next entry, or with `g` for all.
    pub(crate) fn pax(&mut self, kind: u8, records: &[(&str, &str)]) -> &mut Self {
        let mut text = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while length != rest.len() + length.to_string().len() {
                length = rest.len() + length.to_string().len();
            }
            text += &format!("{length}{rest}");
        }
        let size = text.len() as u64;
        let path = b"PaxHeaders/x";
        self.header(&Told {
            path,
            kind,
            link: b"",
            size,
            mode: 0o644,
        })
        .content(text.as_bytes())
    }

    /// The whole archive, with its end.
    pub(crate) fn end(&self) -> Vec<u8> {
        [&self.0[..], &[0; 2 * BLOCK]].concat()
    }

    /// What there is of it, without an end.
    #[cfg(test)]
    pub(crate) fn cut(&self) -> Vec<u8> {
        self.0.clone()
    }
}
